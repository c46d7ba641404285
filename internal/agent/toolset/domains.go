package toolset

import (
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"golang.org/x/net/idna"

	"github.com/atoll-run/atoll/internal/egress"
)

// webHost is the host of a URL, or of an entry of a tool's lists, in the one form
// in which both are compared: a canonical name or an address.
type webHost struct {
	name egress.Host
	addr netip.Addr // where it is an address; IPv4 in IPv6 is IPv4 here
}

// parseWebHost reads a host as it stands in a URL, brackets of IPv6 aside.
func parseWebHost(raw string) (webHost, error) {
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(raw, "["), "]")); err == nil {
		return webHost{addr: addr.Unmap()}, nil
	}
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(raw, "."))
	if err != nil {
		ascii = raw // names with an underscore are none for idna
	}
	name, err := egress.Canonical(ascii)
	return webHost{name: name}, err
}

// isAddr tells whether the host is an address.
func (h webHost) isAddr() bool { return h.addr.IsValid() }

// covers tells whether an entry with this host is for another host: for itself
// and, if it is a name, for the names below it.
func (h webHost) covers(other webHost) bool {
	if h.isAddr() || other.isAddr() {
		return h == other
	}
	return h.name == other.name || strings.HasSuffix(other.name.String(), "."+h.name.String())
}

// plainPath writes the path of a URL in the one form that is compared and sent:
// escapes that need not be are taken back, the others have capital letters, and
// dot segments are resolved (RFC 3986, 6.2.2). escaped begins with "/" or is
// empty.
func plainPath(escaped string) string {
	var out []string
	segments := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	for i, s := range segments {
		s = plainSegment(s)
		last := i == len(segments)-1
		switch {
		case s == "..":
			out = out[:max(0, len(out)-1)]
		case s != ".":
			out = append(out, s)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

// plainSegment writes one segment of a path in its shortest form. An escape that
// is none stays as it is.
func plainSegment(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+2 >= len(s) {
			b.WriteByte(s[i])
			continue
		}
		text, err := url.PathUnescape(s[i : i+3])
		switch {
		case err != nil:
			b.WriteByte(s[i])
			continue
		case unreserved(text[0]):
			b.WriteByte(text[0])
		default:
			b.WriteString(strings.ToUpper(s[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// servedPath is what a server may make of a path that goes further than it has
// to: escaped slashes and backslashes are slashes, and several slashes are one.
func servedPath(plain string) string {
	text, err := url.PathUnescape(plain)
	if err != nil {
		text = plain
	}
	return path.Clean("/" + strings.ReplaceAll(text, `\`, "/"))
}

// webEntry is an entry of a tool's list of domains: a host, and a path that the
// addresses of the entry begin with, or "" for all.
type webEntry struct {
	host   webHost
	prefix string // plain, without a slash at its end
}

// parseEntries reads a list that was checked when the agent was made. An entry
// that cannot be read is an error: nothing may be decided without it.
func parseEntries(list []string) ([]webEntry, error) {
	var out []webEntry
	for _, raw := range list {
		name, rest, hasPath := strings.Cut(raw, "/")
		host, err := parseWebHost(name)
		if err != nil {
			return nil, err
		}
		e := webEntry{host: host}
		if hasPath {
			e.prefix = strings.TrimSuffix(plainPath("/"+rest), "/")
		}
		out = append(out, e)
	}
	return out, nil
}

// under tells whether a path is the prefix or below it.
func under(path, prefix string) bool {
	return prefix == "" || prefix == "/" || path == prefix || strings.HasPrefix(path, prefix+"/")
}

// allowedBy tells whether an entry of the list is for the address, however the
// server there reads the path.
func allowedBy(entries []webEntry, host webHost, plain string) bool {
	return slices.ContainsFunc(entries, func(e webEntry) bool {
		return e.host.covers(host) && under(plain, e.prefix) && under(servedPath(plain), servedPath(e.prefix))
	})
}

// blockedBy tells whether an entry of the list is for the address, in any way in
// which the server there may read the path.
func blockedBy(entries []webEntry, host webHost, plain string) bool {
	return slices.ContainsFunc(entries, func(e webEntry) bool {
		return e.host.covers(host) && (under(plain, e.prefix) || under(servedPath(plain), servedPath(e.prefix)))
	})
}
