package security

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/egress"
)

// guardNames are the names that section F uses; a build has to list each.
func guardNames() []string {
	return []string{"g.example.com", "exempt.example.com", "sibling.example.com", "inhosts.example.com", "once.example.com"}
}

func guardSpec(mode string) egress.Spec {
	switch mode {
	case "U":
		return egress.Spec{Mode: egress.ModeUnrestricted}
	case "B":
		spec := egress.Spec{Mode: egress.ModeBuild}
		for _, n := range guardNames() {
			spec.Endpoints = append(spec.Endpoints, egress.Endpoint{Host: hostName(n), Rule: "registry:pip"})
		}
		return spec
	}
	return limited("*.example.com")
}

// Section F: the dial guard.
func TestGuard(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"L", "U", "B"} {
		everywhereNamed(t, mode, mode, guardSpec(mode), func(c *egress.Config) {
			quick(c)
			c.Limits.Resolve, c.Limits.Connect = 3*time.Second, 6*time.Second
			c.DenyCIDRs = []netip.Prefix{netip.MustParsePrefix("185.77.0.0/16")}
			c.Exempt = []egress.Exemption{{Host: "exempt.example.com", CIDR: netip.MustParsePrefix("10.7.0.0/16"), Ports: []int{80}}}
		}, func(t *testing.T, s *stand) {
			guardRefuses(t, s)
			guardDials(t, s)
			guardFails(t, s)
		})
	}
}

func (s *stand) rule() string {
	return map[string]string{"L": "allowed_hosts[0]", "U": "unrestricted", "B": "registry:pip"}[s.mode]
}

// guarded expects that a name is refused by its addresses, or could not be
// reached, on plain HTTP.
func (c *attempt) guarded(name, reason string) {
	c.Helper()
	r := c.talk(at(c.address(name), 80), httpGet(name))
	refused := reason == "address_not_public"
	switch {
	case refused:
		c.want403(r, name)
	case c.s.mode == "U":
		c.wantReset(r)
	default:
		c.wantStatus(r, "502")
	}
	switch {
	case c.s.mode != "U":
		c.decided(fmt.Sprintf("http %s %s:80 by %s", reason, name, c.s.rule()))
	case refused:
		c.decided(fmt.Sprintf("http %s %s:80", reason, name))
	default:
		c.decided(fmt.Sprintf("tcp %s %s:80 by %s", reason, name, c.s.rule()))
	}
	c.asked(name)
}

// dialled expects that a name is reached, at this address.
func (c *attempt) dialled(name, address string) {
	c.Helper()
	c.wantStatus(c.talk(at(c.address(name), 80), httpGet(name)), "200")
	protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[c.s.mode]
	c.decided(fmt.Sprintf("%s ok %s:80 by %s", protocol, name, c.s.rule()))
	c.sent("tcp " + at(address, 80))
	c.upstream("GET http " + name + "/ 0")
	c.asked(name)
}

// notPublic is an address of every range that is not public.
func notPublic() []string {
	return []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.5", "10.255.255.255", "100.64.0.9", "100.100.100.200", "127.0.0.1", "127.255.255.254",
		"168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.88.99.1", "192.168.1.1",
		"198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
	}
}

func notPublic6() []string {
	return []string{
		"::", "::1", "::7f00:1", "64:ff9b:1::808:808", "100::1", "2001::1", "2001:db8::1", "fc00::1", "fd00:ec2::254",
		"fe80::1", "fec0::1", "ff02::1",
	}
}

// carriers are the IPv6 forms that carry an IPv4 address.
func carriers(text string) []string {
	v4 := netip.MustParseAddr(text).As4()
	six := func(at int, prefix ...byte) string {
		b := [16]byte{}
		copy(b[:], prefix)
		copy(b[at:], v4[:])
		return netip.AddrFrom16(b).String()
	}
	return []string{"::ffff:" + text, six(12, 0, 0x64, 0xff, 0x9b), six(2, 0x20, 0x02)}
}

// routed are addresses of no range that is not public, and in no subnet of an
// interface of the host: what makes them the machine's, or its neighbours', is a
// route.
func routed(s *stand) map[string]netlink.Route {
	subnet := func(last int) string { return fmt.Sprintf("185.%d.%d", 100+s.index%100, last) }
	onLink := func(dst string) netlink.Route {
		return netlink.Route{Dst: mustNet(dst), LinkIndex: wanLink(), Scope: netlink.SCOPE_UNIVERSE, Table: unix.RT_TABLE_MAIN}
	}
	local := func(dst string) netlink.Route {
		return netlink.Route{Dst: mustNet(dst), LinkIndex: 1, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}
	}
	six := fmt.Sprintf("2a0d:0:%x", s.index)
	return map[string]netlink.Route{
		six + ":191::7":   onLink(six + ":191::/64"),    // a neighbour, where the host's own address is a /128
		subnet(64) + ".7": onLink(subnet(64) + ".0/24"), // behind a tunnel
		subnet(65) + ".7": local(subnet(65) + ".0/24"),  // AnyIP
		six + ":192::7":   local(six + ":192::/64"),     // the same
		subnet(66) + ".1": local(subnet(66) + ".1/32"),  // of a load balancer
		six + ":193::1":   local(six + ":193::1/128"),   // the same
	}
}

func mustNet(text string) *net.IPNet {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return n
}

// wanLink is the host's link to the internet.
func wanLink() int {
	l, err := netlink.LinkByName("wan0")
	if err != nil {
		panic(err)
	}
	return l.Attrs().Index
}

// below is an IPv4 address below a /96 of the stand's own, as a NAT64 has it.
func (s *stand) below(inner string) netip.Addr {
	b, v4 := s.address6(0).As16(), netip.MustParseAddr(inner).As4()
	b[7] = 64
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

func guardRefuses(t *testing.T, s *stand) {
	const name, no = "g.example.com", "address_not_public"
	s.answer(translatorName, func() ([]netip.Addr, error) {
		return []netip.Addr{s.below("192.0.0.170"), s.below("192.0.0.171")}, nil
	})
	answer := func(c *attempt, addrs ...string) {
		c.Helper()
		s.resolves(name, addrs...)
		c.guarded(name, no)
	}
	s.try(t, "E175", func(c *attempt) {
		answer(c, "10.0.0.5")
		c.wantRawAlert(c.talk(at(c.address(name), 443), string(helloAs(c, name))))
		c.decided(map[string]string{"L": "tls " + no + " g.example.com:443 by allowed_hosts[0]", "U": "tls " + no + " g.example.com:443", "B": "tls " + no + " g.example.com:443 by registry:pip"}[s.mode])
		c.asked(name)
	})
	s.try(t, "E176", func(c *attempt) {
		for _, a := range notPublic() {
			answer(c, a)
			for _, carrier := range carriers(a) {
				answer(c, carrier)
			}
		}
		for _, a := range notPublic6() {
			answer(c, a)
		}
	})
	s.try(t, "E177", func(c *attempt) {
		answer(c, s.up.String(), "10.0.0.5")
		answer(c, "fd00:ec2::254", s.up.String())
	})
	s.try(t, "E178", func(c *attempt) {
		asked := 0
		s.answer(name, func() ([]netip.Addr, error) {
			if asked++; asked == 1 {
				return []netip.Addr{s.up}, nil
			}
			return []netip.Addr{netip.MustParseAddr("10.0.0.5")}, nil
		})
		c.wantStatus(c.talk(at(c.address(name), 80), httpGet(name)), "200")
		protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[s.mode]
		c.passed(fmt.Sprintf("%s ok %s:80 by %s", protocol, name, s.rule()), "GET http g.example.com/ 0")
		c.guarded(name, no)
		c.guarded(name, no)
	})
	s.try(t, "E179", func(c *attempt) {
		// What an alias leads to arrives as its address.
		answer(c, "169.254.169.254")
		answer(c, "127.0.0.1", "::1")
		s.resolves(name, s.up.String())
		c.wantStatus(c.talk(at(c.address(name), 80), httpGet(name)), "200")
		protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[s.mode]
		c.passed(fmt.Sprintf("%s ok %s:80 by %s", protocol, name, s.rule()), "GET http g.example.com/ 0")
		if s.mode != "U" {
			c.fails("second.example.net")
			c.want403(c.talk(at(c.address(name), 80), httpGet("second.example.net")), "second.example.net")
			c.decided("http host_mismatch g.example.com:80 claims second.example.net")
		}
	})
	s.try(t, "E180", func(c *attempt) { answer(c, hostPublic) })
	s.try(t, "E181", func(c *attempt) {
		answer(c, "100.64.0.2") // the link that is there
		subnet := fmt.Sprintf("185.%d.0", 100+s.index%100)
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("n%d", s.index)}, PeerName: fmt.Sprintf("m%d", s.index)}
		if err := netlink.LinkAdd(link); err != nil {
			c.Fatal(err)
		}
		defer func() { _ = netlink.LinkDel(link) }()
		a, err := netlink.ParseAddr(subnet + ".1/24")
		if err != nil {
			c.Fatal(err)
		}
		if err := errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link)); err != nil {
			c.Fatal(err)
		}
		answer(c, subnet+".1")
		answer(c, subnet+".7")
	})
	s.try(t, "E191", func(c *attempt) {
		for address, r := range routed(s) {
			if err := netlink.RouteAdd(&r); err != nil {
				c.Fatal(err)
			}
			answer(c, address)
			answer(c, s.up.String(), address)
			if err := netlink.RouteDel(&r); err != nil {
				c.Error(err)
			}
		}
	})
	s.try(t, "E192", func(c *attempt) {
		for _, a := range notPublic() {
			answer(c, s.below(a).String())
		}
		s.resolves(name, s.below("8.8.8.8").String())
		c.dialled(name, s.below("8.8.8.8").String())
	})
	s.try(t, "E183", func(c *attempt) { answer(c, "185.77.0.5") })
	s.try(t, "E185", func(c *attempt) {
		s.resolves("sibling.example.com", "10.7.0.1")
		c.guarded("sibling.example.com", no)
	})
}

func guardDials(t *testing.T, s *stand) {
	const name = "g.example.com"
	s.try(t, "E182", func(c *attempt) {
		for _, prefix := range []string{"192.0.2", "198.51.100", "203.0.113"} {
			address := fmt.Sprintf("%s.%d", prefix, s.index+1)
			release := world.claim(s, address+"/32")
			s.resolves(name, address)
			c.dialled(name, address)
			release()
		}
	})
	s.try(t, "E184", func(c *attempt) {
		address := fmt.Sprintf("10.7.1.%d", s.index+1)
		release := world.claim(s, address+"/32")
		s.resolves("exempt.example.com", address)
		c.dialled("exempt.example.com", address)
		release()
		c.wantRawAlert(c.talk(at(c.address("exempt.example.com"), 443), string(helloAs(c, "exempt.example.com"))))
		by := " by " + s.rule()
		if s.mode == "U" {
			by = ""
		}
		c.decided("tls address_not_public exempt.example.com:443" + by)
		c.asked("exempt.example.com")
		s.resolves("exempt.example.com", "10.8.0.1")
		c.guarded("exempt.example.com", "address_not_public")
	})
	s.try(t, "E188", func(c *attempt) {
		address := s.address6(1).String()
		s.resolves(name, address)
		c.dialled(name, address)
	})
	s.try(t, "E189", func(c *attempt) {
		dead := s.address(66, 1).String()
		s.unreachable(c)
		s.resolves(name, dead, s.up.String())
		c.wantStatus(c.talk(at(c.address(name), 80), httpGet(name)), "200")
		protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[s.mode]
		c.decided(fmt.Sprintf("%s ok %s:80 by %s", protocol, name, s.rule()))
		c.sent("tcp "+at(dead, 80), "tcp up:80")
		c.upstream("GET http g.example.com/ 0")
		c.asked(name)
	})
}

// unreachable makes a part of the stand's internet answer "host unreachable".
func (s *stand) unreachable(t testing.TB) {
	t.Helper()
	dst := &net.IPNet{IP: s.address(66, 0).AsSlice(), Mask: net.CIDRMask(24, 32)}
	err := onThread(world.ns, func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func guardFails(t *testing.T, s *stand) {
	const name = "g.example.com"
	s.try(t, "E187", func(c *attempt) {
		var wait sync.WaitGroup
		defer wait.Wait()
		many := make([]netip.Addr, 1000)
		for i := range many {
			many[i] = s.address(byte(i/250), byte(i%250+1))
		}
		for _, answer := range []func() ([]netip.Addr, error){
			func() ([]netip.Addr, error) { return nil, &net.DNSError{Err: "server misbehaving"} },
			func() ([]netip.Addr, error) { return nil, nil },
			func() ([]netip.Addr, error) { return many, nil },
			func() ([]netip.Addr, error) { return nil, &net.DNSError{Err: "lame referral", IsTemporary: true} },
		} {
			s.answer(name, answer)
			c.guarded(name, "resolve_failed")
		}
		// The name was never answered: there is no old answer to serve.
		s.answer("once.example.com", func() ([]netip.Addr, error) {
			time.Sleep(4 * time.Second)
			return nil, context.DeadlineExceeded
		})
		c.guarded("once.example.com", "resolve_failed")
	})
	s.try(t, "E190", func(c *attempt) {
		s.unreachable(c)
		dead := s.address(66, 2)
		s.resolves(name, dead.String())
		c.guarded(name, "connect_failed")
		c.sent("tcp " + at(dead.String(), 80))
		if s.mode == "U" { // nobody listens there
			s.resolves(name, s.up.String())
			c.wantReset(c.talk(at(c.address(name), 4444), "x"))
			c.decided("tcp connect_failed g.example.com:4444 by unrestricted")
			c.sent("tcp up:4444")
			c.asked(name)
		}
	})
}

// E186, E058: the host's own resolver, with a list of suffixes and a hosts file.
func TestHostResolver(t *testing.T) {
	t.Parallel()
	needHost(t)
	server := &nameServer{answers: map[string]netip.Addr{}}
	if err := server.serve(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"/etc/resolv.conf": "nameserver " + resolverAddress().String() + "\nsearch corp.example.net lan.example.net\n",
		"/etc/hosts":       "127.0.0.1 localhost\n10.0.0.9 inhosts.example.com\n",
	} {
		local := filepath.Join(dir, filepath.Base(name))
		target, err := filepath.EvalSymlinks(name)
		if err := errors.Join(err, os.WriteFile(local, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(local, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	for _, mode := range []string{"L", "U", "B"} {
		everywhereNamed(t, mode, mode, guardSpec(mode), func(c *egress.Config) { c.Resolver = nil }, func(t *testing.T, s *stand) {
			s.try(t, "E186", func(c *attempt) {
				r := c.talk(at(c.address("inhosts.example.com"), 80), httpGet("inhosts.example.com"))
				c.want403(r, "inhosts.example.com")
				by := " by " + s.rule()
				if s.mode == "U" {
					by = ""
				}
				c.decided("http address_not_public inhosts.example.com:80" + by)
				// Nobody knows it but below a suffix, where the server would answer.
				r = c.talk(at(c.address("once.example.com"), 80), httpGet("once.example.com"))
				if s.mode == "U" {
					c.wantReset(r)
				} else {
					c.wantStatus(r, "502")
				}
				protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[s.mode]
				c.decided(fmt.Sprintf("%s resolve_failed once.example.com:80 by %s", protocol, s.rule()))
			})
		})
	}
	t.Cleanup(func() {
		for _, name := range server.questions() {
			if strings.HasSuffix(name, ".corp.example.net.") || strings.HasSuffix(name, ".lan.example.net.") || strings.HasPrefix(name, "inhosts.") {
				t.Errorf("E186: the host's resolver was asked for %s", name)
			}
		}
	})
}

// nameServer is a DNS server on the internet that knows only names below a suffix.
type nameServer struct {
	mu      sync.Mutex
	answers map[string]netip.Addr
	asked   []string
}

func (n *nameServer) questions() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

func (n *nameServer) serve() error {
	var c net.PacketConn
	err := onThread(world.ns, func() (err error) {
		c, err = net.ListenPacket("udp4", netip.AddrPortFrom(resolverAddress(), 53).String())
		return err
	})
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:size]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			n.mu.Lock()
			n.asked = append(n.asked, q.Name.String())
			n.mu.Unlock()
			m.Response, m.Additionals, m.RCode = true, nil, dnsmessage.RCodeNameError
			if strings.HasSuffix(q.Name.String(), ".corp.example.net.") && q.Type == dnsmessage.TypeA {
				m.RCode = dnsmessage.RCodeSuccess
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: [4]byte{20, 255, 255, 1}},
				}}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(out, from)
			}
		}
	}()
	return nil
}
