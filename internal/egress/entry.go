package egress

import (
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// Entry is one checked entry of allowed_hosts: a host, or every host below one.
type Entry struct {
	// Raw is the entry as it was written.
	Raw string
	// Host is the canonical host, without the "*." of a wildcard.
	Host Host
	// Wildcard: every name below Host at any depth, and not Host itself.
	// Without it: exactly Host.
	Wildcard bool
}

// matches tells whether the entry names the host.
func (e Entry) matches(host Host) bool {
	if e.Wildcard {
		return strings.HasSuffix(host.name, "."+e.Host.name) // both canonical, and the dot makes it a label's boundary
	}
	return host == e.Host
}

// EntryError says what is wrong with an entry. Its text is made for the user
// who wrote the entry.
type EntryError struct {
	// Entry is the entry as it was written: any bytes, of any number.
	Entry string
	// Problem continues the sentence that begins with the entry: `contains a
	// port. …`.
	Problem string
}

// Error returns the whole sentence. Bytes of the entry that are not printable
// ASCII are escaped, and a long entry is cut.
func (e *EntryError) Error() string {
	entry := e.Entry
	const shown = 260
	if len(entry) > shown {
		entry = entry[:shown] + "..."
	}
	return "`allowed_hosts` entry " + strconv.QuoteToASCII(entry) + " " + e.Problem
}

const bare = ` Entries must be bare hostnames like "google.com".`

// ParseEntry checks one entry of allowed_hosts. Every error is an *EntryError.
func ParseEntry(raw string) (Entry, error) {
	bad := func(problem string) (Entry, error) { return Entry{}, &EntryError{raw, problem} }
	if problem := notBare(raw); problem != "" {
		return bad(problem)
	}
	name, wildcard := strings.CutPrefix(raw, "*.")
	if strings.Contains(name, "*") {
		return bad(`contains a wildcard outside its first label. A wildcard is "*." and a hostname, like "*.google.com".`)
	}
	if !ascii(name) {
		encoded, err := unicodeNames().ToASCII(name)
		if err != nil {
			return bad("contains an invalid internationalized hostname." + bare)
		}
		name = encoded
	}
	host, err := Canonical(name)
	if err != nil {
		return bad("contains an invalid hostname: " + err.Error() + "." + bare)
	}
	if wildcard {
		// A suffix the list does not know ("*.internal") counts as its own rule
		// there, but not as an ICANN one, and is accepted.
		if suffix, icann := publicsuffix.PublicSuffix(host.name); icann && suffix == host.name {
			return bad("contains a wildcard over a public suffix. A wildcard must be below a registered domain.")
		}
	}
	return Entry{Raw: raw, Host: host, Wildcard: wildcard}, nil
}

// notBare names what an entry has that a bare hostname has not, or nothing.
func notBare(raw string) string {
	const ip = "contains an IP address. Entries must be hostnames."
	switch {
	case raw == "":
		return "contains no hostname." + bare
	case raw == "*":
		return `contains a bare wildcard. A wildcard is "*." and a hostname, like "*.google.com".`
	case strings.Contains(raw, "://"):
		return "contains a URL scheme." + bare
	}
	for _, r := range raw {
		if r <= ' ' || r == 0x7f || r == '\uFFFD' {
			return "contains a space, a control character or invalid UTF-8." + bare
		}
	}
	if last := raw[len(raw)-1]; '0' <= last && last <= '9' || strings.ContainsAny(raw, ":[]/") {
		if _, err := netip.ParseAddr(strings.Trim(raw, "[]")); err == nil {
			return ip
		}
		if _, err := netip.ParsePrefix(raw); err == nil {
			return ip
		}
	}
	switch {
	case strings.ContainsAny(raw, `/\?#`):
		return "contains a path. Entries must be bare hostnames without paths."
	case strings.Contains(raw, "@"):
		return "contains user information." + bare
	case strings.ContainsAny(raw, "[]"):
		return "contains brackets." + bare
	}
	if before, after, ok := strings.Cut(raw, ":"); ok {
		if after != "" && strings.Trim(after, "0123456789") != "" && !strings.Contains(before, ".") {
			return "contains a URL scheme." + bare
		}
		return "contains a port. Entries must be bare hostnames without ports."
	}
	return ""
}

// unicodeNames maps a name in Unicode to the one that goes on the wire, as
// browsers do. What comes out still has to pass Canonical.
func unicodeNames() *idna.Profile {
	return idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.CheckHyphens(false), idna.StrictDomainName(true))
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
