package conformance

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/test/clients"
)

// TestPythonClient runs python/scenario.py with the newest client that the
// registry has.
func TestPythonClient(t *testing.T) {
	t.Parallel()
	interpreter, err := clients.Python(t.Context())
	if err != nil {
		unavailable(t, "%v", err)
	}
	scenario(t, interpreter, "python/scenario.py")
}

// TestTypeScriptClient runs js/scenario.mjs with the client of each generation.
func TestTypeScriptClient(t *testing.T) {
	t.Parallel()
	modules, err := clients.Node(t.Context())
	if err != nil {
		unavailable(t, "%v", err)
	}
	script, err := clients.Script("js/scenario.mjs", modules, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"@anthropic-ai/sdk", "anthropic-sdk-0"} {
		t.Run(strings.ReplaceAll(module, "/", "-"), func(t *testing.T) {
			t.Parallel()
			scenario(t, "node", script, module)
		})
	}
}

// scenario runs a script against a seeded server. The script says "ok" last, and
// provokes two conflicts with each of its two keys.
func scenario(t *testing.T, program string, args ...string) {
	t.Helper()
	s := start(t)
	s.seed(true)
	s.fill()
	cmd := clients.Tool(t.Context(), program, args...)
	cmd.Env = append(cmd.Env, "ATOLL_URL="+s.url, "ATOLL_KEY="+apiKey, "ATOLL_SANDBASE_KEY="+s.sandBaseKey(),
		"ATOLL_ENVIRONMENT_IN_USE="+fixtureEnv, fmt.Sprintf("ATOLL_COUNT=%d", many+1))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", tail(out))
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "ok") {
		t.Errorf("the scenario ended with %v", err)
	}
	calls := s.take()
	s.conflictsOnce(calls, 4)
	for _, c := range calls {
		if c.status >= http.StatusInternalServerError {
			t.Errorf("%s %s: %d %s", c.method, c.path, c.status, c.message)
		}
	}
}
