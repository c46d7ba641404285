package egress

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The name whose IPv6 addresses tell the prefix of the network's NAT64 (RFC
// 7050): it has only the two IPv4 addresses, so whatever is around them in an
// answer is the translator's.
const translatorName = "ipv4only.arpa."

func translatorAddresses() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 0, 170}), netip.AddrFrom4([4]byte{192, 0, 0, 171})}
}

const (
	translatorsAge   = 5 * time.Minute  // how long what was found out counts as fresh
	translatorsRetry = 30 * time.Second // how long after a failure nobody asks again
	maxTranslators   = 16               // prefixes of one answer
)

var errTranslatorsUnknown = errors.New("the resolver does not say whether the network has a NAT64")

// translators knows the NAT64 prefixes of the operator's network. An address in
// one of them is also judged by the IPv4 address inside it. The zero value knows
// none and has asked nobody.
type translators struct {
	known atomic.Pointer[[]netip.Prefix] // nil until an answer came

	mu    sync.Mutex // held while the resolver is asked; guards what follows
	asked time.Time  // when the resolver was asked last
	fresh bool       // an answer came then
	rules *rules     // that named the resolver
}

// reached are the addresses that a connection to a reaches: a itself first, and
// the IPv4 addresses that translators take out of it, those of the operator's
// network among them.
func (t *translators) reached(a netip.Addr) []netip.Addr {
	out := []netip.Addr{a}
	if inner, ok := embedded(a); ok {
		out = append(out, inner)
	}
	if known := t.known.Load(); known != nil && a.Is6() {
		for _, p := range *known {
			if p.Contains(a) {
				out = append(out, inPrefix(a, p.Bits()))
			}
		}
	}
	return out
}

// learnTranslators asks the resolver which translators there are, unless it did lately.
// That there is none is an answer; while the resolver is silent, what was known
// before counts on. It returns false if nothing is known.
func (g *guard) learnTranslators(ctx context.Context) bool {
	t := &g.nat64
	switch known := t.known.Load() != nil; {
	case !known:
		t.mu.Lock()
	case !t.mu.TryLock(): // somebody is asking
		return true
	}
	defer t.mu.Unlock()
	age := translatorsRetry
	if t.fresh {
		age = translatorsAge
	}
	if rules := g.rules.Load(); t.rules != rules || time.Since(t.asked) >= age {
		// A sandbox that ends its connection must not end the question: the answer
		// is everybody's.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.resolve)
		addrs, silent, _ := g.askAgain(ctx, "ip6", translatorName)
		cancel()
		t.asked, t.rules, t.fresh = time.Now(), rules, !silent
		if t.fresh { // any error of a resolver that answers says that there is no such name
			found := translatorPrefixes(addrs)
			t.known.Store(&found)
		}
	}
	return t.known.Load() != nil
}

// translatorPrefixes finds the prefixes in the addresses of the name.
func translatorPrefixes(addrs []netip.Addr) []netip.Prefix {
	out := []netip.Prefix{}
	for _, a := range addrs {
		if !a.Is6() || a.Is4In6() || a.Zone() != "" {
			continue
		}
		for _, bits := range []int{96, 64, 56, 48, 40, 32} {
			p := netip.PrefixFrom(a, bits).Masked()
			if slices.Contains(translatorAddresses(), inPrefix(a, bits)) && !slices.Contains(out, p) && len(out) < maxTranslators {
				out = append(out, p)
			}
		}
	}
	return out
}

// inPrefix is the IPv4 address inside an address below a translator's prefix of
// so many bits (RFC 6052). Bits 64 to 71 hold nothing.
func inPrefix(a netip.Addr, bits int) netip.Addr {
	b := a.As16()
	var inner []byte
	for i := bits / 8; len(inner) < 4; i++ {
		if i != 8 {
			inner = append(inner, b[i])
		}
	}
	return netip.AddrFrom4([4]byte(inner))
}

// withoutUnknown returns the addresses that can be judged: all, where it is known
// which translators the network has, else those of IPv4, and what the operator
// exempted.
func (g *guard) withoutUnknown(ctx context.Context, host Host, addrs []netip.Addr, port uint16) ([]netip.Addr, error) {
	rules := g.rules.Load()
	open := func(a netip.Addr) bool {
		return a.Is6() && !a.Is4In6() && (host.IsZero() || !rules.exempts(host, a, port))
	}
	if !slices.ContainsFunc(addrs, open) || g.learnTranslators(ctx) {
		return addrs, nil
	}
	out := slices.DeleteFunc(slices.Clone(addrs), open)
	if len(out) == 0 {
		return nil, errTranslatorsUnknown
	}
	return out, nil
}
