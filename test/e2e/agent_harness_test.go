package e2e

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/httpapi/wiretest"
)

const modelKey = "sk-model-e2e-9876543210"

// newModel starts a scripted model. A request that the Messages API would
// refuse fails the test.
func newModel(t *testing.T, rules ...modeltest.Rule) (*modeltest.Server, string) {
	t.Helper()
	model := &modeltest.Server{Key: modelKey, Rules: rules}
	endpoint := httptest.NewServer(model)
	t.Cleanup(func() {
		endpoint.CloseClientConnections()
		endpoint.Close()
		if problems := model.Problems(); len(problems) > 0 {
			t.Errorf("the model refused requests: %q", problems)
		}
	})
	return model, endpoint.URL
}

// newAgentServer starts a server whose agents have a scripted model.
func newAgentServer(t *testing.T, config string, rules ...modeltest.Rule) (*server, *modeltest.Server) {
	t.Helper()
	model, address := newModel(t, rules...)
	t.Setenv("ATOLL_MODEL_URL", address)
	t.Setenv("ATOLL_MODEL_KEY", modelKey)
	return newServer(t, config), model
}

// toolAgent creates an agent with the built-in tools under a permission policy.
func (s *server) toolAgent(policy string) string {
	s.t.Helper()
	var out struct{ ID string }
	s.call("POST", "/v1/agents", object{"name": "tools", "model": "claude-opus-4-8", "tools": []object{{
		"type": "agent_toolset_20260401", "default_config": object{"permission_policy": object{"type": policy}},
	}}}, &out)
	return out.ID
}

// send sends one event to a session.
func (s *server) send(session string, event object) {
	s.t.Helper()
	s.call("POST", "/v1/sessions/"+session+"/events", object{"events": []object{event}}, nil)
}

// say sends a message of the user.
func (s *server) say(session, text string) {
	s.t.Helper()
	s.send(session, object{"type": "user.message", "content": []object{{"type": "text", "text": text}}})
}

// event is an event as a client sees it.
type event struct {
	ID, Type    string
	ToolUseID   string `json:"tool_use_id"`
	Name        string
	ProcessedAt *string `json:"processed_at"`
	Content     []struct{ Type, Text string }
	IsError     *bool  `json:"is_error"`
	StartID     string `json:"model_request_start_id"`
	StopReason  struct {
		Type     string
		EventIDs []string `json:"event_ids"`
	} `json:"stop_reason"`
	Error struct{ Type, Message string }
}

func (e event) text() string {
	var all []string
	for _, c := range e.Content {
		all = append(all, c.Text)
	}
	return strings.Join(all, "\n")
}

// events lists a session's whole log; false when the server does not answer.
func (s *server) events(session string) ([]event, bool) {
	s.t.Helper()
	var all []event
	page := ""
	for {
		var list struct {
			Data     []event
			NextPage string `json:"next_page"`
		}
		if s.try("GET", "/v1/sessions/"+session+"/events?limit=1000"+page, nil, &list) != 200 {
			return nil, false
		}
		all = append(all, list.Data...)
		if list.NextPage == "" {
			return all, true
		}
		page = "&page=" + url.QueryEscape(list.NextPage)
	}
}

// idle waits until a session has been idle n times and returns its log.
func (s *server) idle(session string, n int, limit time.Duration) []event {
	s.t.Helper()
	var log []event
	waitFor(s.t, limit, fmt.Sprintf("session %s to be idle %d times", session, n), func() bool {
		var ok bool
		log, ok = s.events(session)
		return ok && count(log, "session.status_idle") >= n
	})
	s.validate(session)
	return log
}

// validate holds every event of a session's log to the official document.
func (s *server) validate(session string) {
	s.t.Helper()
	path := "/v1/sessions/" + session + "/events"
	var body string
	if code := s.try("GET", path+"?limit=1000", nil, &body); code != 200 {
		s.t.Errorf("listing events: %d", code)
		return
	}
	if err := wiretest.Load(s.t).CheckReply("GET", path, 200, []byte(body)); err != nil {
		s.t.Errorf("an event does not fit the OpenAPI document: %v", err)
	}
}

func count(log []event, kind string) (n int) {
	for _, e := range log {
		if e.Type == kind {
			n++
		}
	}
	return n
}

func kinds(log []event) (out []string) {
	for _, e := range log {
		out = append(out, e.Type)
	}
	return out
}

// withoutCutRequests leaves out the spans of requests that had no reply.
func withoutCutRequests(log []event) []event {
	cut := map[string]bool{}
	for _, e := range log {
		if e.Type == "span.model_request_end" && e.IsError != nil && *e.IsError {
			cut[e.ID], cut[e.StartID] = true, true
		}
	}
	return slices.DeleteFunc(slices.Clone(log), func(e event) bool { return cut[e.ID] })
}

func bash(command string) modeltest.ToolUse {
	input, _ := json.Marshal(map[string]string{"command": command}) // strings only
	return modeltest.ToolUse{Name: "bash", Input: input}
}

// quickstart is how the model plays the official quickstart.
var quickstart = modeltest.Rule{
	Match: regexp.MustCompile(`(?i)fibonacci`),
	Play: modeltest.Script{
		{Thinking: "A file, then a run.", Text: "I write the script and run it.", Tools: []modeltest.ToolUse{
			{Name: "write", Input: json.RawMessage(`{"file_path":"fib.py","content":"a, b = 0, 1\nfor _ in range(10):\n    print(a, end=' ')\n    a, b = b, a + b\n"}`)},
			bash("python3 fib.py"),
		}},
		{Text: "The first ten: {{result}}"},
	},
}
