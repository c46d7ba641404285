package e2e

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/atoll-run/atoll/atolltest"
	"github.com/atoll-run/atoll/test/clients"
)

// TestQuickstart runs the official quickstart with the SDK of each language; the
// base URL is all that is changed.
func TestQuickstart(t *testing.T) {
	s, _ := newAgentServer(t, "", quickstart)
	t.Run("Go", func(t *testing.T) { goQuickstart(t, s) })
	t.Run("Python", func(t *testing.T) {
		interpreter, err := clients.Python(t.Context())
		if err != nil {
			missing(t, err)
		}
		script(t, s, clients.Tool(t.Context(), interpreter, "testdata/quickstart.py"))
	})
	for _, module := range []string{"@anthropic-ai/sdk", "anthropic-sdk-0"} {
		t.Run("TypeScript "+module, func(t *testing.T) {
			modules, err := clients.Node(t.Context())
			if err != nil {
				missing(t, err)
			}
			file, err := clients.Script("testdata/quickstart.mjs", modules, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			script(t, s, clients.Tool(t.Context(), "node", file, module))
		})
	}
}

// missing is for a client that is not to be had: a skip, and a failure in CI.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

func script(t *testing.T, s *server, cmd *exec.Cmd) {
	t.Helper()
	cmd.Env = append(cmd.Env, "ATOLL_URL="+s.URL, "ATOLL_KEY="+atolltest.Key)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", tail(out, 3000))
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "ok") {
		t.Errorf("the quickstart ended with %v", err)
	}
}

func goQuickstart(t *testing.T, s *server) {
	ctx := t.Context()
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(s.URL), option.WithAPIKey(atolltest.Key))
	agent, err := client.Beta.Agents.New(ctx, anthropic.BetaAgentNewParams{
		Name: "Coding Assistant", Model: anthropic.BetaManagedAgentsModelConfigParams{ID: "claude-opus-4-8"},
		Tools: []anthropic.BetaAgentNewParamsToolUnion{{OfAgentToolset20260401: &anthropic.BetaManagedAgentsAgentToolset20260401Params{
			Type: "agent_toolset_20260401",
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	environment := s.environment(object{"base_template": "slim"})
	session, err := client.Beta.Sessions.New(ctx, anthropic.BetaSessionNewParams{
		Agent: anthropic.BetaSessionNewParamsAgentUnion{OfString: anthropic.String(agent.ID)}, EnvironmentID: environment,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream := client.Beta.Sessions.Events.StreamEvents(ctx, session.ID, anthropic.BetaSessionEventStreamParams{})
	defer stream.Close()
	s.say(session.ID, "Write a Python script that prints the Fibonacci numbers, and run it.")
	var seen []string
	said := ""
	for stream.Next() {
		e := stream.Current()
		seen = append(seen, e.ID)
		if e.Type == "agent.message" {
			said = e.RawJSON()
		}
		if e.Type == "session.status_idle" {
			break
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said, "0 1 1 2 3 5 8 13 21 34") {
		t.Errorf("the answer is %s", said)
	}
	var listed []string
	pages := client.Beta.Sessions.Events.ListAutoPaging(ctx, session.ID, anthropic.BetaSessionEventListParams{})
	for pages.Next() {
		listed = append(listed, pages.Current().ID)
	}
	if err := pages.Err(); err != nil || !slices.Equal(seen, listed) {
		t.Errorf("streamed %v\nlisted %v, %v", seen, listed, err)
	}
}
