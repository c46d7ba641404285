package agent_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/httpapi/wiretest"
	"github.com/atoll-run/atoll/internal/store"
)

// world is a loop over a real store and a scripted model. Its tools are made by
// hand, because the sandbox is not the point here.
type world struct {
	t       *testing.T
	store   *store.Store
	turns   *control.Turns
	service *control.Service
	model   *modeltest.Server
	tools   *tools
	runner  *agent.Runner
	config  agent.Config
	caller  control.Caller
	session string
}

// tools are a session's tools by hand. Each call is told to run, and waits for
// release if there is one.
type tools struct {
	offered []toolset.Tool
	failed  []*toolset.ServerError
	listing chan struct{} // closed by the first Tools, which then hangs; nil: none hangs

	mu      sync.Mutex
	calls   []toolset.Call
	hold    chan struct{} // nil: calls end at once
	begun   chan string   // gets the name of each call, if it has room
	cancels map[string]chan struct{}
	err     error    // what Run fails with
	content []string // blocks of each result; nil: a text that tells of the call
}

func (f *tools) Tools(ctx context.Context) ([]toolset.Tool, []*toolset.ServerError) {
	if f.listing != nil {
		close(f.listing)
		<-ctx.Done()
		f.listing = nil
	}
	return f.offered, f.failed
}

func (f *tools) Run(ctx context.Context, call toolset.Call) (toolset.Result, error) {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	cancelled := make(chan struct{})
	if f.cancels == nil {
		f.cancels = map[string]chan struct{}{}
	}
	f.cancels[call.ID] = cancelled
	hold, err := f.hold, f.err
	f.mu.Unlock()
	if err != nil {
		return toolset.Result{}, err
	}
	select {
	case f.begun <- call.Name:
	default:
	}
	if hold != nil {
		select {
		case <-hold:
		case <-cancelled:
			return result("interrupted", true), nil
		case <-ctx.Done():
			return toolset.Result{}, ctx.Err()
		}
	}
	r := result(fmt.Sprintf("%s ran with %s", call.Name, call.Input), false)
	if len(f.content) > 0 {
		r.Content = nil
	}
	for _, b := range f.content {
		r.Content = append(r.Content, json.RawMessage(b))
	}
	return r, nil
}

func result(text string, isError bool) toolset.Result {
	return toolset.Result{Content: []json.RawMessage{[]byte(fmt.Sprintf(`{"type":"text","text":%q}`, text))}, IsError: isError}
}

func (f *tools) Cancel(_ context.Context, call toolset.Call) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.cancels[call.ID])
	return nil
}

func (f *tools) Close() error { return nil }

func (f *tools) ran() []toolset.Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// builtin, custom and mcp are tools to offer.
func builtin(name, permission string) toolset.Tool {
	return toolset.Tool{Kind: toolset.KindBuiltin, ModelName: name, Name: name, Description: name, InputSchema: []byte(`{"type":"object"}`), Permission: permission}
}

func custom(name string) toolset.Tool {
	return toolset.Tool{Kind: toolset.KindCustom, ModelName: name, Name: name, Description: name, InputSchema: []byte(`{"type":"object"}`)}
}

func mcp(server, name, permission string) toolset.Tool {
	return toolset.Tool{Kind: toolset.KindMCP, ModelName: "mcp__" + server + "__" + name, Name: name, Server: server, Description: name,
		InputSchema: []byte(`{"type":"object"}`), Permission: permission}
}

func newWorld(t *testing.T, offered ...toolset.Tool) *world {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "atoll.db")})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: db, turns: control.NewTurns(db, nil), model: &modeltest.Server{Key: "sk-model"},
		tools: &tools{offered: offered, begun: make(chan string, 100)}, caller: control.Caller{Kind: control.KeyAPI}}
	endpoint := httptest.NewServer(w.model)
	client, err := agent.NewClient(agent.ModelConfig{BaseURL: endpoint.URL, Key: "sk-model", MaxTokens: 1000, ContextWindow: 20_000,
		Names: map[string]string{"claude-opus-4-8": "local-model"}})
	if err != nil {
		t.Fatal(err)
	}
	w.config = agent.Config{Turns: w.turns, Model: client, RetryBase: time.Millisecond,
		OpenTools: func(control.SessionRecord) (agent.Tools, error) { return w.tools, nil }}
	w.start()
	t.Cleanup(func() {
		w.stop()
		w.checkWire()
		endpoint.CloseClientConnections()
		endpoint.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if problems := w.model.Problems(); len(problems) > 0 {
			t.Errorf("the model refused requests: %q", problems)
		}
	})
	w.makeSession()
	return w
}

// checkWire holds what the test left, each event, the session and its thread, to
// the official document.
func (w *world) checkWire() {
	w.t.Helper()
	doc := wiretest.Load(w.t)
	check := func(path string, body any) {
		text, err := json.Marshal(body)
		if err == nil {
			err = doc.CheckReply("GET", path, 200, text)
		}
		if err != nil {
			w.t.Errorf("%s is not as the official document says: %v\n%s", path, err, text)
		}
	}
	for _, r := range w.model.Requests() {
		if err := doc.CheckRequest("POST", "/v1/messages", r.Body); err != nil {
			w.t.Errorf("a request to the model is not as the official document says: %.2000v\n%.3000s", err, r.Body)
		}
	}
	ctx := context.Background()
	for _, e := range w.log() {
		check("/v1/sessions/x/events", api.List[json.RawMessage]{Data: []json.RawMessage{e.Wire()}})
	}
	session, err := w.service.Session(ctx, w.caller, w.session)
	if err != nil {
		w.t.Error(err)
		return
	}
	check("/v1/sessions/x", session)
	threads, err := w.service.ListThreads(ctx, w.caller, w.session, api.Opt[int]{}, "", nil)
	if err != nil {
		w.t.Error(err)
	}
	check("/v1/sessions/x/threads", threads)
}

// start begins a loop, as a server does at its start.
func (w *world) start() {
	w.t.Helper()
	w.runner = agent.New(w.config)
	w.service = control.New(control.Config{Store: w.store, Turns: w.turns, Loop: w.runner, Templates: oneTemplate{}})
	if err := w.runner.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// stop ends the loop wherever it is.
func (w *world) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := w.runner.Shutdown(ctx); err != nil {
		w.t.Error(err)
	}
}

type oneTemplate struct{}

func (oneTemplate) Known(name string) bool { return name == "base" }
func (oneTemplate) Names() []string        { return []string{"base"} }

func (w *world) makeSession() {
	w.t.Helper()
	ctx := w.t.Context()
	if _, err := w.service.EnsureDefault(ctx, "sk-atoll-test-key", func(string) error { return nil }); err != nil {
		w.t.Fatal(err)
	}
	caller, err := w.service.Authenticate(ctx, "sk-atoll-test-key")
	if err != nil {
		w.t.Fatal(err)
	}
	w.caller = caller
	env, err := w.service.CreateEnvironment(ctx, caller, api.EnvironmentCreate{Name: "e"})
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := w.service.CreateAgent(ctx, caller, api.AgentCreate{Name: "a", Model: api.ModelParams{ID: "claude-opus-4-8"}, System: api.Some("You play scripts.")})
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := w.service.CreateSession(ctx, caller, api.SessionCreate{Agent: api.AgentChoice{Type: api.ChoiceAgent, ID: a.ID}, EnvironmentID: env.ID})
	if err != nil {
		w.t.Fatal(err)
	}
	w.session = s.ID
}

// queue puts an event into the session's queue and wakes the loop.
func (w *world) queue(kind string, fields any) string {
	w.t.Helper()
	return w.put(kind, fields, false)
}

// answer puts an event straight into the log and wakes the loop.
func (w *world) answer(kind string, fields any) string {
	w.t.Helper()
	return w.put(kind, fields, true)
}

func (w *world) put(kind string, fields any, direct bool) string {
	w.t.Helper()
	e := input(w.t, kind, fields)
	e.ID = w.turns.EventID()
	if direct {
		e.ProcessedAt = e.CreatedAt
		w.change(control.LogChange{Log: []control.EventRecord{e}})
	} else {
		w.change(control.LogChange{Queue: []control.EventRecord{e}})
	}
	return e.ID
}

// queueAll puts events into the session's queue at once and wakes the loop.
func (w *world) queueAll(events ...control.EventRecord) {
	w.t.Helper()
	for i := range events {
		events[i].ID = w.turns.EventID()
	}
	w.change(control.LogChange{Queue: events})
}

// change changes the session's log or queue and wakes the loop.
func (w *world) change(change control.LogChange) {
	w.t.Helper()
	made, err := w.store.ChangeLog(w.t.Context(), w.caller.Workspace, w.session, func(control.LogState) (control.LogChange, error) { return change, nil })
	if err != nil {
		w.t.Fatal(err)
	}
	w.runner.Wake(*made.Session)
}

// input is an event as a client sends it, without an id.
func input(t *testing.T, kind string, fields any) control.EventRecord {
	t.Helper()
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return control.EventRecord{Type: kind, Fields: text, CreatedAt: time.Now().UTC()}
}

func (w *world) say(script modeltest.Script) string {
	w.t.Helper()
	return w.queue(api.EventUserMessage, api.MessageFields{Content: says(script)})
}

// says is the content of a message that plays a script.
func says(script modeltest.Script) []json.RawMessage {
	return []json.RawMessage{text(script.Message())}
}

func text(s string) json.RawMessage {
	b, _ := json.Marshal(api.TextBlock{Type: "text", Text: s}) // strings only
	return b
}

func (w *world) log() []control.EventRecord {
	w.t.Helper()
	_, log, _, err := w.turns.Load(context.Background(), w.caller.Workspace, w.session, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return log
}

// until waits until the log fulfils a condition.
func (w *world) until(what string, ok func([]control.EventRecord) bool) []control.EventRecord {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		log := w.log()
		if ok(log) {
			return log
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within 30 s; the log is\n%s", what, show(log))
		}
	}
}

// untilIdle waits for the n-th time that the session goes idle.
func (w *world) untilIdle(n int) []control.EventRecord {
	w.t.Helper()
	return w.until(fmt.Sprintf("idle %d times", n), func(log []control.EventRecord) bool { return len(of(log, api.EventSessionIdle)) >= n })
}

func of(log []control.EventRecord, kinds ...string) (found []control.EventRecord) {
	for _, e := range log {
		if slices.Contains(kinds, e.Type) {
			found = append(found, e)
		}
	}
	return found
}

func kinds(log []control.EventRecord) (names []string) {
	for _, e := range log {
		names = append(names, e.Type)
	}
	return names
}

func show(log []control.EventRecord) string {
	var b strings.Builder
	for _, e := range log {
		fmt.Fprintf(&b, "  %3d %-35s %.300s\n", e.Seq, e.Type, e.Fields)
	}
	return b.String()
}

// fields reads an event.
func fields[T any](t *testing.T, e control.EventRecord) (f T) {
	t.Helper()
	if err := json.Unmarshal(e.Fields, &f); err != nil {
		t.Fatalf("%s: %v", e.Type, err)
	}
	return f
}

func texts(t *testing.T, log []control.EventRecord) (out []string) {
	t.Helper()
	for _, e := range of(log, api.EventAgentMessage) {
		for _, b := range fields[api.MessageFields](t, e).Content {
			var block api.TextBlock
			if err := json.Unmarshal(b, &block); err != nil {
				t.Fatal(err)
			}
			out = append(out, block.Text)
		}
	}
	return out
}

func equal[T cmp.Ordered](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}
