package e2e

import (
	"encoding/json"
	"fmt"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// hourChanges is how many commits the repository of the coding agent has: its
// log is longer than any screen, so that a pager would wait for a key.
const hourChanges = 60

// gitRepository makes a bare repository app.git in a new directory, which it
// returns: a small Python package with a test that fails, and a history.
func gitRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := fmt.Sprintf(`set -e
git init -q -b main work && cd work
printf 'def double(n):\n    return n + n + 1\n' > app.py
printf 'import app\n\n\ndef test_double():\n    assert app.double(21) == 42\n' > test_app.py
printf 'hello from the dev server\n' > index.html
git add . && git commit -qm 'begin'
for i in $(seq 2 %d); do echo $i > count && git add count && git commit -qm "change $i"; done
cd .. && git clone -q --bare work app.git && git -C app.git config http.receivepack true`, hourChanges)
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("making the repository: %v\n%s", err, out)
	}
	return dir
}

// call is one tool call of the coding agent, and words that its result has.
type call struct {
	use  modeltest.ToolUse
	says string
}

// shell is a bash call that also tells the shell's state behind the command's
// own output, and ends with the command's own status.
func shell(command, says string) call {
	return call{bash(command + "\n" + `status=$?; echo "at $PWD with $KEPT and $(jobs -pr | wc -l) running"; (exit $status)`), says}
}

// toolCall is a call of another tool than bash, with its input as pairs.
func toolCall(name, says string, input object) call {
	b, _ := json.Marshal(input) // strings only
	return call{modeltest.ToolUse{Name: name, Input: b}, says}
}

// hour is what a coding agent does. The lines "at … with …" are the shell's state:
// directory, variable and background jobs.
func hour() []call {
	const quiet, serving = "at /workspace/app with variable and 0 running", "at /workspace/app with variable and 1 running"
	fetch := `for i in $(seq 100); do curl -sf http://127.0.0.1:8000/ && break; sleep 0.1; done`
	return []call{
		{bash("export GIT_SSL_CAINFO=/tmp/site.pem; git config --global user.email a@example.com; git config --global user.name a; git clone https://git.example.com/app.git && cd app; export KEPT=variable; pwd"), "/workspace/app"},
		shell("git log", "change 2\n"),
		shell("git log --stat -p | grep -c ^commit", "60\n"+quiet),
		shell("git diff HEAD~1", "+60"),
		shell("git show HEAD; git branch -a; git blame app.py", "remotes/origin/main"),
		shell("seq 5000 | less; git help -a | more | tail -1; PAGER=less man git | head -1; "+`echo end`, "5000\n"),
		toolCall("read", "n + n + 1", object{"file_path": "/workspace/app/app.py"}),
		toolCall("grep", "app.py", object{"pattern": "def double", "path": "/workspace/app"}),
		toolCall("glob", "test_app.py", object{"pattern": "**/test_*.py", "path": "/workspace/app"}),
		shell("python3 -m venv .venv && . .venv/bin/activate && echo .venv > .gitignore && echo node_modules >> .gitignore && pip install -q pytest && pytest --version", "pytest "),
		shell("pytest -q", "1 failed"),
		toolCall("edit", "", object{"file_path": "/workspace/app/app.py", "old_string": "n + n + 1", "new_string": "n + n"}),
		shell("git diff", "+    return n + n\n"),
		shell("pytest -q", "1 passed"),
		shell("npm init -y >/dev/null && npm install --no-audit --no-fund ms && node -p 'require(\"ms\")(\"1h\")'", "3600000\n"+quiet),
		shell("python3 -m http.server --bind 127.0.0.1 8000 > /tmp/dev.log 2>&1 &", serving),
		shell(fetch, "hello from the dev server\n"+serving),
		shell("git status --short", serving),
		shell("kill %1; wait %1; echo ended $?", "ended 143\n"+quiet),
		shell("curl -sS http://127.0.0.1:8000/", "Failed to connect"),
		shell("node -e 'require(\"http\").createServer((q,r)=>r.end(\"hello from node\\n\")).listen(8000,\"127.0.0.1\")' & NODE=$!", serving),
		shell(fetch+"; kill $NODE; wait $NODE; echo ended $?", "hello from node\nended 143\n"+quiet),
		shell("timeout -s INT 1 python3 -c 'import time; time.sleep(1000)'; echo interrupted $?", "KeyboardInterrupt"),
		shell("find / 2>/dev/null | head -1; yes | head -1", "/\ny\n"+quiet),
		shell("git add -A && git commit -qm 'double doubles' && git push -q origin main; git status -sb | head -1", "## main...origin/main\n"+quiet),
		shell("git fetch -q && git log -1 --format=%s origin/main", "double doubles\n"+quiet),
		shell("setsid python3 -m http.server --bind 127.0.0.1 8001 > /tmp/dev.log 2>&1 & ", serving),
	}
}

// TestCodingAgentsHour lets an agent do what coding agents do, from clone to push,
// against a git server of the test and the real registries. No call times out,
// and the shell keeps its directory, variables and jobs from call to call. At the
// end the user interrupts a command.
func TestCodingAgentsHour(t *testing.T) {
	repository := gitRepository(t)
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	site := newSite(t)
	site.hosts["git"] = &cgi.Handler{Path: git, Args: []string{"http-backend"}, Dir: repository,
		Env: []string{"GIT_PROJECT_ROOT=" + repository, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=a", "GIT_CONFIG_NOSYSTEM=1"}}
	s, _ := newAgentServer(t, site.config())
	session := s.session(s.toolAgent("always_allow"), s.environment(object{"networking": object{
		"type": "limited", "allowed_hosts": []string{"git.example.com"}, "allow_package_managers": true}}))
	s.put(session, "/tmp/site.pem", site.CA)

	calls, script := hour(), modeltest.Script{}
	for _, c := range calls {
		script = append(script, modeltest.Reply{Tools: []modeltest.ToolUse{c.use}})
	}
	s.say(session, append(script, modeltest.Reply{Text: "done"}).Message())
	results := toolResults(s.idle(session, 1, 8*time.Minute))
	if len(results) != len(calls) {
		t.Errorf("%d results of %d calls", len(results), len(calls))
	}
	for i, r := range results {
		text := r.text()
		t.Logf("%s: %.200q", calls[i].use.Input, text)
		if strings.Contains(text, "timed out") || !strings.Contains(text, calls[i].says) {
			t.Errorf("%s: %.1500q, want %q in it", calls[i].use.Input, text, calls[i].says)
		}
	}
	out, err := exec.Command("git", "-C", filepath.Join(repository, "app.git"), "log", "-1", "--format=%s", "main").Output()
	if err != nil || string(out) != "double doubles\n" {
		t.Errorf("the git server has %q, %v", out, err)
	}

	// The user interrupts a command. The shell is a new one then; files, and a
	// server that was started with setsid, are there.
	s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{bash("touch /tmp/begun; sleep 1000")}}, {Text: "never"}}.Message())
	waitFor(t, time.Minute, "the command to run", func() bool { return s.exec(session, "test -e /tmp/begun").Code == 0 })
	s.send(session, object{"type": "user.interrupt"})
	s.idle(session, 2, time.Minute)
	s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{bash("pwd; cd app && git status --short; git log -1 --format=%s; curl -sS http://127.0.0.1:8001/")}}, {Text: "done"}}.Message())
	results = toolResults(s.idle(session, 3, time.Minute))
	if got, want := results[len(results)-1].text(), "/workspace\ndouble doubles\nhello from the dev server\n"; !strings.HasPrefix(got, want) {
		t.Errorf("after the interrupt: %q, want %q", got, want)
	}
}

// toolResults are the results of built-in tools in a log.
func toolResults(log []event) (out []event) {
	for _, e := range log {
		if e.Type == "agent.tool_result" {
			out = append(out, e)
		}
	}
	return out
}
