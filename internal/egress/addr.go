package egress

import (
	"net/netip"
	"slices"
)

// notPublic lists the ranges that no sandbox reaches, of both families. Not in
// it: the IPv4 documentation ranges (192.0.2.0/24, 198.51.100.0/24,
// 203.0.113.0/24), which carry no service of their own and which intercepting
// proxies do use as stand-ins for public hosts.
func notPublic() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8",        // this network
		"10.0.0.0/8",       // private
		"100.64.0.0/10",    // carrier-grade NAT; a cloud's metadata
		"127.0.0.0/8",      // loopback
		"168.63.129.16/32", // a cloud's host agent on a public-looking address
		"169.254.0.0/16",   // link-local; most clouds' metadata
		"172.16.0.0/12",    // private
		"192.0.0.0/24",     // protocol assignments; a cloud's metadata
		"192.88.99.0/24",   // 6to4 relay
		"192.168.0.0/16",   // private
		"198.18.0.0/15",    // benchmarking; our synthetic range
		"224.0.0.0/4",      // multicast
		"240.0.0.0/4",      // reserved, broadcast

		"::/96",           // unspecified, loopback, v4-compatible
		"::ffff:0:0:0/96", // v4-translated
		"64:ff9b:1::/48",  // NAT64 of local use
		"100::/64",        // discard
		"2001::/32",       // Teredo
		"2001:2::/48",     // benchmarking
		"2001:10::/28",    // ORCHID, identifiers that are no addresses
		"2001:20::/28",    // ORCHIDv2, the same
		"2001:db8::/32",   // documentation
		"3fff::/20",       // documentation
		"5f00::/16",       // segment identifiers of SRv6
		"fc00::/7",        // unique local; a cloud's metadata
		"fe80::/10",       // link-local
		"fec0::/10",       // site-local
		"ff00::/8",        // multicast
	)
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// ranges is a set of address ranges.
type ranges []netip.Prefix

func (r ranges) contains(a netip.Addr) bool {
	return slices.ContainsFunc(r, func(p netip.Prefix) bool { return p.Contains(a) })
}

// public tells whether nothing in r stands against the address, nor against an
// IPv4 address that it carries inside (mapped, NAT64, 6to4).
func (r ranges) public(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	if r.contains(a) {
		return false
	}
	if inner, ok := embedded(a); ok {
		return !r.contains(inner)
	}
	return true
}

// embedded returns the IPv4 address that a translator would take out of a.
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}
