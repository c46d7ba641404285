package conformance

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The versions of the TypeScript client, one for each generation.
const (
	npmClient      = "1.12.0"
	npmFirstClient = "0.120.0"
)

// TestPythonClient runs python/scenario.py with the newest client that the
// registry has.
func TestPythonClient(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		unavailable(t, "python3 is missing: %v", err)
	}
	version, err := exec.Command(python, "-c", "import platform; print(platform.python_version())").Output()
	if err != nil {
		t.Fatal(err)
	}
	// A virtual environment holds its own path in its scripts; python -m does not
	// mind that it is renamed.
	dir, err := cached(t, "python-"+trimmed(version), func(path string) error {
		out, err := tool(t.Context(), python, "-m", "venv", path).CombinedOutput()
		if err != nil {
			return fmt.Errorf("making a virtual environment: %w\n%s", err, tail(out))
		}
		return nil
	})
	if err != nil {
		unavailable(t, "%v", err)
	}
	interpreter := filepath.Join(dir, "bin", "python3")
	if out, err := tool(t.Context(), interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "anthropic").CombinedOutput(); err != nil {
		unavailable(t, "installing the newest client: %v\n%s", err, tail(out))
	}
	scenario(t, interpreter, "python/scenario.py")
}

// TestTypeScriptClient runs js/scenario.mjs with the client of each generation.
func TestTypeScriptClient(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			unavailable(t, "%s is missing: %v", name, err)
		}
	}
	dir, err := cached(t, "npm-"+npmClient+"-"+npmFirstClient, func(path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		out, err := tool(t.Context(), "npm", "install", "--no-save", "--no-package-lock", "--omit-lockfile-registry-resolved",
			"--no-audit", "--no-fund", "--prefix", path,
			"@anthropic-ai/sdk@"+npmClient, "anthropic-sdk-0@npm:@anthropic-ai/sdk@"+npmFirstClient).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, tail(out))
		}
		return nil
	})
	if err != nil {
		unavailable(t, "installing the clients: %v", err)
	}
	// Modules are looked for beside the script.
	beside := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "node_modules"), filepath.Join(beside, "node_modules")); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("js/scenario.mjs")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(beside, "scenario.mjs"), script, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"@anthropic-ai/sdk", "anthropic-sdk-0"} {
		t.Run(strings.ReplaceAll(module, "/", "-"), func(t *testing.T) {
			t.Parallel()
			scenario(t, "node", filepath.Join(beside, "scenario.mjs"), module)
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
	cmd := tool(t.Context(), program, args...)
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
