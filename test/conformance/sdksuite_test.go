package conformance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/test/clients"
)

// The tests of both SDKs that Atoll must answer as a real server does; those
// that send what a real server refuses (a made-up cursor, reserved fields) must
// be refused with exactly this.
var suite = map[string]refusal{
	"TestBetaEnvironmentNewWithOptionalParams":     {},
	"TestBetaEnvironmentGetWithOptionalParams":     {},
	"TestBetaEnvironmentUpdateWithOptionalParams":  {},
	"TestBetaEnvironmentDeleteWithOptionalParams":  {},
	"TestBetaEnvironmentArchiveWithOptionalParams": {},
	"TestBetaEnvironmentListWithOptionalParams":    {400, "invalid page cursor"},

	// The endpoint of the tests has no model of that name.
	"TestModelGetWithOptionalParams":      {404, `Model "model_id" not found.`},
	"TestModelListWithOptionalParams":     {400, "before_id: cannot be given together with after_id"},
	"TestBetaModelGetWithOptionalParams":  {404, `Model "model_id" not found.`},
	"TestBetaModelListWithOptionalParams": {400, "before_id: cannot be given together with after_id"},

	"TestBetaAgentNewWithOptionalParams":         {400, "skills: not supported yet by this server"},
	"TestBetaAgentGetWithOptionalParams":         {400, "version: Input should be greater than or equal to 1"},
	"TestBetaAgentUpdateWithOptionalParams":      {400, "skills: not supported yet by this server"},
	"TestBetaAgentArchiveWithOptionalParams":     {},
	"TestBetaAgentListWithOptionalParams":        {400, "limit: Input should be greater than or equal to 1"},
	"TestBetaAgentVersionListWithOptionalParams": {400, "limit: Input should be greater than or equal to 1"},

	"TestBetaSessionNewWithOptionalParams":     {400, "resources: not supported yet by this server"},
	"TestBetaSessionGetWithOptionalParams":     {},
	"TestBetaSessionUpdateWithOptionalParams":  {400, "vault_ids: not supported yet by this server"},
	"TestBetaSessionListWithOptionalParams":    {400, "limit: Input should be greater than or equal to 1"},
	"TestBetaSessionDeleteWithOptionalParams":  {},
	"TestBetaSessionArchiveWithOptionalParams": {},

	"TestBetaSessionResourceListWithOptionalParams": {400, "limit: Input should be greater than or equal to 1"},

	"TestBetaSessionEventListWithOptionalParams":       {400, "limit: Input should be greater than or equal to 1"},
	"TestBetaSessionEventSendWithOptionalParams":       {},
	"TestBetaSessionThreadGetWithOptionalParams":       {},
	"TestBetaSessionThreadListWithOptionalParams":      {400, "limit: Input should be greater than or equal to 1"},
	"TestBetaSessionThreadArchiveWithOptionalParams":   {400, "Thread " + fixtureThread + " is the primary thread of its session and cannot be archived; archive the session instead."},
	"TestBetaSessionThreadEventListWithOptionalParams": {400, "limit: Input should be greater than or equal to 1"},
}

// refusal is the error that is expected; none has no status.
type refusal struct {
	status  int
	message string
}

// later are the beginnings of names of tests of what Atoll does not serve yet.
var later = map[string]string{
	"TestBetaEnvironmentWork": "the queue for self-hosted workers",
	"TestBetaSessionResource": "resources",
}

func TestGoSDKSuites(t *testing.T) {
	t.Parallel()
	for _, module := range []string{"github.com/anthropics/anthropic-sdk-go/v2", "github.com/anthropics/anthropic-sdk-go"} {
		t.Run(path.Base(module), func(t *testing.T) {
			t.Parallel()
			binary := sdkTests(t, module)
			names := upstream(t, binary)
			for name := range suite {
				if !slices.Contains(names, name) {
					t.Errorf("%s is gone upstream", name)
				}
			}
			for _, name := range names {
				want, listed := suite[name]
				if reason := deferred(name); reason != "" && !listed {
					t.Logf("%s: not served yet: %s", name, reason)
					continue
				}
				if !listed {
					t.Errorf("%s is new upstream: list it", name)
					continue
				}
				t.Run(name, func(t *testing.T) { runUpstream(t, binary, name, want) })
			}
		})
	}
}

func deferred(name string) string {
	for prefix, reason := range later {
		if strings.HasPrefix(name, prefix) {
			return reason
		}
	}
	return ""
}

// sdkTests compiles an SDK's own tests, once for each version of it and of Go.
func sdkTests(t *testing.T, module string) string {
	t.Helper()
	version, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		t.Fatalf("finding %s: %v", module, err)
	}
	t.Logf("%s %s", module, trimmed(version))
	binary, err := clients.Cached(fmt.Sprintf("sdk-%s-%s.test", trimmed(version), runtime.Version()), func(path string) error {
		// The tests' own dependencies are not in our go.mod and need not be: they
		// go into a copy of it.
		mod, err := exec.Command("go", "env", "GOMOD").Output()
		if err != nil {
			return err
		}
		dir := t.TempDir()
		for _, name := range []string{"go.mod", "go.sum"} {
			text, err := os.ReadFile(filepath.Join(filepath.Dir(trimmed(mod)), name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return err
			}
		}
		out, err := clients.Tool(t.Context(), "go", "test", "-c", "-mod=mod", "-modfile="+filepath.Join(dir, "go.mod"), "-o", path, module).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, tail(out))
		}
		return nil
	})
	if err != nil {
		unavailable(t, "compiling the tests of %s: %v", module, err)
	}
	return binary
}

// upstream lists the tests of the resources that Atoll has.
func upstream(t *testing.T, binary string) []string {
	t.Helper()
	out, err := clients.Tool(t.Context(), binary, "-test.list", "^Test(Beta(Environment|Agent|Session|Model)|Model(Get|List))").Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(out))
	if len(names) < len(suite) {
		t.Fatalf("only %d tests upstream", len(names))
	}
	return names
}

// runUpstream runs one test against a fresh server.
func runUpstream(t *testing.T, binary, name string, want refusal) {
	t.Parallel()
	s := start(t)
	// An environment that a session refers to cannot be deleted.
	s.seed(name != "TestBetaEnvironmentDeleteWithOptionalParams")
	cmd := clients.Tool(t.Context(), binary, "-test.v", "-test.run", "^"+name+"$")
	cmd.Env = append(cmd.Env, "TEST_API_BASE_URL="+s.url)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	calls := s.take()
	if len(calls) != 1 || strings.Contains(string(out), "--- SKIP") {
		t.Fatalf("%d requests came instead of one: %+v\n%s", len(calls), calls, tail(out))
	}
	got := refusal{calls[0].status, calls[0].message}
	if want.status == 0 {
		want.status = 200
	}
	if got != want || (err == nil) != (want.status == 200) {
		t.Errorf("answered %d %q, want %d %q; the test ended with %v\n%s", got.status, got.message, want.status, want.message, err, tail(out))
	}
}
