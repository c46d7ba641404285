package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// machine is a host of its own, in a network namespace, with one link to an
// internet that answers at every address. Both answer on servicePort, the host
// with "host", the internet with "world". What a connection meets is decided by
// the host's routes alone.
type machine struct {
	t           testing.TB
	host, world netns.NsHandle
}

const servicePort = 8080

func newMachine(t testing.TB) *machine {
	t.Helper()
	needRoot(t)
	m := &machine{t: t}
	m.must(OnThread(func() (err error) {
		if m.world, err = netns.New(); err != nil {
			return err
		}
		if m.host, err = netns.New(); err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "down0", PeerNamespace: netlink.NsFd(m.world)})
	}))
	t.Cleanup(func() { _ = errors.Join(m.host.Close(), m.world.Close()) })
	m.must(inNamespace(m.world, func() error {
		return errors.Join(raiseLink("lo"), address("down0", "100.64.7.2/30"), address("down0", "fd64:7::2/64"), raiseLink("down0"),
			route(netlink.Route{Dst: network("0.0.0.0/0"), Type: unix.RTN_LOCAL, LinkIndex: 1, Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_HOST}),
			route(netlink.Route{Dst: network("::/0"), Type: unix.RTN_LOCAL, LinkIndex: 1, Table: unix.RT_TABLE_MAIN}))
	}))
	m.must(inNamespace(m.host, func() error {
		return errors.Join(raiseLink("lo"), address("up0", "100.64.7.1/30"), address("up0", "fd64:7::1/64"), raiseLink("up0"),
			route(netlink.Route{Dst: network("0.0.0.0/0"), Gw: net.ParseIP("100.64.7.2")}), route(netlink.Route{Dst: network("::/0"), Gw: net.ParseIP("fd64:7::2")}))
	}))
	m.serve(m.host, "host")
	m.serve(m.world, "world")
	return m
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// serve says word to everybody who connects, and answers datagrams with it.
func (m *machine) serve(ns netns.NsHandle, word string) {
	m.t.Helper()
	m.must(inNamespace(ns, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", servicePort))
		if err != nil {
			return err
		}
		m.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(word))
				_ = c.Close()
			}
		}()
		return nil
	}))
}

func raiseLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func address(link, text string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(l, a)
}

func network(text string) *net.IPNet {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return n
}

// route adds a route, by way of the machine's link unless it says otherwise.
func route(r netlink.Route) error {
	if r.LinkIndex == 0 && len(r.MultiPath) == 0 {
		r.LinkIndex = uplink()
	}
	if err := netlink.RouteAdd(&r); err != nil {
		return fmt.Errorf("route to %s: %w", r.Dst, err)
	}
	return nil
}

func uplink() int {
	for _, name := range []string{"up0", "down0"} {
		if l, err := netlink.LinkByName(name); err == nil {
			return l.Attrs().Index
		}
	}
	return 0
}

func rule(change func(*netlink.Rule)) error {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority = netlink.FAMILY_V4, 100, 1000
	change(r)
	return netlink.RuleAdd(r)
}

func localRoute(text string) netlink.Route {
	return netlink.Route{Dst: network(text), Type: unix.RTN_LOCAL, LinkIndex: 1, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
}

// hear is what answers at an address when the host connects to it without a guard.
func hear(addr netip.Addr) string {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, servicePort).String(), time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b := make([]byte, 16)
	n, _ := c.Read(b)
	return string(b[:n])
}

// met waits until word answers at an address: the kernel brings up an IPv6
// address when it has the time.
func met(addr netip.Addr, word string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		got := hear(addr)
		if got == word {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("without a guard %q answers, want %q", got, word)
		}
	}
}

// What the host would do with a packet decides, not what its interfaces are
// called: each of these addresses is in no subnet of an interface.
func TestE191RoutesWithoutGateway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, addr string
		meets      string // who answers where nobody guards
		refused    bool
		set        func() error
	}{
		{"by the default route", "20.1.0.1", "world", false, func() error { return nil }},
		{"by the default route, IPv6", "2a0d:1::1", "world", false, func() error { return nil }},
		{"behind a gateway", "20.1.0.1", "world", false, func() error {
			return route(netlink.Route{Dst: network("20.1.0.0/24"), Gw: net.ParseIP("100.64.7.2")})
		}},
		{"behind a gateway, IPv6", "2a0d:1::1", "world", false, func() error {
			return route(netlink.Route{Dst: network("2a0d:1::/64"), Gw: net.ParseIP("fd64:7::2")})
		}},
		{"a tunnel that takes all, in halves", "20.1.0.1", "world", false, func() error {
			return errors.Join(route(netlink.Route{Dst: network("0.0.0.0/1"), Scope: netlink.SCOPE_LINK}), route(netlink.Route{Dst: network("128.0.0.0/1"), Scope: netlink.SCOPE_LINK}))
		}},
		{"a documentation range by the default route", "203.0.113.80", "world", false, func() error { return nil }},

		{"a neighbour on the link, the /64 by a route", "2a0d:2::2", "world", true, func() error {
			return errors.Join(address("up0", "2a0d:2::1/128"), route(netlink.Route{Dst: network("2a0d:2::/64")}))
		}},
		{"the host's own address of such a link", "2a0d:2::1", "host", true, func() error {
			return errors.Join(address("up0", "2a0d:2::1/128"), route(netlink.Route{Dst: network("2a0d:2::/64")}))
		}},
		{"a subnet behind a tunnel", "20.2.0.7", "world", true, func() error {
			return route(netlink.Route{Dst: network("20.2.0.0/24"), Scope: netlink.SCOPE_UNIVERSE})
		}},
		{"a peer of a VPN, in a table of its own", "20.2.0.7", "world", true, func() error {
			return errors.Join(route(netlink.Route{Dst: network("20.2.0.0/24"), Scope: netlink.SCOPE_LINK, Table: 100}), rule(func(*netlink.Rule) {}))
		}},
		{"a table by the source address", "20.2.0.7", "world", true, func() error {
			return errors.Join(route(netlink.Route{Dst: network("20.2.0.0/24"), Scope: netlink.SCOPE_LINK, Table: 100}), rule(func(r *netlink.Rule) { r.Src = network("100.64.7.1/32") }))
		}},
		{"a table by protocol and port", "20.2.0.7", "world", true, func() error {
			return errors.Join(route(netlink.Route{Dst: network("20.2.0.0/24"), Scope: netlink.SCOPE_LINK, Table: 100}), rule(func(r *netlink.Rule) {
				r.IPProto, r.Dport = unix.IPPROTO_TCP, netlink.NewRulePortRange(servicePort, servicePort)
			}))
		}},
		{"one of two ways without a gateway", "20.2.0.7", "world", true, func() error {
			return route(netlink.Route{Dst: network("20.2.0.0/24"), MultiPath: []*netlink.NexthopInfo{
				{LinkIndex: uplink(), Gw: net.ParseIP("100.64.7.2")}, {LinkIndex: uplink()}}})
		}},
		{"local by a route only", "20.3.0.9", "host", true, func() error { return route(localRoute("20.3.0.0/24")) }},
		{"local by a route only, IPv6", "2a0d:3::9", "host", true, func() error { return route(localRoute("2a0d:3::/64")) }},
		{"the address of a load balancer", "20.4.0.1", "host", true, func() error { return route(localRoute("20.4.0.1/32")) }},
		{"the address of a load balancer, in the main table", "20.4.0.1", "host", true, func() error {
			r := localRoute("20.4.0.1/32")
			r.Table = unix.RT_TABLE_MAIN
			return route(r)
		}},
		{"the address of a load balancer, IPv6", "2a0d:4::1", "host", true, func() error { return route(localRoute("2a0d:4::1/128")) }},
		{"local in a documentation range", "203.0.113.80", "host", true, func() error { return route(localRoute("203.0.113.0/24")) }},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			addr := netip.MustParseAddr(tt.addr)
			m.must(inNamespace(m.world, func() error {
				if !addr.Is6() || tt.meets == "host" {
					return nil
				}
				// Its neighbours are to find it, and it them.
				return errors.Join(address("down0", tt.addr+"/128"), route(netlink.Route{Dst: network("2a0d:2::1/128")}))
			}))
			m.must(inNamespace(m.host, func() error {
				if err := tt.set(); err != nil {
					return err
				}
				if err := met(addr, tt.meets); err != nil {
					return err
				}
				r := &fakeResolver{hosts: map[string][]string{}}
				r.set("exempt.example.com", tt.addr)
				g := testGuard(t, r, func(c *Config) {
					c.Exempt = []Exemption{{Host: "exempt.example.com", CIDR: netip.PrefixFrom(addr, addr.BitLen()), Ports: []int{servicePort}}}
				})
				want := ReasonOK
				if tt.refused {
					want = ReasonAddressNotPublic
				}
				r.set("a.example.com", tt.addr)
				host, exempt := mustHost(t, "a.example.com"), mustHost(t, "exempt.example.com")
				tcp, err := g.dial(t.Context(), "tcp", nil, host, servicePort)
				wantReason(t, "by name", err, want)
				if err == nil {
					_ = tcp.Close()
				}
				tcp, err = g.dialAny(t.Context(), "tcp", Host{}, []netip.Addr{addr}, servicePort)
				wantReason(t, "by address", err, want)
				if err == nil {
					_ = tcp.Close()
				}
				tcp, err = g.dial(t.Context(), "tcp", nil, exempt, servicePort)
				wantReason(t, "exempted", err, ReasonOK)
				if err == nil {
					_ = tcp.Close()
				}
				udp, err := g.dialAny(t.Context(), "udp", Host{}, []netip.Addr{addr}, servicePort)
				if strings.Contains(tt.name, "protocol") {
					want = ReasonOK // the rule is about TCP
				}
				wantReason(t, "over UDP", err, want)
				if err == nil {
					_ = udp.Close()
				}
				return nil
			}))
		})
	}
}

func wantReason(t *testing.T, what string, err error, want Reason) {
	t.Helper()
	got := ReasonOK
	if err != nil {
		got = dialReason(err)
	}
	if got != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// An address that the host sends nothing to fails like one that does not answer,
// and the next one of the same name is tried.
func TestE191NoWayOut(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.must(inNamespace(m.host, func() error {
		for text, kind := range map[string]int{"20.5.1.0/24": unix.RTN_UNREACHABLE, "20.5.2.0/24": unix.RTN_PROHIBIT, "20.5.3.0/24": unix.RTN_BLACKHOLE, "2a0d:5::/64": unix.RTN_UNREACHABLE} {
			r := netlink.Route{Dst: network(text), Type: kind}
			if err := netlink.RouteAdd(&r); err != nil {
				return err
			}
		}
		r := &fakeResolver{hosts: map[string][]string{}}
		g := testGuard(t, r, nil)
		r.set("a.example.com", "20.5.1.1", "20.5.2.1", "20.5.3.1", "2a0d:5::1")
		_, err := g.dial(t.Context(), "tcp", nil, mustHost(t, "a.example.com"), servicePort)
		wantReason(t, "no way", err, ReasonConnectFailed)
		r.set("a.example.com", "20.5.1.1", "20.5.2.1", "20.5.3.1", "20.1.0.1", "2a0d:5::1")
		c, err := g.dial(t.Context(), "tcp", nil, mustHost(t, "a.example.com"), servicePort)
		wantReason(t, "one way", err, ReasonOK)
		if err == nil {
			_ = c.Close()
		}
		return nil
	}))
}

// What is no answer of the kernel's is an error, never a way out.
func FuzzRoute(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 12))
	f.Add([]byte{2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 8, 0, 5, 0, 100, 64, 7, 2})
	f.Add([]byte{2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 12, 0, 9, 0, 8, 0, 0, 0, 1, 0, 0, 0})
	f.Add([]byte{2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 20, 0, 9, 0, 16, 0, 0, 0, 1, 0, 0, 0, 8, 0, 5, 0, 100, 64, 7, 2})
	f.Fuzz(func(t *testing.T, reply []byte) {
		a, err := parseRoute(reply)
		if err != nil && a != (routeAnswer{}) {
			t.Errorf("%+v beside %v", a, err)
		}
		if a.gateways && a.opaque {
			t.Errorf("%+v", a)
		}
	})
}
