package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// translated is an IPv4 address below a prefix, as RFC 6052 puts it there.
func translated(prefix, inner string) string {
	p, v4 := netip.MustParsePrefix(prefix), netip.MustParseAddr(inner).As4()
	b := p.Addr().As16()
	at := p.Bits() / 8
	for _, octet := range v4 {
		if at == 8 {
			at++
		}
		b[at] = octet
		at++
	}
	return netip.AddrFrom16(b).String()
}

// The prefixes and addresses of RFC 6052, section 2.4.
func TestE192Embedding(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]string{
		"2001:db8::/32": "2001:db8:c000:221::", "2001:db8:100::/40": "2001:db8:1c0:2:21::", "2001:db8:122::/48": "2001:db8:122:c000:2:2100::",
		"2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::", "2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::", "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
	} {
		a := netip.MustParseAddr(want)
		if got := inPrefix(a, netip.MustParsePrefix(prefix).Bits()); got != netip.MustParseAddr("192.0.2.33") {
			t.Errorf("%s in %s: %s", a, prefix, got)
		}
		learned := translatorPrefixes([]netip.Addr{netip.MustParseAddr(translated(prefix, "192.0.0.170")), netip.MustParseAddr(translated(prefix, "192.0.0.171"))})
		if !slices.Contains(learned, netip.MustParsePrefix(prefix)) {
			t.Errorf("%s was not found: %v", prefix, learned)
		}
	}
}

// The network's own NAT64 prefix is found out, and the IPv4 address inside an
// address is judged as if it were dialled itself.
func TestE192OperatorsTranslator(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"2a0d:64::/96", "2a0d:64::/64", "2a0d:64:1:200::/56", "2a0d:64:2::/48", "2a0d:64::/40", "2a0d:64::/32"} {
		r := &fakeResolver{hosts: map[string][]string{}}
		r.set("ipv4only.arpa", translated(prefix, "192.0.0.170"), translated(prefix, "192.0.0.171"))
		g := testGuard(t, r, nil)
		for inner, want := range map[string]Reason{
			"8.8.8.8": ReasonOK, "10.0.0.5": ReasonAddressNotPublic, "169.254.169.254": ReasonAddressNotPublic, "127.0.0.1": ReasonAddressNotPublic,
			"100.100.100.200": ReasonAddressNotPublic, "198.18.1.0": ReasonAddressNotPublic, "192.168.1.1": ReasonAddressNotPublic,
		} {
			r.set("a.example.com", translated(prefix, inner))
			_, err := g.lookup(t.Context(), nil, mustHost(t, "a.example.com"), 443)
			wantReason(t, inner+" in "+prefix, err, want)
			err = g.control(Host{})(t.Context(), "tcp6", netip.AddrPortFrom(netip.MustParseAddr(translated(prefix, inner)), 443).String(), nil)
			if want == ReasonAddressNotPublic {
				wantReason(t, "at connect, "+inner+" in "+prefix, err, want)
			}
		}
	}
}

// mute answers questions about one name with addresses and nothing else, while
// it is not dumb.
type mute struct {
	dumb  atomic.Bool
	asked atomic.Int32 // for the name that tells the translator's prefix
}

func (m *mute) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if host != translatorName {
		return []netip.Addr{netip.MustParseAddr("2606:4700:4700::1111"), netip.MustParseAddr("1.1.1.1")}, nil
	}
	m.asked.Add(1)
	if m.dumb.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if network != "ip6" {
		return nil, errors.New("asked for " + network)
	}
	return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

// Until it is known which translators there are, addresses of IPv6 are not
// dialled; those of IPv4 are. What was known counts on while the resolver is
// silent, and nobody asks it at every connection.
func TestE192ResolverThatDoesNotSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &mute{}
		r.dumb.Store(true)
		g := &guard{resolve: 3 * time.Second}
		g.rules.Store(&rules{resolver: r})
		both := []netip.Addr{netip.MustParseAddr("2606:4700:4700::1111"), netip.MustParseAddr("1.1.1.1")}
		if got, err := g.withoutUnknown(t.Context(), Host{}, both, 443); err != nil || !slices.Equal(got, both[1:]) {
			t.Errorf("not known yet: %v %v", got, err)
		}
		if got, err := g.withoutUnknown(t.Context(), Host{}, both[:1], 443); !errors.Is(err, errTranslatorsUnknown) {
			t.Errorf("IPv6 only, not known yet: %v %v", got, err)
		}
		if n := r.asked.Load(); n != resolveTries {
			t.Errorf("asked %d times", n)
		}
		r.dumb.Store(false)
		time.Sleep(translatorsRetry)
		ended, cancel := context.WithCancel(t.Context())
		cancel() // the answer is everybody's
		if got, err := g.withoutUnknown(ended, Host{}, both, 443); err != nil || len(got) != 2 {
			t.Errorf("known: %v %v", got, err)
		}
		r.dumb.Store(true)
		time.Sleep(translatorsAge)
		before := r.asked.Load()
		for range 3 {
			if got, err := g.withoutUnknown(t.Context(), Host{}, both, 443); err != nil || len(got) != 2 {
				t.Errorf("known before: %v %v", got, err)
			}
		}
		if n := r.asked.Load() - before; n != resolveTries {
			t.Errorf("asked %d times for what nobody says", n)
		}
	})
}
