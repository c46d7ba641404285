package conformance

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/test/clients"
)

// echoBox stands for a sandbox: its tools say what they were told.
type echoBox struct{}

// RunTool implements toolset.Box.
func (echoBox) RunTool(_ context.Context, call sandbox.ToolCall) (sandbox.ToolResult, error) {
	return sandbox.ToolResult{Text: call.Name + " ran with " + string(call.Input)}, nil
}

// CancelTool implements toolset.Box.
func (echoBox) CancelTool(context.Context, string) error { return nil }

// startAgents starts a server whose agents have a scripted model and the real loop
// and tools. A request that the Messages API would refuse fails the test.
func startAgents(t *testing.T) *server {
	t.Helper()
	model := &modeltest.Server{}
	endpoint := httptest.NewServer(model)
	t.Cleanup(func() {
		endpoint.CloseClientConnections()
		endpoint.Close()
		if problems := model.Problems(); len(problems) > 0 {
			t.Errorf("the model refused requests: %q", problems)
		}
	})
	client, err := agent.NewClient(agent.ModelConfig{BaseURL: endpoint.URL})
	if err != nil {
		t.Fatal(err)
	}
	set, err := toolset.New(toolset.Config{})
	if err != nil {
		t.Fatal(err)
	}
	open := func(rec control.SessionRecord) (agent.Tools, error) {
		a, err := control.SessionAgent(rec)
		return set.Open(toolset.SessionConfig{ID: rec.ID, Box: echoBox{}, Tools: a.Tools, MCPServers: a.MCPServers}), err
	}
	return startWith(t, func(turns *control.Turns) (control.Loop, func()) {
		loop := agent.New(agent.Config{Turns: turns, Model: client, OpenTools: open})
		return loop, func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := loop.Shutdown(ctx); err != nil {
				t.Error(err)
			}
		}
	})
}

// runnerScript is the turn that the tool runners drive: a built-in tool that the
// server runs, one that has to be confirmed, the client's own tool, once with an
// input that is no object, and words with what the client's tool said.
func runnerScript(t *testing.T) string {
	t.Helper()
	use := func(name, input string) []modeltest.ToolUse {
		return []modeltest.ToolUse{{Name: name, Input: json.RawMessage(input)}}
	}
	return modeltest.Script{
		{Text: "I begin.", Tools: use("bash", `{"command":"ls"}`)},
		{Tools: use("lookup", `["an input that is no object"]`)},
		{Tools: append(use("read", `{"file_path":"a"}`), use("lookup", `{"key":"k"}`)...)},
		{Text: "Found: {{result}}"},
	}.Message()
}

// TestToolRunners drives a turn to its end with the tool runners of the official
// Python and TypeScript clients.
func TestToolRunners(t *testing.T) {
	t.Parallel()
	drive := func(t *testing.T, program string, args ...string) {
		t.Helper()
		s := startAgents(t)
		cmd := clients.Tool(t.Context(), program, args...)
		cmd.Env = append(cmd.Env, "ATOLL_URL="+s.url, "ATOLL_KEY="+apiKey, "ATOLL_SCRIPT="+runnerScript(t))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "ok") {
			t.Errorf("the runner ended with %v\n%s", err, tail(out))
		}
		for _, c := range s.take() {
			if c.status >= 400 {
				t.Errorf("%s %s: %d %s", c.method, c.path, c.status, c.message)
			}
		}
	}
	t.Run("python", func(t *testing.T) {
		t.Parallel()
		interpreter, err := clients.Python(t.Context())
		if err != nil {
			unavailable(t, "%v", err)
		}
		drive(t, interpreter, "python/runner.py")
	})
	t.Run("typescript", func(t *testing.T) {
		t.Parallel()
		modules, err := clients.Node(t.Context())
		if err != nil {
			unavailable(t, "%v", err)
		}
		script, err := clients.Script("js/runner.mjs", modules, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		drive(t, "node", script)
	})
}
