package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/atoll-run/atoll/internal/control"
)

// keyless serves what asks for no key. On a loopback address it is there for
// this machine, which asks by a name of its own: a web page that has its name
// resolved to 127.0.0.1 (DNS rebinding) makes a browser ask under the page's
// name, and is refused.
func (s *server) keyless(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if onLoopback(r) && !s.knownHost(r.Host) {
			s.writeError(w, r, control.Faultf(control.Forbidden,
				"host: This address answers to localhost, IP addresses and the names under http.hosts in the configuration"))
			return
		}
		next.ServeHTTP(w, r)
	}
}

// onLoopback tells whether a request came to a loopback address of the server.
func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}

// knownHost tells whether a Host header names this machine: an IP address, which
// no foreign page can have for its name, localhost, or a name of the operator's.
func (s *server) knownHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	return name == "" || name == "localhost" || strings.HasSuffix(name, ".localhost") || slices.Contains(s.hosts, name)
}
