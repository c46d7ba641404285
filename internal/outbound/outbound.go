// Package outbound makes every HTTP client with which this program asks other
// servers, so that one place decides what may follow a redirect. Credentials and
// conversations go to the host that the operator or the user named, and to no
// other: a reply that points elsewhere is an error. Clients whose work needs
// redirects (pages, downloads) say so, and carry nothing secret along.
//
// TestHTTPClients at the root of the repository fails when a client is made in
// any other way.
package outbound

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Redirects says what a client does with a reply that points to another address.
type Redirects int

// The rules for redirects. The zero value refuses, so that a client whose author
// did not think of redirects is safe.
const (
	// RefuseRedirects makes an error of every reply with a status of 300 to 399
	// but 304. It is the rule for requests that carry a key or a conversation.
	RefuseRedirects Redirects = iota
	// SameOrigin follows redirects that keep scheme, host and port.
	SameOrigin
	// Downloads follows the redirects of GET and HEAD requests to any host, never
	// from https to http. To another origin go only the headers that say what is
	// wanted, no credentials.
	Downloads
	// Pages is as Downloads, and may go from https to http. It is for requests
	// without credentials, whose caller decides about each address (Config.Check).
	Pages
)

// maxRedirects is how many redirects one request may follow.
const maxRedirects = 10

// Config says what a client is for.
type Config struct {
	// Transport carries the requests. Nil means Transport().
	Transport http.RoundTripper
	// Redirects is the rule for redirects. The zero value refuses them.
	Redirects Redirects
	// Check decides about the next request of a redirect that the rule allows;
	// followed is how many redirects came before it. Its error ends the request.
	// Nil allows ten redirects.
	Check func(next *http.Request, followed int) error
	// Timeout of one request, its reply's body included. Zero means none.
	Timeout time.Duration
}

// New makes a client.
func New(c Config) *http.Client {
	return &http.Client{
		Transport: Guard(c.Transport, c.Redirects),
		Timeout:   c.Timeout,
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			// The address that was asked before is nobody else's business: it may
			// hold a key in its query.
			next.Header.Del("Referer")
			if !sameOrigin(next.URL, via[0].URL) {
				onlyHarmless(next.Header)
			}
			if c.Check != nil {
				return c.Check(next, len(via)-1)
			}
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return nil
		},
	}
}

// Transport is a transport as http.DefaultTransport is one, with the proxy of
// the process's environment. Each call makes a new one.
func Transport() *http.Transport {
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 100,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// Guard makes a transport whose replies hold no redirect that the rule refuses:
// these are a *RedirectError instead, so that no client above can follow them.
// It is for libraries that make clients of their own. Nil means Transport().
func Guard(inner http.RoundTripper, rule Redirects) http.RoundTripper {
	if inner == nil {
		inner = Transport()
	}
	return &guard{inner: inner, rule: rule}
}

// guard refuses redirects before any client sees them.
type guard struct {
	inner http.RoundTripper
	rule  Redirects
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := g.inner.RoundTrip(req)
	if err != nil || res.StatusCode < 300 || res.StatusCode > 399 || res.StatusCode == http.StatusNotModified {
		return res, err
	}
	target, why := g.refusal(req, res)
	if why == "" {
		return res, nil
	}
	_ = res.Body.Close() // the reply is an error already
	return nil, &RedirectError{Status: res.StatusCode, Host: target, Reason: why}
}

// CloseIdleConnections lets http.Client close the connections of the transport
// below.
func (g *guard) CloseIdleConnections() {
	if c, ok := g.inner.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// refusal says where a reply points, and why the client does not go there; the
// reason is empty when it may.
func (g *guard) refusal(req *http.Request, res *http.Response) (host, why string) {
	target, err := res.Location()
	switch {
	case errors.Is(err, http.ErrNoLocation) && g.rule != RefuseRedirects:
		return "", "" // nowhere to go: a reply like any other
	case err != nil, target.Host == "" && g.rule != Pages:
		return "", "it names no readable address"
	}
	host = printable(target.Host)
	switch asked := req.URL; {
	case g.rule == RefuseRedirects:
		return host, "this request follows no redirect"
	case g.rule == SameOrigin && !sameOrigin(target, asked):
		return host, "this request stays with its server"
	case g.rule == SameOrigin:
		return host, ""
	case req.Method != http.MethodGet && req.Method != http.MethodHead, req.Body != nil && req.Body != http.NoBody:
		return host, "what was sent goes to one server only"
	case target.Scheme != "http" && target.Scheme != "https":
		if g.rule == Pages {
			return host, "" // Config.Check words it
		}
		return host, "it is no web address"
	case g.rule == Downloads && asked.Scheme == "https" && target.Scheme == "http":
		return host, "a download does not leave TLS"
	}
	return host, ""
}

// RedirectError is a reply that points to another address, which was not asked.
type RedirectError struct {
	// Status of the reply: 300 to 399.
	Status int
	// Host, with its port if one is named, to which the reply points. In printable
	// ASCII, at most 255 bytes; empty when the reply names no readable address.
	Host string
	// Reason says why the redirect was not followed.
	Reason string
}

func (e *RedirectError) Error() string {
	if e.Host == "" {
		return fmt.Sprintf("the server answered %d, a redirect that was not followed: %s", e.Status, e.Reason)
	}
	return fmt.Sprintf("the server answered %d, a redirect to %s that was not followed: %s", e.Status, e.Host, e.Reason)
}

// Refused is the redirect that ended a request with err; nil if none did.
func Refused(err error) *RedirectError {
	e, _ := errors.AsType[*RedirectError](err)
	return e
}

// printable is a host that can stand in a log or on a terminal.
func printable(host string) string {
	text := strconv.QuoteToASCII(host)
	text = text[1 : len(text)-1]
	return text[:min(len(text), 255)]
}

// sameOrigin tells whether two addresses have one scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// port of an address, also where it is the scheme's own.
func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "https":
		return "443"
	case u.Scheme == "http":
		return "80"
	}
	return ""
}

// onlyHarmless takes everything out of a request's headers but what says which
// representation is wanted. An unknown header may be a key.
func onlyHarmless(h http.Header) {
	for name := range h {
		switch name {
		case "Accept", "Accept-Encoding", "Accept-Language", "Range", "User-Agent":
		default:
			delete(h, name)
		}
	}
}
