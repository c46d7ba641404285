package security

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// quick lets a stand's cases come faster than one sandbox may.
func quick(c *egress.Config) {
	c.Limits.ConnectionRate, c.Limits.DNSRate = 1e5, 1e5
}

// Section A: raw addresses and protocols.
func TestRaw(t *testing.T) {
	t.Parallel()
	for mode, spec := range map[string]egress.Spec{
		"L": limited("ok.example.com", "*.wild.example.com"),
		"U": {Mode: egress.ModeUnrestricted},
		"B": {Mode: egress.ModeBuild, Endpoints: []egress.Endpoint{{Host: hostName("ok.example.com"), Rule: "registry:pip"}}},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			everywhere(t, mode, spec, quick, func(t *testing.T, s *stand) {
				if mode == "L" {
					rawLimited(t, s)
				}
				rawEveryMode(t, s)
				rawGateway(t, s)
				rawInside(t, s)
				rawPackets(t, s)
			})
		})
	}
}

// rawLimited are the cases of mode limited alone.
func rawLimited(t *testing.T, s *stand) {
	raw := s.raw.String()
	s.try(t, "E001", func(c *attempt) {
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: at(raw, 443), TLS: tlsAs("x.example.com")}))
		c.decided("tls no_mapping raw:443 claims x.example.com")
	})
	s.try(t, "E002", func(c *attempt) {
		c.want403(c.talk(at(raw, 80), httpGet("x.example.com")), raw+":80")
		c.decided("http no_mapping raw:80 claims x.example.com")
	})
	s.try(t, "E003", func(c *attempt) {
		for _, port := range []int{22, 853, 8080, 65535} {
			c.wantReset(c.talk(at(raw, port), "hello\r\n"))
			c.decided(fmt.Sprintf("tcp no_mapping raw:%d", port))
		}
	})
	s.try(t, "E004", func(c *attempt) {
		for _, address := range []string{raw, s.up.String()} { // the second is where the name resolves to
			c.wantAlert(c.do(wire.Request{Op: "talk", Address: at(address, 443), TLS: tlsAs("ok.example.com")}))
		}
		c.decided("tls no_mapping raw:443 claims ok.example.com", "tls no_mapping up:443 claims ok.example.com")
	})
	s.try(t, "E005", func(c *attempt) {
		for _, address := range []string{raw, s.up.String()} {
			c.want403(c.talk(at(address, 80), httpGet("ok.example.com")), address+":80")
		}
		c.decided("http no_mapping raw:80 claims ok.example.com", "http no_mapping up:80 claims ok.example.com")
	})
	s.try(t, "E007", func(c *attempt) {
		r := c.do(wire.Request{Op: "connect", Network: "mapped", Address: at(c.address("ok.example.com"), 80), Data: []byte(httpGet("ok.example.com"))})
		c.wantStatus(r, "200")
		c.passed("http ok ok.example.com:80 by allowed_hosts[0]", "GET http ok.example.com/ 0")
		r = c.do(wire.Request{Op: "connect", Network: "mapped", Address: at(raw, 80), Data: []byte(httpGet("ok.example.com"))})
		c.want403(r, raw+":80")
		c.decided("http no_mapping raw:80 claims ok.example.com")
	})
	s.try(t, "E018", func(c *attempt) {
		c.want403(c.talk("198.18.77.7:80", httpGet("ok.example.com")), "198.18.77.7:80")
		c.wantRawAlert(c.talk("198.19.255.255:443", string(helloAs(c, "ok.example.com"))))
		c.decided("http no_mapping 198.18.77.7:80 claims ok.example.com", "tls no_mapping 198.19.255.255:443 claims ok.example.com")
	})
	s.try(t, "E019", func(c *attempt) {
		// The other session's policy lists more names, so it holds 198.18.1.2.
		s.network(c, s.id+"o", limited("a.example.com", "b.example.com", "c.example.com"))
		c.want403(c.talk("198.18.1.2:80", httpGet("c.example.com")), "198.18.1.2:80")
		c.decided("http no_mapping 198.18.1.2:80 claims c.example.com")
		c.want403(c.talk("198.18.1.0:80", httpGet("a.example.com")), "a.example.com")
		c.decided("http host_mismatch ok.example.com:80 claims a.example.com")
	})
	s.try(t, "E022", func(c *attempt) {
		for _, address := range []string{at(raw, 443), at(raw, 123), at(c.address("ok.example.com"), 443), "169.254.100.1:5353", "198.18.0.1:443"} {
			r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: address, Data: []byte("x")})
			if r.End != "refused" {
				c.Errorf("%s: %s, want port unreachable", address, told(r))
			}
		}
		const no = "udp udp_not_allowed "
		c.decided(no+"raw:443", no+"raw:123", no+"ok.example.com:443", no+"gateway:5353", no+"refusal:443")
	})
	s.try(t, "E023", func(c *attempt) {
		address := at(c.address("ok.example.com"), 443)
		if r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: address, Data: make([]byte, 1200)}); r.End != "refused" {
			c.Errorf("QUIC: %s, want port unreachable", told(r))
		}
		c.decided("udp udp_not_allowed ok.example.com:443")
		r := c.do(wire.Request{Op: "talk", Address: address, TLS: tlsAs("ok.example.com"), Data: []byte(httpGet("ok.example.com"))})
		c.wantStatus(r, "200")
		c.passed("tls ok ok.example.com:443 by allowed_hosts[0]", "GET https ok.example.com/ 0")
	})
	s.try(t, "E034", func(c *attempt) {
		c.want403(c.talk("198.18.0.1:80", httpGet("no.example.com")), "no.example.com")
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: "198.18.0.1:443", TLS: tlsAs("no.example.com")}))
		c.decided("http name_not_allowed refusal:80 claims no.example.com", "tls name_not_allowed refusal:443 claims no.example.com")
		addresses := []string{}
		for port := 1; port <= 65535; port += pick(131, 1) {
			if port != 53 && port != 80 && port != 443 {
				addresses = append(addresses, at("198.18.0.1", port))
			}
		}
		c.unowned("tcp")
		r := c.do(wire.Request{Op: "many", Addresses: addresses, Parallel: 32, Data: []byte("x")})
		c.wantOnly(r, "reset", "refused")
	})
}

// wantOnly expects that every one of many attempts ended so.
func (c *attempt) wantOnly(r wire.Reply, outcomes ...string) {
	c.Helper()
	for outcome, n := range r.Counts {
		ok := false
		for _, want := range outcomes {
			ok = ok || strings.HasPrefix(outcome, want)
		}
		if !ok {
			c.Errorf("%d attempts ended in %q, like %s; want %q", n, outcome, r.First[outcome], outcomes)
		}
	}
	if r.Error != "" {
		c.Error(r.Error)
	}
}

// private is the reason that refuses an address that is not public.
func (s *stand) private() string {
	if s.mode == "U" {
		return "address_not_public"
	}
	return "no_mapping"
}

func rawEveryMode(t *testing.T, s *stand) {
	unreachable := func(c *attempt, addresses ...string) {
		for _, address := range addresses {
			for _, network := range []string{"tcp6", "udp6"} {
				if r := c.do(wire.Request{Op: "talk", Network: network, Address: address, Data: []byte("x")}); r.End != "unreachable" {
					c.Errorf("%s %s: %s, want unreachable", network, address, told(r))
				}
			}
		}
	}
	s.try(t, "E006", func(c *attempt) {
		unreachable(c, "["+s.address6(1).String()+"]:443", "[2606:4700:4700::1111]:53", "[2606:4700:4700::1111]:80")
	})
	s.try(t, "E008", func(c *attempt) {
		unreachable(c, "[64:ff9b::808:808]:443", "[2002:808:808::1]:443", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]:443")
	})
	s.try(t, "E010", func(c *attempt) { unreachable(c, "[fd00:ec2::254]:80") })
	s.try(t, "E009", func(c *attempt) { c.unreachableService("169.254.169.254") })
	s.try(t, "E011", func(c *attempt) {
		for _, address := range []string{"168.63.129.16", "100.100.100.200", "192.0.0.192"} {
			c.unreachableService(address)
		}
	})
	s.try(t, "E014", func(c *attempt) {
		for _, address := range []string{"100.64.0.1", hostPublic} {
			for _, port := range []int{22, 8400} {
				c.wantReset(c.talk(at(address, port), "x"))
				c.decided(fmt.Sprintf("tcp %s %s:%d", s.private(), address, port))
			}
			c.want403(c.talk(at(address, 80), httpGet("ok.example.com")), at(address, 80))
			c.decided(fmt.Sprintf("http %s %s:80 claims ok.example.com", s.private(), address))
			c.wantRawAlert(c.talk(at(address, 443), string(helloAs(c, "ok.example.com"))))
			c.decided(fmt.Sprintf("tls %s %s:443 claims ok.example.com", s.private(), address))
			if m := s.ask(c, at(address, 53), question(c, "localhost", dnsmessage.TypeA)); m == nil || len(m.Answers) != 1 {
				c.Errorf("UDP 53 of %s: %+v, want the stub", address, m)
			}
		}
	})
}

// unreachableService tries an address that nothing in a sandbox may reach.
func (c *attempt) unreachableService(address string) {
	c.Helper()
	c.want403(c.talk(at(address, 80), httpGet(address+":80")), at(address, 80))
	c.decided(fmt.Sprintf("http %s %s:80 claims invalid", c.s.private(), address))
	c.wantRawAlert(c.talk(at(address, 443), string(helloAs(c, "metadata.example.com"))))
	c.decided(fmt.Sprintf("tls %s %s:443 claims metadata.example.com", c.s.private(), address))
	for _, port := range []int{1, 22, 3260, 8080, 32526, 65535} {
		c.wantReset(c.talk(at(address, port), "x"))
		c.decided(fmt.Sprintf("tcp %s %s:%d", c.s.private(), address, port))
	}
}

// rawGateway tries the gateway itself.
func rawGateway(t *testing.T, s *stand) {
	s.try(t, "E012", func(c *attempt) {
		addresses := []string{}
		step := pick(64, 1)
		for port := 1; port <= 65535; port++ {
			if port != 53 && (port%step == 0 || port < 1024 || port == 15001) {
				addresses = append(addresses, at("169.254.100.1", port))
			}
		}
		c.unowned("tcp", "http")
		r := c.do(wire.Request{Op: "many", Addresses: addresses, Parallel: 32, Data: []byte(httpGet("ok.example.com"))})
		c.wantOnly(r, "reset", "refused", "HTTP/1.1 403")
		for _, d := range s.records(c, egress.Filter{}) {
			if d.DestAddress == "169.254.100.1" && d.Reason != egress.ReasonNoMapping {
				c.Errorf("decision %s", s.describe(d))
			}
		}
		c.note("no_mapping")
	})
	s.try(t, "E013", func(c *attempt) {
		if m := s.ask(c, "169.254.100.1:53", question(c, "localhost", dnsmessage.TypeA)); m == nil || len(m.Answers) != 1 {
			c.Errorf("UDP: %+v", m)
		}
		if r := c.talk("169.254.100.1:53", httpGet("ok.example.com")); len(r.Data) > 0 {
			c.Errorf("TCP: %s, want a close", told(r))
		}
	})
	s.try(t, "E033", func(c *attempt) {
		q := question(c, "localhost", dnsmessage.TypeA)
		for _, address := range []string{at(s.raw.String(), 53), "8.8.8.8:53", "169.254.169.254:53", "198.18.0.1:53", "10.0.0.1:53"} {
			r := c.do(wire.Request{Op: "talk", Address: address, Data: append([]byte{0, byte(len(q))}, q...), Max: 2 + len(q) + 16})
			if !strings.Contains(string(r.Data), "\x7f\x00\x00\x01") {
				c.Errorf("%s: %s, want the stub's answer", address, told(r))
			}
		}
	})
	s.try(t, "E015", func(c *attempt) {
		other := s.id + "x"
		netns := s.network(c, other, limited())
		neighbour := startProbe(c, inPlain, other, netns)
		reached := neighbour.start(c, wire.Request{Op: "connect", Network: "listen", Address: "169.254.100.2:7777", WaitMS: 1000})
		for _, address := range []string{"169.254.100.2:7777", "169.254.100.3:7777", "169.254.100.6:7777"} {
			r := c.do(wire.Request{Op: "talk", Address: address, Data: []byte("x"), WaitMS: 1000})
			if len(r.Data) > 0 || r.End == "eof" {
				c.Errorf("%s: %s", address, told(r))
			}
		}
		if r := <-reached; r.End != "timeout" {
			c.Errorf("the other sandbox was reached: %s", told(r))
		}
		c.unowned("tcp") // .3 and .6 are nobody: refused, or never sent
	})
}

// rawInside are the addresses that stay inside, or reach nobody.
func rawInside(t *testing.T, s *stand) {
	s.try(t, "E016", func(c *attempt) {
		for _, address := range []string{"224.0.0.1:5353", "239.255.255.250:1900", "255.255.255.255:67", "169.254.100.3:137"} {
			r := c.do(wire.Request{Op: "connect", Network: "broadcast", Address: address, Data: []byte("x"), WaitMS: 200})
			if len(r.Data) > 0 || r.End == "eof" {
				c.Errorf("UDP %s: %s", address, told(r))
			}
		}
		for _, address := range []string{"224.0.0.1:80", "255.255.255.255:80"} {
			r := c.do(wire.Request{Op: "talk", Address: address, Data: []byte("x"), WaitMS: 300})
			if len(r.Data) > 0 || r.End == "eof" {
				c.Errorf("TCP %s: %s", address, told(r))
			}
		}
		// The broadcast address of the link is a host like any other to the gateway.
		c.decided(map[string]string{
			"L": "udp udp_not_allowed 169.254.100.3:137", "B": "udp udp_not_allowed 169.254.100.3:137",
			"U": "udp address_not_public 169.254.100.3:137 by unrestricted",
		}[s.mode])
	})
	s.try(t, "E017", func(c *attempt) {
		for _, host := range []string{"127.0.0.1", "0.0.0.0", "127.1.2.3"} {
			for _, port := range trapPorts() {
				if r := c.talk(at(host, port), "x"); r.End != "refused" && r.End != "unreachable" {
					c.Errorf("%s:%d: %s, want refused", host, port, told(r))
				}
			}
		}
	})
	s.try(t, "E021", func(c *attempt) { odd(c) })
}

// odd tries the spellings of an address that some parsers take for loopback.
func odd(c *attempt) {
	s := c.s
	for _, text := range []string{"2130706433", "0x7f.1", "0177.0.0.1", "127.1"} {
		m := s.ask(c, "169.254.100.1:53", question(c, text, dnsmessage.TypeA))
		if m == nil || m.RCode != dnsmessage.RCodeNameError {
			c.Errorf("%s as a name: %+v, want no such name", text, m)
		}
		c.decided("dns name_not_allowed claims invalid")
		// As a URL's host the client may take it for an address of its own, or for a name.
		c.unowned("dns")
		if r := c.do(wire.Request{Op: "get", URL: "http://" + text + ":8400/"}); r.Error == "" {
			c.Errorf("%s in a URL: status %d", text, r.Status)
		}
		s.drop("tcp") // of a name below the host's own domain, which some resolvers try
		if s.mode == "U" {
			delete(c.quiet, "dns")
			s.drop("dns")
			continue // names are not compared there
		}
		address := c.address("ok.example.com")
		c.wantRawAlert(c.talk(at(address, 443), string(helloAs(c, text))))
		c.decided("tls sni_mismatch ok.example.com:443 claims invalid")
		c.want403(c.talk(at(address, 80), httpGet(text)), "an invalid host")
		c.decided("http host_mismatch ok.example.com:80 claims invalid")
		s.drop("dns")
		delete(c.quiet, "dns")
	}
}

// drop forgets the decisions about a protocol.
func (s *stand) drop(protocol string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.decisions[:0]
	for _, d := range s.decisions {
		if d.Protocol != protocol {
			kept = append(kept, d)
		}
	}
	s.decisions = kept
}
