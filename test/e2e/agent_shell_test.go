package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// askers are programs that page or ask where somebody sits at a terminal, with
// words of what they do where nobody does. An empty word is any outcome.
var askers = []struct{ command, says string }{
	{"git log", "change 60"},
	{"git log -p | tail -3", "+1"},
	{"git diff HEAD~1", "+60"},
	{"git show", "change 60"},
	{"git branch -a", "main"},
	{"git help -a | head -1", ""},
	{"less many.txt", "\n5000\n"},
	{"more many.txt", "\n5000\n"},
	{"python3 -c 'help(str)'", "casefold"},
	{"psql --help=commands | tail -3; psql -h 127.0.0.1 -U nobody", "refused"},
	{"git commit --amend", ""},
	{"git rebase -i HEAD~2; git rebase --abort", ""},
	{"echo 61 > n; git add -p; git checkout -q n", ""},
	{"printf 'protocol=https\\nhost=example.com\\n' | git credential fill", "terminal prompts disabled"},
	{"nano many.txt", ""},
	{"vim many.txt; echo ended $?", "ended 1"},
	{"vi new.txt; echo ended $?", "ended 1"},
	{"view many.txt; echo ended $?", "ended 1"},
	{"vimdiff many.txt n; echo ended $?", "ended 1"},
	{"git -c core.editor=vim commit --amend; echo ended $?", "ended 1"},
	{"vim -es -c '%s/^5000$/last/' -c wq many.txt; tail -1 many.txt; seq 5000 > many.txt", "last"},
	{"vim -c '%s/^5000$/end/' -c wq many.txt; tail -1 many.txt; seq 5000 > many.txt", "\nend\n"},
	{"top", "tty"},
	{"htop", ""},
	{"screen", "terminal"},
	{"tmux", "terminal"},
	{"passwd root", ""},
	{"su nobody -s /bin/bash", ""},
	{"ssh-keygen -t ed25519", ""},
	{"openssl req -new -newkey rsa:2048 -keyout key.pem -out req.pem", ""},
	{"gpg --full-generate-key", ""},
	{"npm init", "package.json"},
	{"python3", ""},
	{"node", ""},
	{"irb", ""},
	{"php -a", ""},
	{"sqlite3", ""},
	{"bc", ""},
	{"rm -i many.txt; ls many.txt", "many.txt"},
	{"read -p 'Continue? ' answer; echo \"[$answer]\"", "[]"},
	{"zip -q many.zip many.txt; unzip many.zip", ""},
	{"zip -e secret.zip many.txt", ""},
	{"dpkg-reconfigure tzdata", ""},
}

// TestAgentShellAsksNobody runs programs that page or ask: each ends at once, and
// the shell keeps its directory and variables.
func TestAgentShellAsksNobody(t *testing.T) {
	s, _ := newAgentServer(t, "")
	session := s.session(s.toolAgent("always_allow"), s.environment(object{}))
	calls := []modeltest.ToolUse{bash(`mkdir -p repo && cd repo && git init -q -b main && git config user.email a@example.com && git config user.name a &&
seq 5000 > many.txt && for i in $(seq 60); do echo $i > n && git add n && git commit -qm "change $i"; done; KEPT=variable; echo made`)}
	for _, a := range askers {
		calls = append(calls, bash(a.command))
	}
	calls = append(calls, bash("pwd; echo $KEPT"))
	s.say(session, modeltest.Script{{Tools: calls}, {Text: "done"}}.Message())
	var results []event
	for _, e := range s.idle(session, 1, 10*time.Minute) {
		if e.Type == "agent.tool_result" {
			results = append(results, e)
		}
	}
	if len(results) != len(calls) {
		t.Fatalf("%d results of %d calls", len(results), len(calls))
	}
	for i, a := range askers {
		text := results[i+1].text()
		t.Logf("%s: %.200q", a.command, text)
		if strings.Contains(text, "timed out") || !strings.Contains(text, a.says) {
			t.Errorf("%s: %.400q, want %q in it", a.command, text, a.says)
		}
	}
	if got := results[len(results)-1].text(); !strings.HasPrefix(got, "/workspace/repo\nvariable\n") {
		t.Errorf("the shell afterwards: %q", got)
	}
}
