package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/test/clients"
)

// TestBrowser has a real browser load a page of another origin, which works with
// the TypeScript client of each generation; and a page of an origin that was not
// named, from which the browser keeps everything.
func TestBrowser(t *testing.T) {
	t.Parallel()
	browser, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		unavailable(t, "%v", err)
	}
	modules, err := clients.Node(t.Context())
	if err != nil {
		unavailable(t, "%v", err)
	}
	for _, module := range []string{"@anthropic-ai/sdk", "anthropic-sdk-0"} {
		for _, open := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s open %v", strings.ReplaceAll(module, "/", "-"), open), func(t *testing.T) {
				t.Parallel()
				page := newPage(t, modules, module)
				origin := page.web.URL
				if !open {
					origin = "http://127.0.0.1:1" // another
				}
				s := startFor(t, played(t), origin)
				page.settings(map[string]any{"url": s.url, "key": apiKey, "open": open})
				if got := page.load(browser); got != "ok" {
					t.Errorf("the page says: %s", got)
				}
				calls := s.take()
				if !open && len(calls) != 1 { // the request that needs no preflight, which carries no key
					t.Errorf("requests of a page that is kept out arrived: %+v", calls)
				}
				if open {
					s.conflictsOnce(calls, 1)
				}
			})
		}
	}
}

// page is a web page with a server of its own.
type page struct {
	t    *testing.T
	web  *httptest.Server
	html []byte
	done chan string
}

// newPage makes a page that has a client for its module "client".
func newPage(t *testing.T, modules, module string) *page {
	t.Helper()
	p := &page{t: t, done: make(chan string, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(strings.ReplaceAll(string(p.html), "MODULE", module))) // the browser may be gone
	})
	mux.HandleFunc("GET /browser.mjs", func(w http.ResponseWriter, r *http.Request) { serveScript(w, "js/browser.mjs") })
	// What a bundler does for pages: where a module has a form for browsers, that
	// is taken. (The client's own list of them, "browser" in its package.json, goes
	// by the name.)
	mux.HandleFunc("GET /modules/", func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Join(modules, path.Clean(strings.TrimPrefix(r.URL.Path, "/modules")))
		for _, candidate := range []string{strings.TrimSuffix(name, ".mjs") + ".browser.mjs", name} {
			if st, err := os.Stat(candidate); err == nil && st.Mode().IsRegular() {
				serveScript(w, candidate)
				return
			}
		}
		t.Logf("the page asks for %s, which is not there", r.URL)
		http.NotFound(w, r)
	})
	mux.HandleFunc("POST /done", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		p.done <- string(text)
	})
	p.web = httptest.NewServer(mux)
	t.Cleanup(p.web.Close)
	return p
}

func serveScript(w http.ResponseWriter, name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	_, _ = w.Write(text) // the browser may be gone
}

// settings says what the page is to do.
func (p *page) settings(values map[string]any) {
	p.t.Helper()
	text, err := json.Marshal(values)
	if err != nil {
		p.t.Fatal(err)
	}
	// Webhooks are not for pages, and come as a module that browsers do not take.
	p.html = []byte(`<!doctype html><script id="settings" type="application/json">` + string(text) + `</script>
<script type="importmap">{"imports": {"client": "/modules/MODULE/index.mjs",
"@opentelemetry/api": "/modules/@opentelemetry/api/dist/index.mjs", "standardwebhooks": "data:text/javascript,export class Webhook {}"}}</script>
<script>for (const kind of ["error", "unhandledrejection"]) addEventListener(kind, (e) => fetch("/done", {method: "POST", body: kind + ": " + (e.message ?? e.reason)}), true)</script>
<script type="module" src="/browser.mjs"></script>`)
}

// load opens the page and returns what it says.
func (p *page) load(browser string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--no-proxy-server", "--user-data-dir="+p.t.TempDir(), "--remote-debugging-port=0", p.web.URL)
	// Wait reads the output to its end: then all processes of the browser have ended.
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed below
		close(ended)
	}()
	got := ""
	select {
	case got = <-p.done:
	case <-ended:
	case <-time.After(2 * time.Minute):
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-ended
	if got == "" {
		got = "nothing; the browser's log: " + string(tail(log.Bytes()))
	}
	return got
}
