package outbound_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/atoll-run/atoll/internal/outbound"
)

// recorder is a server that keeps what arrived.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex // guards what follows
	seen []string   // method, headers and body of each request
}

func newRecorder(t *testing.T, tls bool) *recorder {
	t.Helper()
	r := &recorder{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen = append(r.seen, fmt.Sprintf("%s %v %s", req.Method, req.Header, body))
	})
	if tls {
		r.Server = httptest.NewTLSServer(handler)
	} else {
		r.Server = httptest.NewServer(handler)
	}
	t.Cleanup(r.Close)
	return r
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// sendsTo is a server that answers everything with a redirect.
func sendsTo(t *testing.T, status int, target string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", target)
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s
}

func ask(t *testing.T, client *http.Client, method, address, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	}
	req.Header.Set("X-Api-Key", "secret-key")
	req.Header.Set("Authorization", "Bearer secret-token")
	req.Header.Set("Cookie", "secret=1")
	req.Header.Set("X-Operator", "secret-header")
	res, err := client.Do(req)
	if err == nil {
		t.Cleanup(func() { _ = res.Body.Close() })
	}
	return res, err
}

// The zero rule: whatever the status and the method, nothing arrives elsewhere,
// not even at the same server.
func TestRedirectsAreRefused(t *testing.T) {
	t.Parallel()
	for _, status := range []int{300, 301, 302, 303, 305, 307, 308, 399} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			other := newRecorder(t, false)
			server := sendsTo(t, status, other.URL+"/elsewhere?x=1")
			_, err := ask(t, outbound.New(outbound.Config{}), method, server.URL+"/v1/messages?key=secret-query", map[string]string{http.MethodPost: "secret-talk"}[method])
			refused := outbound.Refused(err)
			host := strings.TrimPrefix(other.URL, "http://")
			if refused == nil || refused.Status != status || refused.Host != host {
				t.Errorf("%s answered %d: error %v", method, status, err)
			} else if text := refused.Error(); !strings.Contains(text, fmt.Sprint(status)) || !strings.Contains(text, host) || strings.Contains(text, "x=1") {
				t.Errorf("%s answered %d: words %q", method, status, text)
			}
			if seen := other.all(); len(seen) != 0 {
				t.Errorf("%s answered %d: %q arrived", method, status, seen)
			}
		}
	}
}

// A host that a server names is text from outside.
func TestRefusedHostIsPrintable(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"http://\u202eevil.example/": `\u202eevil.example`,
		"":                           "",
		"http://[::1":                "",
		"/elsewhere":                 "127.0.0.1",
	} {
		server := sendsTo(t, http.StatusFound, target)
		_, err := ask(t, outbound.New(outbound.Config{}), http.MethodGet, server.URL, "")
		refused := outbound.Refused(err)
		if refused == nil || !strings.HasPrefix(refused.Host, want) || want == "" && refused.Host != "" {
			t.Errorf("%q: %v", target, err)
		}
	}
	server := sendsTo(t, http.StatusFound, "http://"+strings.Repeat("a", 5000)+".example/")
	_, err := ask(t, outbound.New(outbound.Config{}), http.MethodGet, server.URL, "")
	if refused := outbound.Refused(err); refused == nil || len(refused.Host) != 255 {
		t.Errorf("a long host: %.500v", err)
	}
}

// SameOrigin: what was sent is sent again to the same server only.
func TestSameOrigin(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 307, 308} {
		client := outbound.New(outbound.Config{Redirects: outbound.SameOrigin})
		other := newRecorder(t, false)
		away := sendsTo(t, status, other.URL)
		if _, err := ask(t, client, http.MethodPost, away.URL, "secret-talk"); outbound.Refused(err) == nil || len(other.all()) != 0 {
			t.Errorf("%d to another server: %v, %q arrived", status, err, other.all())
		}
		var bodies []string
		mux := http.NewServeMux()
		mux.HandleFunc("/old", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/new")
			w.WriteHeader(status)
		})
		mux.HandleFunc("/new", func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			bodies = append(bodies, string(b)+r.Header.Get("X-Api-Key"))
		})
		mux.HandleFunc("/loop", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/loop")
			w.WriteHeader(status)
		})
		same := httptest.NewServer(mux)
		t.Cleanup(same.Close)
		if _, err := ask(t, client, http.MethodPost, same.URL+"/old", "talk"); err != nil || len(bodies) != 1 || !strings.HasSuffix(bodies[0], "secret-key") {
			t.Errorf("%d to the same server: %v, %q", status, err, bodies)
		}
		if _, err := ask(t, client, http.MethodGet, same.URL+"/loop", ""); err == nil || !strings.Contains(err.Error(), "more than 10 redirects") {
			t.Errorf("%d for ever: %v", status, err)
		}
	}
}

// Downloads: any host may answer, and nothing secret gets there.
func TestDownloads(t *testing.T) {
	t.Parallel()
	client := outbound.New(outbound.Config{Redirects: outbound.Downloads})
	for _, status := range []int{301, 302, 303, 307, 308} {
		other := newRecorder(t, false)
		server := sendsTo(t, status, other.URL+"/file")
		at, err := url.Parse(server.URL + "/?key=secret-query")
		if err != nil {
			t.Fatal(err)
		}
		at.User = url.UserPassword("user", "secret-password")
		if _, err := ask(t, client, http.MethodGet, at.String(), ""); err != nil {
			t.Fatalf("%d: %v", status, err)
		}
		seen := strings.Join(other.all(), "\n")
		if !strings.HasPrefix(seen, "GET ") || strings.Contains(strings.ToLower(seen), "secret") || strings.Contains(seen, "Authorization") {
			t.Errorf("%d: %q arrived", status, seen)
		}
		if _, err := ask(t, client, http.MethodPost, server.URL, "secret-talk"); outbound.Refused(err) == nil || len(other.all()) != 1 {
			t.Errorf("%d to a POST: %v, %q arrived", status, err, other.all())
		}
	}
	// A download that began with TLS does not go on without.
	plain := newRecorder(t, false)
	safe := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(safe.Close)
	client = outbound.New(outbound.Config{Transport: safe.Client().Transport, Redirects: outbound.Downloads})
	if _, err := ask(t, client, http.MethodGet, safe.URL, ""); outbound.Refused(err) == nil || len(plain.all()) != 0 {
		t.Errorf("from https to http: %v, %q arrived", err, plain.all())
	}
	// A page does, when the caller agrees.
	client = outbound.New(outbound.Config{Transport: safe.Client().Transport, Redirects: outbound.Pages})
	if _, err := ask(t, client, http.MethodGet, safe.URL, ""); err != nil || len(plain.all()) != 1 || strings.Contains(plain.all()[0], "secret") {
		t.Errorf("a page from https to http: %v, %q arrived", err, plain.all())
	}
	client = outbound.New(outbound.Config{Transport: safe.Client().Transport, Redirects: outbound.Pages,
		Check: func(next *http.Request, followed int) error { return fmt.Errorf("no %s %d", next.URL.Host, followed) }})
	if _, err := ask(t, client, http.MethodGet, safe.URL, ""); err == nil || !strings.Contains(err.Error(), "no 127.0.0.1") || len(plain.all()) != 1 {
		t.Errorf("a page that the caller refuses: %v", err)
	}
}
