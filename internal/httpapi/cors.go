package httpapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// ParseOrigin checks an origin as browsers send it in the header Origin: a
// scheme and a host, and a port if it is not the scheme's own. The error says
// what is wrong and how it should be.
func ParseOrigin(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case text == "*":
		return "", errors.New("it would let every web page in: name each origin")
	case text == "null":
		return "", errors.New("browsers send it for pages of no one's own, so that anybody's page could")
	case err != nil || u.Opaque != "" || u.Host == "" || !strings.Contains(text, "://"):
		return "", errors.New("an origin is a scheme and a host, like https://app.example.com, and a port if it is not the scheme's own")
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("the scheme %q is not http or https", u.Scheme)
	case u.User != nil:
		return "", errors.New("an origin has no user")
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return "", fmt.Errorf("an origin has no path, no query and no fragment, not even a slash at the end: write %s://%s", u.Scheme, u.Host)
	case strings.Contains(u.Host, "*"):
		return "", errors.New("an origin is one host: name each")
	case text != strings.ToLower(text):
		return "", fmt.Errorf("browsers send origins in lower case: write %s", strings.ToLower(text))
	}
	if err := checkOriginHost(u); err != nil {
		return "", err
	}
	return text, nil
}

// checkOriginHost looks at the host and the port of an origin.
func checkOriginHost(u *url.URL) error {
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		n, err := strconv.ParseUint(port, 10, 16)
		switch own := map[string]string{"http": "80", "https": "443"}[u.Scheme]; {
		case err != nil || n == 0 || strconv.FormatUint(n, 10) != port:
			return fmt.Errorf("%q is not a port", port)
		case port == own:
			return fmt.Errorf("browsers leave out port %s, which is the scheme's own: write %s://%s", own, u.Scheme, strings.TrimSuffix(u.Host, ":"+port))
		}
	}
	name := u.Hostname()
	if addr, err := netip.ParseAddr(name); err == nil {
		if addr.String() != name || addr.Zone() != "" {
			return fmt.Errorf("browsers write the address %s as %s", name, net.IP(addr.WithZone("").AsSlice()))
		}
		return nil
	}
	labels := strings.Split(name, ".")
	bad := strings.Trim(labels[len(labels)-1], "0123456789") == "" // which is the end of an address
	for _, label := range labels {
		bad = bad || label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != ""
	}
	if bad {
		return fmt.Errorf("%q is not a host name as browsers send it; names of other scripts are written in their xn-- form", name)
	}
	return nil
}

// exposedHeaders are what scripts of other origins may read of a reply, beside
// the headers that they always may (content-type, content-length, last-modified
// and a few that the API does not have).
const exposedHeaders = "Request-Id, Retry-After, X-Should-Retry, X-Atoll-Mode, Allow"

// originGate lets web pages of some origins ask the API: the CORS protocol of
// https://fetch.spec.whatwg.org. The browser's own credentials, such as cookies,
// are never allowed: a page has to know a key, which it shows in a header. What
// asks for no key is for nobody's page.
type originGate struct {
	known map[string]bool // the origins that are let in
	next  http.Handler
}

// newOriginGate checks the origins.
func newOriginGate(origins []string, next http.Handler) (*originGate, error) {
	g := &originGate{known: map[string]bool{}, next: next}
	for _, text := range origins {
		origin, err := ParseOrigin(text)
		if err != nil {
			return nil, fmt.Errorf("the origin %q: %w", text, err)
		}
		g.known[origin] = true
	}
	return g, nil
}

// ServeHTTP implements http.Handler. What comes from no page, or from one that is
// not let in, is answered as it is without this gate: the browser then keeps the
// reply from the page.
func (g *originGate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/v1/") && !strings.HasPrefix(r.URL.Path, "/atoll/v1/") {
		g.next.ServeHTTP(w, r)
		return
	}
	header := w.Header()
	header.Add("Vary", "Origin") // of every reply: a cache may have it for another page
	sent := r.Header["Origin"]
	if len(sent) != 1 || !g.known[sent[0]] {
		g.next.ServeHTTP(w, r)
		return
	}
	header.Set("Access-Control-Allow-Origin", sent[0])
	if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		header.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE")
		// Clients have headers of their own. The star does not stand for Authorization.
		header.Set("Access-Control-Allow-Headers", "*, Authorization")
		header.Set("Access-Control-Max-Age", "600")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	header.Set("Access-Control-Expose-Headers", exposedHeaders)
	g.next.ServeHTTP(w, r)
}
