package security

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// E251: what bounds the relay.
func TestRelayLimits(t *testing.T) {
	t.Parallel()
	everywhere(t, "U", egress.Spec{Mode: egress.ModeUnrestricted}, func(c *egress.Config) {
		quick(c)
		c.Limits.UDPFlows, c.Limits.UDPIdle, c.Limits.UDPUnanswered, c.Limits.UDPRate = pick(16, 256), time.Second, 3*time.Second, 20_000
	}, func(t *testing.T, s *stand) {
		s.try(t, "E251", func(c *attempt) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if err := world.udpEcho(ctx, netip.AddrPortFrom(s.raw, 7), func(netip.AddrPort, []byte) {}); err != nil {
				c.Fatal(err)
			}
			for _, size := range []int{1, 1472, 9000, 65000} {
				r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(s.raw.String(), 7), Data: make([]byte, size)})
				if len(r.Data) != size+5 && size <= 1472 || len(r.Data) != 0 && len(r.Data) != size+5 {
					c.Errorf("%d bytes: %s", size, told(r))
				}
			}
			addresses := []string{}
			for port := range s.config.Limits.UDPFlows + 44 {
				addresses = append(addresses, at(s.raw.String(), 20000+port))
			}
			c.do(wire.Request{Op: "many", Network: "udp4", Addresses: addresses, Parallel: len(addresses), Data: []byte("x"), WaitMS: 300})
			eventually(c, "connection_limit", func() bool { return s.reasons()["connection_limit"] > 0 })
			if n := s.reasons()["ok"]; n > s.config.Limits.UDPFlows+4 { // four came before
				c.Errorf("%d flows", n)
			}
			// Flows end when they are idle, and there is room again.
			eventually(c, "room for a flow", func() bool {
				r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(s.raw.String(), 7), Data: []byte("again"), WaitMS: 500})
				return string(r.Data) == "echo:again"
			})
			before := s.reasons()["rate_limit"]
			c.do(wire.Request{Op: "flood", Address: at(s.raw.String(), 30000), Repeat: 500, Data: make([]byte, 1000), WaitMS: 100})
			eventually(c, "rate_limit", func() bool { return s.reasons()["rate_limit"] > before })
			// Of what it left in the queues some goes out later, as the rate allows.
			eventually(c, "the end of the flood's flow", func() bool {
				flows := c.recorded(func(r egress.Record) bool { return r.DestPort == 30000 && r.Reason == egress.ReasonOK })
				return len(flows) > 0 && !slices.ContainsFunc(flows, func(r egress.Record) bool { return r.BytesUp == 0 })
			})
			c.unowned("udp")
			c.packets(func(p string) bool { return strings.HasPrefix(p, "udp raw:") })
			c.note("connection_limit")
			c.note("rate_limit")
		})
	})
}

// Section J: mode unrestricted.
func TestUnrestricted(t *testing.T) {
	t.Parallel()
	everywhere(t, "U", egress.Spec{Mode: egress.ModeUnrestricted}, func(c *egress.Config) {
		quick(c)
		c.DenyCIDRs = []netip.Prefix{netip.MustParsePrefix("185.77.0.0/16")}
		c.BlockHosts = []string{"blocked.example.com"}
		c.BlockPorts = []int{9999}
		c.Exempt = []egress.Exemption{{Host: "mail.example.com", CIDR: netip.MustParsePrefix("20.0.0.0/8"), Ports: []int{25}}}
	}, func(t *testing.T, s *stand) {
		openTCP(t, s)
		openRefused(t, s)
		openUDP(t, s)
		openNames(t, s)
	})
}

const anyName = "any.example.com"

func openTCP(t *testing.T, s *stand) {
	s.try(t, "E245", func(c *attempt) {
		address := c.address(anyName)
		for _, port := range []int{22, 5432} {
			r := c.do(wire.Request{Op: "talk", Address: at(address, port), Data: []byte("x"), HalfClose: true})
			if string(r.Data) != "220 server first\r\nx" {
				c.Errorf("port %d: %s", port, told(r))
			}
			c.passed(fmt.Sprintf("tcp ok %s:%d by unrestricted", anyName, port), fmt.Sprintf("banner %d \"x\"", port))
		}
		for _, port := range []int{443, 8443} {
			r := c.do(wire.Request{Op: "talk", Address: at(address, port), TLS: tlsAs(anyName), Data: []byte(httpGet(anyName))})
			c.wantStatus(r, "200")
			c.passed(fmt.Sprintf("tcp ok %s:%d by unrestricted", anyName, port), "GET https any.example.com/ 0")
		}
	})
	s.try(t, "E246", func(c *attempt) {
		address := c.address(anyName)
		for _, port := range []int{22, 3306} {
			r := c.do(wire.Request{Op: "talk", Address: at(address, port), Max: 18})
			if string(r.Data) != "220 server first\r\n" {
				c.Errorf("port %d: %s", port, told(r))
			}
			c.passed(fmt.Sprintf("tcp ok %s:%d by unrestricted", anyName, port), fmt.Sprintf("banner %d \"\"", port))
		}
		place := netip.AddrPortFrom(s.address(0, 5), 443)
		s.resolves("first.example.com", place.Addr().String())
		world.handle(place, func(conn netConn) { serveBanner(s, conn) })
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("first.example.com"), 443), Max: 18})
		if string(r.Data) != "220 server first\r\n" {
			c.Errorf("port 443: %s", told(r))
		}
		c.decided("tcp ok first.example.com:443 by unrestricted")
		c.sent("tcp " + place.String())
		c.upstream(`banner 443 ""`)
		c.asked("first.example.com")
	})
	s.try(t, "E247", func(c *attempt) {
		c.wantStatus(c.talk(at(s.raw.String(), 80), httpGet("x")), "200")
		c.decided("tcp ok raw:80 by unrestricted")
		c.sent("tcp raw:80")
		c.upstream("GET http x/ 0")
		c.asked()
	})
	s.try(t, "E115", func(c *attempt) {
		r := c.talk(at(c.address(anyName), 8080), "CONNECT no.example.com:443 HTTP/1.1\r\nHost: no.example.com:443\r\nConnection: close\r\n\r\n")
		c.wantStatus(r, "200") // the upstream answers: a stream like any other
		c.passed("tcp ok any.example.com:8080 by unrestricted", "CONNECT http no.example.com:443no.example.com:443 0")
	})
	s.try(t, "E263", func(c *attempt) {
		address := c.address(anyName)
		for _, h := range [][]byte{helloAs(c, ""), extended(helloAs(c, anyName), 0xfe0d, greaseECH()), helloAs(c, "other.example.net")} {
			r := c.do(wire.Request{Op: "talk", Address: at(address, 443), Data: h, Max: 1})
			if len(r.Data) == 0 || r.Data[0] != 0x16 {
				c.Errorf("got %s, want the server's hello", told(r))
			}
			c.passed("tcp ok any.example.com:443 by unrestricted")
		}
		place := netip.AddrPortFrom(s.address(0, 4), 80)
		s.resolves("h2.example.com", place.Addr().String())
		world.handle(place, func(conn netConn) {
			buf := make([]byte, 24)
			_, _ = conn.Read(buf)
			s.saw("%s", buf)
		})
		c.talk(at(c.address("h2.example.com"), 80), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		c.decided("tcp ok h2.example.com:80 by unrestricted")
		c.sent("tcp " + place.String())
		c.upstream("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		c.asked("h2.example.com")
	})
}

func openRefused(t *testing.T, s *stand) {
	const no = "address_not_public"
	routed := func(a string) bool {
		return !strings.HasPrefix(a, "127.") && !strings.HasPrefix(a, "0.") && a < "224" && a != "198.18.0.1"
	}
	s.try(t, "E253", func(c *attempt) {
		for _, a := range append(notPublic(), hostPublic) {
			if a == "198.18.0.1" {
				continue // has an answer of its own: E034
			}
			if !routed(a) {
				r := c.do(wire.Request{Op: "talk", Address: at(a, 80), Data: []byte("x"), WaitMS: 300})
				if len(r.Data) > 0 || r.End == "eof" {
					c.Errorf("%s: %s", a, told(r))
				}
				continue
			}
			c.want403(c.talk(at(a, 80), httpGet("x.example.com")), at(a, 80))
			c.wantReset(c.talk(at(a, 22), "x"))
		}
		s.mu.Lock()
		for _, d := range s.decisions {
			if d.Reason != no && d.Reason != "name_not_allowed" {
				c.Errorf("decision %s", s.describe(d))
			}
		}
		s.decisions = nil
		s.mu.Unlock()
		c.note(no)
	})
	s.try(t, "E254", func(c *attempt) {
		for _, a := range append(append(notPublic(), notPublic6()...), hostPublic) {
			s.resolves("inside.example.com", a)
			c.want403(c.talk(at(c.address("inside.example.com"), 80), httpGet("inside.example.com")), "inside.example.com")
			c.decided("http " + no + " inside.example.com:80")
			c.asked("inside.example.com")
		}
	})
	s.try(t, "E255", func(c *attempt) {
		for _, a := range append(notPublic(), hostPublic) {
			if !routed(a) {
				continue
			}
			if r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(a, 123), Data: []byte("x")}); r.End != "refused" {
				c.Errorf("%s: %s, want port unreachable", a, told(r))
			}
			c.decided(fmt.Sprintf("udp %s %s:123 by unrestricted", no, a))
		}
		s.resolves("inside.example.com", "10.0.0.5")
		if r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(c.address("inside.example.com"), 123), Data: []byte("x")}); r.End != "refused" {
			c.Errorf("by name: %s", told(r))
		}
		c.decided("udp " + no + " inside.example.com:123 by unrestricted")
		c.asked("inside.example.com")
	})
	s.try(t, "E256", func(c *attempt) {
		c.wantReset(c.talk(at(s.raw.String(), 25), "x"))
		c.decided("tcp port_not_allowed raw:25")
		c.wantReset(c.talk(at(c.address(anyName), 25), "x"))
		c.decided("tcp port_not_allowed any.example.com:25")
		for name, ports := range map[string][]int{"mail.example.com": {25, 465, 587}, anyName: {465, 587}} {
			for _, port := range ports {
				r := c.do(wire.Request{Op: "talk", Address: at(c.address(name), port), Max: 18})
				if string(r.Data) != "220 server first\r\n" {
					c.Errorf("%s:%d: %s", name, port, told(r))
				}
				rule := "unrestricted"
				if port == 25 {
					rule = "operator"
				}
				c.passed(fmt.Sprintf("tcp ok %s:%d by %s", name, port, rule), fmt.Sprintf("banner %d \"\"", port))
			}
		}
	})
	s.try(t, "E257", func(c *attempt) {
		c.want403(c.talk("10.0.0.5:80", httpGet("x.example.com")), "10.0.0.5:80")
		c.decided("http " + no + " 10.0.0.5:80 claims x.example.com")
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: "10.0.0.5:443", TLS: tlsAs("x.example.com")}))
		c.decided("tls " + no + " 10.0.0.5:443 claims x.example.com")
	})
	s.try(t, "E258", func(c *attempt) {
		if r := c.do(wire.Request{Op: "connect", Network: "ping", Address: at(s.raw.String(), 0), Data: icmp(8, 0, []byte{0, 1, 0, 1}), WaitMS: 300}); len(r.Data) > 0 {
			c.Errorf("ping: %s", told(r))
		}
		if s.place == inPlain {
			c.dropped("ping", packet{proto: 1, dst: s.raw.String(), payload: icmp(8, 0, []byte{0, 1, 0, 1})}.frame())
		}
		if r := c.do(wire.Request{Op: "talk", Network: "tcp6", Address: "[" + s.address6(1).String() + "]:443"}); r.End != "unreachable" {
			c.Errorf("IPv6: %s", told(r))
		}
	})
	s.try(t, "E261", func(c *attempt) {
		c.want403(c.talk("185.77.0.5:80", httpGet("x.example.com")), "185.77.0.5:80")
		c.decided("http " + no + " 185.77.0.5:80 claims x.example.com")
		if a := s.lookup(c, "blocked.example.com"); a != "198.18.0.1" {
			c.Errorf("the blocked name is %s", a)
		}
		c.decided("dns blocklisted blocked.example.com")
		c.wantReset(c.talk(at(c.address(anyName), 9999), "x"))
		c.decided("tcp blocklisted any.example.com:9999")
		c.wantReset(c.talk(at(s.raw.String(), 9999), "x"))
		c.decided("tcp blocklisted raw:9999")
		// By address, as documented, the name's server is still there.
		c.wantStatus(c.talk(at(s.up.String(), 80), httpGet("blocked.example.com")), "200")
		c.decided("tcp ok up:80 by unrestricted")
		c.upstream("GET http blocked.example.com/ 0")
	})
}

func openUDP(t *testing.T, s *stand) {
	echo := func(c *attempt, at netip.AddrPort, saw func(netip.AddrPort, []byte)) {
		ctx, cancel := context.WithCancel(context.Background())
		c.Cleanup(cancel)
		if err := world.udpEcho(ctx, at, saw); err != nil {
			c.Fatal(err)
		}
	}
	noted := func(peer netip.AddrPort, data []byte) { s.saw("udp %d", len(data)) }
	s.try(t, "E248", func(c *attempt) {
		echo(c, netip.AddrPortFrom(s.up, 123), noted)
		ntp := append([]byte{0x23}, make([]byte, 47)...)
		r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(c.address("ntp.example.com"), 123), Data: ntp})
		if string(r.Data) != "echo:"+string(ntp) {
			c.Errorf("got %s", told(r))
		}
		c.decided("udp ok ntp.example.com:123 by unrestricted")
		c.sent("udp up:123")
		c.upstream("udp 48")
		c.asked("ntp.example.com")
	})
	s.try(t, "E249", func(c *attempt) {
		place := netip.AddrPortFrom(s.up, 443)
		serveQUIC(c, place)
		r := c.do(wire.Request{Op: "quic", Address: at(c.address(anyName), 443), TLS: &wire.TLS{Name: anyName, Roots: certificates().roots, ALPN: []string{"echo"}, Min: tls.VersionTLS13}, Data: []byte("over QUIC")})
		if string(r.Data) != "echo:over QUIC" || r.End != "eof" {
			c.Errorf("got %s", told(r))
		}
		c.decided("udp ok any.example.com:443 by unrestricted")
		c.sent("udp up:443")
		c.upstream(`quic any.example.com "over QUIC"`)
		c.asked(anyName)
	})
	s.try(t, "E250", func(c *attempt) {
		var from netip.AddrPort
		echo(c, netip.AddrPortFrom(s.raw, 3478), func(peer netip.AddrPort, data []byte) { from = peer; s.saw("udp %d", len(data)) })
		r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(s.raw.String(), 3478), Data: []byte("one"), Keep: true})
		if string(r.Data) != "echo:one" {
			c.Fatalf("got %s", told(r))
		}
		err := onThread(world.ns, func() error { return sendFrom(netip.AddrPortFrom(s.address(9, 8), 3478), from) })
		if err != nil {
			c.Fatal(err)
		}
		err = onThread(world.ns, func() error { return sendFrom(netip.AddrPortFrom(s.raw, 3479), from) })
		if err != nil {
			c.Fatal(err)
		}
		if r = c.do(wire.Request{Op: "talk", Conn: r.Conn, Network: "udp4", WaitMS: 500}); r.End != "timeout" {
			c.Errorf("another peer's datagram arrived: %s", told(r))
		}
		c.decided("udp ok raw:3478 by unrestricted")
		c.sent("udp raw:3478")
		c.upstream("udp 3")
	})
	s.try(t, "E252", func(c *attempt) {
		for _, server := range []string{at(s.raw.String(), 53), "224.0.0.251:53"} {
			r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: server, Data: question(c, "localhost", dnsmessage.TypeA), WaitMS: 500})
			if multicast := strings.HasPrefix(server, "224."); (r.End == "more") == multicast {
				c.Errorf("%s: %s", server, told(r))
			}
		}
		r := c.do(wire.Request{Op: "connect", Network: "broadcast", Address: "239.255.255.250:1900", Data: []byte("x"), WaitMS: 300})
		if len(r.Data) > 0 {
			c.Errorf("multicast: %s", told(r))
		}
	})
}

func openNames(t *testing.T, s *stand) {
	s.try(t, "E259", func(c *attempt) {
		s.resolves("six.example.com", s.address6(1).String())
		c.wantStatus(c.talk(at(c.address("six.example.com"), 80), httpGet("six.example.com")), "200")
		c.decided("tcp ok six.example.com:80 by unrestricted")
		c.sent("tcp " + at(s.address6(1).String(), 80))
		c.upstream("GET http six.example.com/ 0")
		c.asked("six.example.com")
	})
	s.try(t, "E260", func(c *attempt) {
		for kind, want := range map[dnsmessage.Type]string{
			dnsmessage.TypeMX: "mx.example.com.", dnsmessage.TypeSRV: "srv.example.com.", dnsmessage.TypeNS: "ns.example.com.", dnsmessage.TypeTXT: "words",
		} {
			m := s.ask(c, stub, question(c, anyName, kind))
			if m == nil || len(m.Additionals) != 0 || len(m.Authorities) != 0 || len(m.Answers) != 1 {
				c.Errorf("type %s: %+v, want one answer", kind, m)
				continue
			}
			// The resolver's other answers have an address for a name.
			if got := fmt.Sprint(m.Answers[0].Body); m.Answers[0].Header.Type != kind || !strings.Contains(got, want) {
				c.Errorf("type %s: %s, want %s", kind, got, want)
			}
		}
		c.asked(anyName, "ns.example.com")
		c.note("asked anew by the server")
	})
	s.try(t, "E262", func(c *attempt) {
		s.resolves("ns.inside.example.com", "10.0.0.53")
		for name, reason := range map[string]string{
			"db.internal": "name_not_allowed", "printer.local": "name_not_allowed", "1.0.0.10.in-addr.arpa": "name_not_allowed", "intranet": "name_not_allowed",
			"vault.service.consul": "name_not_allowed", "inside.example.com": "address_not_public", "deep.inside.example.com": "address_not_public",
		} {
			for _, kind := range []dnsmessage.Type{dnsmessage.TypeMX, dnsmessage.TypeSRV, dnsmessage.TypeNS, dnsmessage.TypeTXT} {
				m := s.ask(c, stub, question(c, name, kind))
				if m == nil || len(m.Answers)+len(m.Additionals)+len(m.Authorities) != 0 || m.RCode != dnsmessage.RCodeSuccess {
					c.Errorf("%s, type %s: %+v, want no data", name, kind, m)
				}
			}
			decision := "dns " + reason + " " + name
			c.decided(decision, decision, decision, decision)
		}
		c.asked("inside.example.com", "deep.inside.example.com", "ns.inside.example.com")
	})
}

// LookupMX and the others make the stand a resolver of records, too. Besides the
// one that is in order each tells of a private address in a name's place.
func (s *stand) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	s.question(name)
	return []*net.MX{{Host: "mx.example.com."}, {Host: "10.0.0.5."}}, nil
}

func (s *stand) LookupSRV(_ context.Context, _, _, name string) (string, []*net.SRV, error) {
	s.question(name)
	return name, []*net.SRV{{Target: "srv.example.com.", Port: 5222}, {Target: "10.0.0.5.", Port: 5222}}, nil
}

func (s *stand) LookupNS(_ context.Context, name string) ([]*net.NS, error) {
	s.question(name)
	if strings.HasSuffix(name, "inside.example.com.") { // a zone of the operator's own
		return []*net.NS{{Host: "ns.inside.example.com."}}, nil
	}
	return []*net.NS{{Host: "ns.example.com."}, {Host: "10.0.0.5."}}, nil
}

func (s *stand) LookupTXT(_ context.Context, name string) ([]string, error) {
	s.question(name)
	return []string{"words"}, nil
}

func (s *stand) question(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, name)
}
