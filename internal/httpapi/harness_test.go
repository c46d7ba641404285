package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/control/looptest"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/httpapi/wiretest"
	"github.com/atoll-run/atoll/internal/store"
)

// templates are the base templates of the tests.
type templates []string

func (t templates) Known(name string) bool { return slices.Contains(t, name) }
func (t templates) Names() []string        { return t }

// watcher is a Runtime that remembers what it was told.
type watcher struct {
	mu    sync.Mutex
	calls []string
	fail  error
	store control.Store
}

func (w *watcher) note(call string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, call)
}

func (w *watcher) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.calls
	w.calls = nil
	return calls
}

func (w *watcher) EnvironmentChanged(rec control.EnvironmentRecord) {
	w.note("environment " + rec.Name)
}
func (w *watcher) EnvironmentDeleted(string)                {}
func (w *watcher) SessionCreated(rec control.SessionRecord) { w.note("created " + rec.ID) }
func (w *watcher) SessionEnded(ctx context.Context, rec control.SessionRecord) error {
	if _, err := w.store.Session(ctx, rec.Workspace, rec.ID); err != nil {
		w.note("ended without a row " + rec.ID)
	}
	w.note("ended " + rec.ID)
	return w.fail
}

// rig is a server with a real store, and what a test needs to ask it.
type rig struct {
	t         testing.TB
	url       string
	client    *http.Client
	service   *control.Service
	store     *store.Store
	runtime   *watcher
	turns     *control.Turns
	loop      *looptest.Player
	log       *syncBuffer
	workspace string
	metrics   *prometheus.Registry
}

const (
	key = "sk-test-of-the-operator"
)

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t testing.TB, sandboxes httpapi.Sandboxes) *rig {
	t.Helper()
	return newRigWith(t, sandboxes, httpapi.DoorsConfig{}, func(*httpapi.Config) {})
}

// newRigWith is newRig with other bounds.
func newRigWith(t testing.TB, sandboxes httpapi.Sandboxes, doors httpapi.DoorsConfig, change func(*httpapi.Config)) *rig {
	t.Helper()
	ctx := context.Background()
	db, err := store.Open(ctx, store.Config{Path: filepath.Join(t.TempDir(), "atoll.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, store: db, runtime: &watcher{store: db}, log: &syncBuffer{}, metrics: prometheus.NewRegistry()}
	r.turns = control.NewTurns(db, nil)
	r.loop = looptest.New(r.turns, func(err error) { t.Error(err) })
	t.Cleanup(r.loop.Close)
	r.service = control.New(control.Config{Store: db, Templates: templates{"base", "code_interpreter", "slim"}, Runtime: r.runtime,
		Turns: r.turns, Loop: r.loop})
	if r.workspace, err = r.service.EnsureDefault(ctx, key, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	config := httpapi.Config{
		Service: r.service, Sandboxes: sandboxes, Metrics: r.metrics,
		Logger: slog.New(slog.NewJSONHandler(r.log, nil)), Ping: 50 * time.Millisecond, StreamWait: time.Second,
	}
	change(&config)
	h, err := httpapi.New(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := httpapi.NewDoors(doors).Serve(server, listener); err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		r.turns.Close() // streams end, or the server would wait for them
		r.client.CloseIdleConnections()
		patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if server.Shutdown(patience) != nil {
			_ = server.Close() // a connection of the test's is still open
		}
		serving.Wait()
	})
	r.url = "http://" + listener.Addr().String()
	r.client = &http.Client{Transport: wiretest.Transport(t, nil)}
	return r
}

// sandBase makes a key of SandBase's dialect in the same workspace.
func (r *rig) sandBase() string {
	secret, _, err := r.service.CreateKey(context.Background(), r.workspace, "sb", control.KeyAPI, true)
	if err != nil {
		r.t.Fatal(err)
	}
	return secret
}

// answer is a reply that was read.
type answer struct {
	status int
	header http.Header
	text   string
	body   map[string]any
}

func (a answer) str(path ...string) string {
	var at any = a.body
	for _, name := range path {
		m, _ := at.(map[string]any)
		at = m[name]
	}
	s, _ := at.(string)
	return s
}

func (a answer) message() string { return a.str("error", "message") }

// ask sends a request with the operator's key. A body is JSON text.
func (r *rig) ask(method, path, body string) answer { return r.askAs(key, method, path, body) }

func (r *rig) askAs(key, method, path, body string) answer {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return r.do(req)
}

func (r *rig) do(req *http.Request) answer {
	r.t.Helper()
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, text: string(text)}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(text, &a.body); err != nil {
			r.t.Fatalf("%s %s: %v: %s", req.Method, req.URL, err, text)
		}
	}
	return a
}

// must is ask that fails the test unless the answer is 200.
// What it sends to the official routes must be valid by the document.
func (r *rig) must(method, path, body string) answer {
	r.t.Helper()
	if method == "POST" && strings.HasPrefix(path, "/v1/") && body != "" && !beyondSchema(body) && !strings.HasSuffix(path, "/archive") {
		if err := wiretest.Load(r.t).CheckRequest(method, path, []byte(body)); err != nil {
			r.t.Errorf("POST %s: the document refuses %s: %v", path, body, err)
		}
	}
	a := r.ask(method, path, body)
	if a.status != 200 {
		r.t.Fatalf("%s %s: %d %s", method, path, a.status, a.text)
	}
	return a
}

// quote is s as a JSON string.
func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// beyondSchema tells whether a request has what Atoll accepts and the document
// does not know.
func beyondSchema(body string) bool {
	return strings.Contains(body, "base_template") || // decision (h)
		strings.Contains(body, `"metadata":null`) || strings.Contains(body, `"vault_ids":null`) // null is absent
}
