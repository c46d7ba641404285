package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func testGuard(t testing.TB, r *fakeResolver, change func(*Config)) *guard {
	t.Helper()
	host, err := newHostNets()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.close)
	c := Config{Resolver: r, Limits: Limits{}.withDefaults()}
	if change != nil {
		change(&c)
	}
	g, err := newGuard(c, host)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// guardTable has every row of the lists, and what must pass.
func guardTable() map[string]bool {
	return map[string]bool{
		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.5": false, "10.255.255.255": false, "11.0.0.0": true, "9.255.255.255": true,
		"100.64.0.0": false, "100.100.100.200": false, "100.127.255.255": false, "100.128.0.0": true, "100.63.255.255": true,
		"127.0.0.1": false, "127.255.255.254": false, "169.254.169.254": false, "169.254.100.2": false, "169.255.0.1": true,
		"168.63.129.16": false, "168.63.129.17": true, "172.16.0.1": false, "172.31.255.255": false, "172.32.0.0": true,
		"192.0.0.192": false, "192.0.0.8": false, "192.0.1.1": true, "192.88.99.1": false, "192.168.1.1": false, "192.169.0.0": true,
		"198.18.0.1": false, "198.19.255.255": false, "198.17.255.255": true, "198.20.0.0": true,
		"224.0.0.1": false, "239.255.255.250": false, "240.0.0.1": false, "255.255.255.255": false, "223.255.255.255": true,
		"1.1.1.1": true, "8.8.8.8": true,
		// E182: the documentation ranges (192.0.2.0/24 may be this machine's own).
		"198.51.100.7": true, "203.0.113.80": true,

		"::": false, "::1": false, "::7f00:1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:8.8.8.8": true,
		"::ffff:169.254.169.254": false, "64:ff9b::8.8.8.8": true, "64:ff9b::10.0.0.1": false, "64:ff9b::a9fe:a9fe": false,
		"64:ff9b:1::8.8.8.8": false, "100::1": false, "2001::1": false, "2001:0:4136:e378:8000:63bf:3fff:fdd2": false,
		"::ffff:0:8.8.8.8": false, "::ffff:0:10.0.0.1": false, "::fffe:0:8.8.8.8": true, "2001:2::1": false, "2001:2:1::1": true,
		"2001:10::1": false, "2001:1f:ffff::1": false, "2001:20::1": false, "2001:2f:ffff::1": false, "2001:30::1": true,
		"3fff::1": false, "3fff:fff:ffff::1": false, "3fff:1000::1": true, "5f00::1": false, "5f01::1": true,
		"2001:db8::1": false, "2002:808:808::1": true, "2002:a00:1::1": false, "2002:7f00:1::1": false, "2002:a9fe:a9fe::1": false,
		"fc00::1": false, "fd00:ec2::254": false, "fdff::1": false, "fe80::1": false, "fe80::1%eth0": false, "fec0::1": false,
		"ff02::1": false, "2606:4700:4700::1111": true, "2a00:1450::1": true, "2001:4860:4860::8888%1": false,
	}
}

// E176: one answer for every row, plain and inside the forms that carry it.
func TestE176AddressClasses(t *testing.T) {
	t.Parallel()
	r := ranges(notPublic())
	for text, want := range guardTable() {
		a := netip.MustParseAddr(text)
		if got := r.public(a); got != want {
			t.Errorf("%s: public %v, want %v", a, got, want)
		}
		if !a.Is4() {
			continue
		}
		v4 := a.As4()
		six := func(at int, prefix ...byte) netip.Addr {
			b := [16]byte{}
			copy(b[:], prefix)
			copy(b[at:], v4[:])
			return netip.AddrFrom16(b)
		}
		for form, e := range map[string]netip.Addr{
			"mapped": netip.AddrFrom16(a.As16()),
			"NAT64":  six(12, 0, 0x64, 0xff, 0x9b),
			"6to4":   six(2, 0x20, 0x02),
		} {
			if got := r.public(e); got != want {
				t.Errorf("%s as %s (%s): public %v, want %v", a, form, e, got, want)
			}
		}
	}
	if r.public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestGuardLookup(t *testing.T) {
	t.Parallel()
	many := make([]string, 1000)
	for i := range many {
		many[i] = "203.0.113.1"
	}
	r := &fakeResolver{hosts: map[string][]string{}}
	r.set("private.example", "10.0.0.5")
	r.set("mixed.example", "203.0.113.9", "10.0.0.5")
	r.set("mixed6.example", "203.0.113.9", "fd00:ec2::254")
	r.set("meta.example", "169.254.169.254")
	r.set("empty.example")
	r.set("many.example", many...)
	r.set("good.example", "203.0.113.9", "2606:4700:4700::1111", "203.0.113.9")
	r.set("denied.example", "198.51.100.77")
	r.set("exempt.example", "10.1.2.3")
	r.set("sibling.example", "10.1.2.3")
	g := testGuard(t, r, func(c *Config) {
		c.DenyCIDRs = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		c.Exempt = []Exemption{{Host: "Exempt.example.", CIDR: netip.MustParsePrefix("10.1.2.0/24"), Ports: []int{443}}}
	})
	tests := []struct {
		number, host string
		port         uint16
		want         Reason
	}{
		{"E175", "private.example", 443, ReasonAddressNotPublic},
		{"E177", "mixed.example", 443, ReasonAddressNotPublic},
		{"E177", "mixed6.example", 443, ReasonAddressNotPublic},
		{"E179", "meta.example", 443, ReasonAddressNotPublic},
		{"E182", "good.example", 443, ReasonOK},
		{"E183", "denied.example", 443, ReasonAddressNotPublic},
		{"E184", "exempt.example", 443, ReasonOK},
		{"E184", "exempt.example", 80, ReasonAddressNotPublic},
		{"E185", "sibling.example", 443, ReasonAddressNotPublic},
		{"E187", "empty.example", 443, ReasonResolveFailed},
		{"E187", "many.example", 443, ReasonResolveFailed},
		{"E187", "unknown.example", 443, ReasonResolveFailed},
	}
	for _, tt := range tests {
		addrs, err := g.lookup(context.Background(), nil, mustHost(t, tt.host), tt.port)
		got := ReasonOK
		if err != nil {
			got = dialReason(err)
		}
		if got != tt.want {
			t.Errorf("%s: %s:%d: %v %v, want %s", tt.number, tt.host, tt.port, addrs, err, tt.want)
		}
	}
	// E058, E186: every question ends in a dot, so that no suffix is added.
	for _, q := range r.questions() {
		if q[len(q)-1] != '.' {
			t.Errorf("asked for %q", q)
		}
	}
}

// silent never answers.
type silent struct{}

func (silent) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// lossy loses the first questions.
type lossy struct{ left atomic.Int32 }

func (l *lossy) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	if l.left.Add(-1) >= 0 {
		<-ctx.Done()
		return nil, &net.DNSError{Err: "i/o timeout", IsTimeout: true}
	}
	return []netip.Addr{netip.MustParseAddr("203.0.113.7")}, nil
}

// A lost question is asked again within the time that resolving may take.
func TestLossyResolver(t *testing.T) {
	t.Parallel()
	r := &lossy{}
	r.left.Store(resolveTries - 1)
	g := testGuard(t, nil, func(c *Config) { c.Resolver, c.Limits.Resolve = r, 3*time.Second })
	host, err := Canonical("lossy.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := g.lookup(t.Context(), nil, host, 443); err != nil || len(addrs) != 1 {
		t.Errorf("got %v, %v", addrs, err)
	}
}

// A resolver that falls silent does not take away what it answered before; the
// old answer is checked like a fresh one.
func TestResolverFallsSilent(t *testing.T) {
	t.Parallel()
	r := &lossy{}
	g, heard := testGuard(t, nil, func(c *Config) { c.Resolver, c.Limits.Resolve = r, 30*time.Millisecond }), &answers{}
	host := mustHost(t, "known.example.com")
	if _, err := g.lookup(t.Context(), heard, host, 443); err != nil {
		t.Fatal(err)
	}
	r.left.Store(100)
	if addrs, err := g.lookup(t.Context(), heard, host, 443); err != nil || len(addrs) != 1 {
		t.Errorf("a known name: got %v, %v", addrs, err)
	}
	if _, err := g.lookup(t.Context(), heard, mustHost(t, "new.example.com"), 443); dialReason(err) != ReasonResolveFailed {
		t.Errorf("a new name: got %v", err)
	}
	next := *g.rules.Load()
	next.refused = append(next.refused[:len(next.refused):len(next.refused)], netip.MustParsePrefix("203.0.113.0/24"))
	g.rules.Store(&next)
	if _, err := g.lookup(t.Context(), heard, host, 443); dialReason(err) != ReasonAddressNotPublic {
		t.Errorf("an old answer that is not public any more: got %v", err)
	}
}

func TestE187SilentResolver(t *testing.T) {
	t.Parallel()
	g := testGuard(t, nil, func(c *Config) { c.Resolver, c.Limits.Resolve = silent{}, 20*time.Millisecond })
	_, err := g.dial(context.Background(), "tcp", nil, mustHost(t, "a.example"), 443)
	if dialReason(err) != ReasonResolveFailed {
		t.Errorf("got %v", err)
	}
}

// E178: what is dialled is the one answer that was checked, and the check at
// connect refuses what slipped in between.
func TestE178NoSecondLookup(t *testing.T) {
	t.Parallel()
	r := &fakeResolver{hosts: map[string][]string{}}
	r.set("rebind.example", "203.0.113.9")
	g := testGuard(t, r, nil)
	host := mustHost(t, "rebind.example")
	addrs, err := g.lookup(context.Background(), nil, host, 1)
	if err != nil {
		t.Fatal(err)
	}
	r.set("rebind.example", "127.0.0.1")
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, _ = g.dialAny(ctx, "tcp", host, addrs, 1) // goes nowhere; what counts is what was asked
	if n := len(r.questions()); n != 1 {
		t.Errorf("%d lookups for one connection", n)
	}
	_, err = g.dialAny(context.Background(), "tcp", host, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, 1)
	if dialReason(err) != ReasonAddressNotPublic {
		t.Errorf("the hook let through: %v", err)
	}
}

// E180, E181: the machine's own addresses and its subnets.
func TestE180OwnAddresses(t *testing.T) {
	t.Parallel()
	g := testGuard(t, nil, nil)
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP.To4())
		for _, x := range []netip.Addr{ip, ip.Next()} {
			if err := g.check(mustHost(t, "a.example"), x, 443); dialReason(err) != ReasonAddressNotPublic {
				t.Errorf("%s: %v", x, err)
			}
		}
	}
}

// E181: an interface added while running counts at once.
func TestE181AddressAddedWhileRunning(t *testing.T) {
	needRoot(t)
	ns, err := makePair(Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	// The set is read in the gateway namespace here, so that the test changes
	// nothing of the machine's own network.
	err = inNamespace(ns.gateway, func() error {
		h, err := newHostNets()
		if err != nil {
			return err
		}
		defer h.close()
		a := netip.MustParseAddr("203.0.113.33")
		if nets, err := h.current(); err != nil || !nets.public(a) {
			return errors.Join(errors.New("not public before"), err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		added, err := netlink.ParseAddr("203.0.113.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, added); err != nil {
			return err
		}
		eventually(t, "the new subnet counts", func() bool {
			nets, err := h.current()
			return err == nil && !nets.public(a)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestExemptionRefused(t *testing.T) {
	t.Parallel()
	host, err := newHostNets()
	if err != nil {
		t.Fatal(err)
	}
	defer host.close()
	for _, e := range []Exemption{{Host: "*.example", CIDR: netip.MustParsePrefix("10.0.0.0/8")}, {Host: "a.example"}, {CIDR: netip.MustParsePrefix("10.0.0.0/8")}} {
		if _, err := newGuard(Config{Exempt: []Exemption{e}}, host); err == nil {
			t.Errorf("%+v was accepted", e)
		}
	}
}

// E181: an address of the host is refused at connect before the host was heard
// to have it.
func TestE181Unheard(t *testing.T) {
	t.Parallel()
	g := testGuard(t, &fakeResolver{hosts: map[string][]string{}}, nil)
	own, err := g.host.addresses()
	if err != nil || !own.contains(netip.MustParseAddr("127.0.0.1")) {
		t.Fatalf("%v %v", own, err)
	}
	g.host.mu.Lock()
	g.host.nets, g.host.read = ranges{}, time.Now().Add(time.Hour)
	g.host.mu.Unlock()
	r := *g.rules.Load()
	r.refused = nil // so that only the host's own addresses count
	g.rules.Store(&r)
	if err := g.check(Host{}, netip.MustParseAddr("127.0.0.1"), 80); err != nil {
		t.Fatalf("the set is not stale: %v", err)
	}
	err = g.control(Host{})(context.Background(), "tcp4", "127.0.0.1:80", nil)
	if dialReason(err) != ReasonAddressNotPublic {
		t.Errorf("at connect: %v", err)
	}
	err = g.control(Host{})(context.Background(), "tcp4", "203.0.113.200:80", nil)
	if err != nil && !errors.Is(err, errNoRoute) { // a machine without a network has none
		t.Errorf("a public address: %v", err)
	}
}
