package httpapi_test

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/httpapi"
)

const (
	ourPage   = "https://app.example.com"
	otherPage = "https://evil.example.com"
)

// readable are the headers that a script of another origin may always read.
var readable = []string{"Cache-Control", "Content-Language", "Content-Length", "Content-Type", "Expires", "Last-Modified", "Pragma"}

// unread are headers for the browser itself, which no script needs.
var unread = []string{"Connection", "Date", "Vary", "X-Content-Type-Options"}

// preflight is what a browser asks before a script's request.
func (r *rig) preflight(path, origin, method, headers string) answer {
	return r.do(r.request("OPTIONS", path, nil, "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", headers))
}

// eachRoute calls do for each route of the API.
func eachRoute(do func(path, method string)) {
	parameter := regexp.MustCompile(`\{[a-z]+\}`)
	for pattern, methods := range httpapi.Routes() {
		for _, method := range methods {
			do(parameter.ReplaceAllString(pattern, "none_1"), method)
		}
	}
}

// TestOrigins: pages of the origins that were named may ask every route and read
// what it answers; no other page may, and no page with the browser's credentials.
func TestOrigins(t *testing.T) {
	t.Parallel()
	r := newRigWith(t, newHost(t), httpapi.DoorsConfig{}, func(c *httpapi.Config) { c.Origins = []string{ourPage, "http://localhost:5173"} })
	sent := "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,authorization,content-type,x-api-key,x-of-my-own,x-stainless-lang"
	routes := 0
	eachRoute(func(path, method string) {
		routes++
		for _, origin := range []string{ourPage, "http://localhost:5173"} {
			got := r.preflight(path, origin, method, sent)
			allowed := got.header.Get("Access-Control-Allow-Headers")
			safelisted := method == "GET" || method == "POST" // which browsers do not ask for
			if got.status != 204 || got.header.Get("Access-Control-Allow-Origin") != origin || got.header.Get("Request-Id") == "" ||
				!safelisted && !strings.Contains(got.header.Get("Access-Control-Allow-Methods"), method) ||
				!strings.Contains(allowed, "*") || !strings.Contains(strings.ToLower(allowed), "authorization") ||
				!strings.Contains(got.header.Get("Vary"), "Origin") || got.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("before %s %s of %s: %d %v", method, path, origin, got.status, got.header)
			}
		}
		if got := r.preflight(path, otherPage, method, sent); got.status < 400 || got.header.Get("Access-Control-Allow-Origin") != "" || !strings.Contains(got.header.Get("Vary"), "Origin") {
			t.Errorf("before %s %s of another page: %d %v", method, path, got.status, got.header)
		}
		if got := r.do(r.request(method, path, strings.NewReader("{}"), "Origin", otherPage, "X-Api-Key", key)); got.header.Get("Access-Control-Allow-Origin") != "" || got.header.Get("Vary") != "Origin" {
			t.Errorf("%s %s of another page: %d %v", method, path, got.status, got.header)
		}
		for _, secret := range []string{key, "sk-wrong"} {
			got := r.do(r.request(method, path, strings.NewReader("{}"), "Origin", ourPage, "X-Api-Key", secret, "Content-Type", "application/json"))
			if got.header.Get("Access-Control-Allow-Origin") != ourPage || got.header.Get("Vary") != "Origin" || got.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s %s of our page: %d %v", method, path, got.status, got.header)
			}
			r.checkExposed(got)
		}
	})
	if routes < 30 {
		t.Errorf("only %d routes were asked", routes)
	}
	for _, path := range []string{"/v1/none", "/atoll/v1/none"} { // a script may see that it is not there
		if got := r.do(r.request("GET", path, nil, "Origin", ourPage)); got.status != 404 || got.header.Get("Access-Control-Allow-Origin") != ourPage {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
	}
	got := r.ask("GET", "/v1/environments", "")
	if got.header.Get("Vary") != "Origin" || got.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a request of no page: %v", got.header)
	}
	// What asks for no key is for no page.
	for _, path := range []string{"/healthz", "/metrics"} {
		got := r.do(r.request("GET", path, nil, "Origin", ourPage))
		if got.status != 200 || got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
		if got := r.preflight(path, ourPage, "GET", ""); got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("before GET %s: %d %v", path, got.status, got.header)
		}
	}
	session := r.session("")
	resp, err := http.DefaultClient.Do(r.request("GET", "/v1/sessions/"+session+"/events/stream", nil, "Origin", ourPage, "X-Api-Key", key))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Access-Control-Allow-Origin") != ourPage || resp.Header.Get("Vary") != "Origin" {
		t.Errorf("a stream: %d %v", resp.StatusCode, resp.Header)
	}
}

// checkExposed fails the test if a reply has a header that a script cannot read.
func (r *rig) checkExposed(got answer) {
	r.t.Helper()
	var exposed []string
	for _, name := range strings.Split(got.header.Get("Access-Control-Expose-Headers"), ",") {
		exposed = append(exposed, http.CanonicalHeaderKey(strings.TrimSpace(name)))
	}
	for _, name := range []string{"Request-Id", "Retry-After", "X-Should-Retry"} {
		if !slices.Contains(exposed, name) {
			r.t.Errorf("%s is not exposed: %v", name, exposed)
		}
	}
	for name := range got.header {
		if !strings.HasPrefix(name, "Access-Control-") && !slices.Contains(slices.Concat(exposed, readable, unread), name) {
			r.t.Errorf("a script cannot read %s", name)
		}
	}
}

// TestNoOrigins: without the option nothing is said of origins, and OPTIONS is a
// method like any other that no route has.
func TestNoOrigins(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	eachRoute(func(path, method string) {
		got := r.do(r.request(method, path, strings.NewReader("{}"), "Origin", ourPage, "X-Api-Key", key))
		before := r.preflight(path, ourPage, method, "x-api-key")
		if before.status != 405 || before.message() != "Method Not Allowed" {
			t.Errorf("OPTIONS %s: %d %s", path, before.status, before.text)
		}
		for _, a := range []answer{got, before} {
			for name := range a.header {
				if strings.HasPrefix(name, "Access-Control-") || name == "Vary" {
					t.Errorf("%s %s: %s: %s", method, path, name, a.header.Get(name))
				}
			}
		}
	})
}

// TestParseOrigin: what is no origin as browsers send it is refused with words
// that say how to write it.
func TestParseOrigin(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"https://app.example.com", "http://localhost:5173", "http://127.0.0.1:8080", "https://[2001:db8::1]:8443", "http://a", "https://xn--bcher-kva.example", "https://app.example.com:80",
	} {
		if got, err := httpapi.ParseOrigin(good); err != nil || got != good {
			t.Errorf("%s: %q, %v", good, got, err)
		}
	}
	for bad, words := range map[string]string{
		"":                             "like https://app.example.com",
		"*":                            "name each origin",
		"null":                         "no one's own",
		"app.example.com":              "like https://app.example.com",
		"app.example.com:443":          "like https://app.example.com",
		"//app.example.com":            "like https://app.example.com",
		"https:app.example.com":        "like https://app.example.com",
		"https://":                     "like https://app.example.com",
		"https://app.example.com/":     "write https://app.example.com",
		"https://app.example.com/path": "write https://app.example.com",
		"https://app.example.com?":     "write https://app.example.com",
		"https://app.example.com#a":    "write https://app.example.com",
		"https://app.example.com#":     "write https://app.example.com",
		"https://a@app.example.com":    "no user",
		"https://*.example.com":        "name each",
		"ftp://app.example.com":        "not http or https",
		"file:///":                     "like https://app.example.com",
		"chrome-extension://abc":       "not http or https",
		"HTTPS://App.Example.com":      "write https://app.example.com",
		"https://app.example.com:443":  "write https://app.example.com",
		"http://app.example.com:80":    "write http://app.example.com",
		"http://app.example.com:":      "not a port",
		"http://app.example.com:0":     "not a port",
		"http://app.example.com:080":   "not a port",
		"http://app.example.com:65536": "not a port",
		"http://bücher.example":        "xn--",
		"http://a..example":            "not a host name",
		"http://010.1":                 "not a host name",
		"http://[2001:db8:0::1]":       "as 2001:db8::1",
		"http://app.example.com\n":     "like https://app.example.com",
	} {
		if _, err := httpapi.ParseOrigin(bad); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want a word of %q", bad, err, words)
		}
	}
}

// FuzzParseOrigin: an origin that is taken is one that a browser can send: the
// text of an address's scheme and host, as they are read and written again.
func FuzzParseOrigin(f *testing.F) {
	for _, seed := range []string{"https://app.example.com", "http://[::1]:8", "http://[fe80::1%25a]", "http://1.2.3.4", "http://010.1", "https://a_b.c:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := httpapi.ParseOrigin(text); err != nil {
			return
		}
		u, err := url.Parse(text + "/")
		if err != nil || u.Scheme+"://"+u.Host != text || u.Path != "/" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q is an origin, and read as %#v, %v", text, u, err)
		}
		if _, err := http.NewRequest("GET", text+"/", nil); err != nil || strings.ContainsAny(text, " ,\t\r\n\"") {
			t.Fatalf("%q is an origin: %v", text, err)
		}
	})
}
