package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/control/looptest"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/httpapi/wiretest"
	"github.com/atoll-run/atoll/internal/store"
)

// The key and the ids that the SDK's own tests send.
const (
	apiKey         = "my-anthropic-api-key"
	fixtureSpace   = "wrkspc_011CZkZaBF1tNoB5wlCeusgy"
	fixtureEnv     = "env_011CZkZ9X2dpNyB7HsEFoRfW"
	fixtureAgent   = "agent_011CZkYpogX7uDKUyvBTophP"
	fixtureRoster  = "agent_011CZkYqphY8vELVzwCUpqiQ"
	fixtureSession = "sesn_011CZkZAtmR3yMPDzynEDxu7"
	fixtureThread  = "sthr_011CZkZVWa6oJjw1rgXZpnBt"
)

// call is a request that reached the server, and its answer.
type call struct {
	method, path string
	retry        string // the client's own count of its tries
	status       int
	message      string // of an error
}

// server is the real handler over a real store. It checks what it answers.
type server struct {
	t       *testing.T
	url     string
	store   *store.Store
	service *control.Service

	mu    sync.Mutex
	calls []call
}

// templates stands for the base templates of a server.
type templates []string

func (l templates) Known(name string) bool { return slices.Contains(l, name) }
func (l templates) Names() []string        { return l }

// start starts a server with an empty workspace, whose agents are played.
func start(t *testing.T) *server {
	t.Helper()
	return startWith(t, played(t))
}

// played is a loop that plays agents.
func played(t *testing.T) func(*control.Turns) (control.Loop, func()) {
	return func(turns *control.Turns) (control.Loop, func()) {
		loop := looptest.New(turns, func(err error) { t.Error(err) })
		return loop, loop.Close
	}
}

// startWith starts a server with an empty workspace and a loop of the test's. What
// newLoop answers beside it ends the loop.
func startWith(t *testing.T, newLoop func(*control.Turns) (control.Loop, func())) *server {
	t.Helper()
	return startFor(t, newLoop)
}

// startFor is startWith for web pages of the origins, too.
func startFor(t *testing.T, newLoop func(*control.Turns) (control.Loop, func()), origins ...string) *server {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: t.TempDir() + "/atoll.db"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	turns := control.NewTurns(db, nil)
	loop, end := newLoop(turns)
	t.Cleanup(end)
	s := &server{t: t, store: db, service: control.New(control.Config{Store: db, Templates: templates{"base", "code_interpreter", "slim"}, Turns: turns, Loop: loop})}
	if err := db.CreateWorkspace(t.Context(), control.Workspace{ID: fixtureSpace, Name: "default", CreatedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.service.EnsureDefault(t.Context(), apiKey, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	h, err := httpapi.New(httpapi.Config{Service: s.service, Models: models(t), Origins: origins})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.watch(h))
	t.Cleanup(func() {
		turns.Close() // streams end, or the server would wait for them
		web.Close()
	})
	s.url = web.URL
	return s
}

// watch records and checks what passes. (A client in another process cannot be
// given a transport, so the check sits at the server.)
func (s *server) watch(next http.Handler) http.Handler {
	doc := wiretest.Load(s.t)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/stream") {
			next.ServeHTTP(&streamed{ResponseWriter: w, checked: doc.Frames(s.t, r.URL.Path)}, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		if strings.HasPrefix(r.URL.Path, "/v1/") && r.Method != http.MethodOptions { // which the document does not know
			s.note(r, rec.Code, body)
			if err := doc.CheckReply(r.Method, r.URL.Path, rec.Code, body); err != nil && !(rec.Code >= 400 && sandBase(r)) {
				s.t.Errorf("%s %s: reply %d is not as the document says: %v\n%s", r.Method, r.URL.Path, rec.Code, err, body)
			}
		}
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body) // the client may be gone
	})
}

// streamed passes a stream on as it comes, and to what checks it. (An error
// instead of a stream is not checked.)
type streamed struct {
	http.ResponseWriter
	checked io.Writer
}

// Write implements http.ResponseWriter.
func (s *streamed) Write(p []byte) (int, error) {
	if s.Header().Get("Content-Type") == "text/event-stream" {
		_, _ = s.checked.Write(p) // it takes all
	}
	return s.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (s *streamed) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// sandBase tells a request that is answered in SandBase's error names, which
// the document does not know.
func sandBase(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("X-Api-Key"), "sk-sb-") ||
		strings.HasPrefix(r.Header.Get("Authorization"), "Bearer sk-sb-")
}

func (s *server) note(r *http.Request, status int, body []byte) {
	c := call{method: r.Method, path: r.URL.Path, retry: r.Header.Get("X-Stainless-Retry-Count"), status: status}
	if status >= 400 {
		var e struct{ Error struct{ Message string } }
		if err := json.Unmarshal(body, &e); err != nil {
			s.t.Errorf("%s %s: %d with a body that is not JSON: %v", r.Method, r.URL.Path, status, err)
		}
		c.message = e.Error.Message
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
}

// take returns the calls since the last take.
func (s *server) take() []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// post sends a request that must succeed and returns the id in its answer.
func (s *server) post(path, body string) string {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", apiKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var made struct{ ID string }
	if err := json.Unmarshal(answer, &made); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("POST %s: %d %s %v", path, resp.StatusCode, answer, err)
	}
	return made.ID
}

func (s *server) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// seed makes the fixtures of the SDK's tests: each is made through the API, so
// that its document is what the server writes, and then gets the fixture's id.
func (s *server) seed(withSession bool) {
	s.t.Helper()
	ctx := s.t.Context()
	id := s.post("/v1/environments", `{"name":"seeded","config":{"type":"cloud"}}`)
	env, err := s.store.Environment(ctx, fixtureSpace, id)
	s.ok(err)
	s.ok(s.store.DeleteEnvironment(ctx, fixtureSpace, id))
	env.ID = fixtureEnv
	s.ok(s.store.CreateEnvironment(ctx, env))
	for _, fixture := range []string{fixtureAgent, fixtureRoster} {
		agent, err := s.store.Agent(ctx, fixtureSpace, s.post("/v1/agents", `{"name":"seeded","model":"claude-sonnet-4-6"}`), 0)
		s.ok(err)
		agent.ID = fixture
		s.ok(s.store.CreateAgent(ctx, agent))
	}
	if withSession {
		id := s.post("/v1/sessions", fmt.Sprintf(`{"agent":%q,"environment_id":%q}`, fixtureAgent, fixtureEnv))
		session, err := s.store.Session(ctx, fixtureSpace, id)
		s.ok(err)
		s.ok(s.store.DeleteSession(ctx, fixtureSpace, id, func(control.SessionRecord) error { return nil }))
		var doc map[string]any
		s.ok(json.Unmarshal(session.Document, &doc))
		doc["thread"] = fixtureThread
		session.Document, err = json.Marshal(doc)
		s.ok(err)
		session.ID = fixtureSession
		s.ok(s.store.CreateSession(ctx, session))
	}
	s.take()
}

// many is how many environments the clients page through: more than two pages
// of a hundred.
const many = 250

// fill makes so many environments, named page-000 and so on.
func (s *server) fill() {
	s.t.Helper()
	ctx := s.t.Context()
	env, err := s.store.Environment(ctx, fixtureSpace, s.post("/v1/environments", `{"name":"page-000"}`))
	s.ok(err)
	for n := 1; n < many; n++ {
		env.ID, env.Name = fmt.Sprintf("env_01page%018d", n), fmt.Sprintf("page-%03d", n)
		env.CreatedAt = env.CreatedAt.Add(time.Microsecond)
		s.ok(s.store.CreateEnvironment(ctx, env))
	}
	s.take()
}

// sandBaseKey makes a key that speaks SandBase's error names.
func (s *server) sandBaseKey() string {
	s.t.Helper()
	secret, _, err := s.service.CreateKey(s.t.Context(), fixtureSpace, "sandbase", control.KeyAPI, true)
	s.ok(err)
	return secret
}

// conflictsOnce fails the test unless there were so many conflicts and no client
// tried any of them again.
func (s *server) conflictsOnce(calls []call, want int) {
	s.t.Helper()
	got := 0
	for _, c := range calls {
		if c.status == http.StatusConflict {
			got++
			if c.retry != "" && c.retry != "0" {
				s.t.Errorf("%s %s: 409 was retried", c.method, c.path)
			}
		}
	}
	if got != want {
		s.t.Errorf("%d conflicts reached the server, want %d", got, want)
	}
}

// unavailable ends a test whose client cannot be had here: in CI that fails.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatalf("not run: "+format, args...)
	}
	t.Skipf("not run: "+format, args...)
}

// tail is the end of a tool's output.
func tail(out []byte) []byte {
	return out[max(0, len(out)-4000):]
}

// trimmed is a tool's one-line answer.
func trimmed(out []byte) string { return string(bytes.TrimSpace(out)) }
