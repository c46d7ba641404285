package sandboxtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// testsOfTools are for engines that are [sandbox.Tools] too.
var testsOfTools = map[string]func(*testing.T, *toolSuite){
	"Shell": testShell, "ShellAlone": testShellAlone, "ShellSignals": testShellSignals, "ShellEnds": testShellEnds, "ShellOutput": testShellOutput, "FileTools": testFileTools, "ToolPaths": testToolPaths,
	"Search": testSearch, "ToolOnce": testToolOnce, "ToolCancel": testToolCancel, "ToolsLost": testToolsLost, "ToolsStopped": testToolsStopped,
	"ToolsFullDisk": testToolsFullDisk, "ToolInput": testToolInput, "ToolsHibernate": testToolsHibernate, "ToolsRevive": testToolsRevive,
}

// toolSuite is the suite with the tools of its engine.
type toolSuite struct {
	*suite
	tools sandbox.Tools
	calls int // of one test
}

// tool is what a call is made of in these tests.
type tool struct {
	id    string // empty: the next one
	name  string
	input map[string]any
}

func bash(command string) tool { return tool{name: "bash", input: map[string]any{"command": command}} }

func (s *toolSuite) call(t *testing.T, c tool) sandbox.ToolCall {
	t.Helper()
	input, err := json.Marshal(c.input)
	if err != nil {
		t.Fatal(err)
	}
	if c.id == "" {
		s.calls++
		c.id = fmt.Sprintf("sevt_%d", s.calls)
	}
	return sandbox.ToolCall{ID: c.id, Name: c.name, Input: input, Roots: []string{"/tmp", "/mnt/session"}, Spill: "/mnt/session/tool_outputs"}
}

// run runs a call to its end.
func (s *toolSuite) run(t *testing.T, id string, c tool) sandbox.ToolResult {
	t.Helper()
	r, err := s.tools.RunTool(testContext(t), id, s.call(t, c))
	if err != nil {
		t.Fatalf("%s %v: %v", c.name, c.input, err)
	}
	return r
}

// want runs a call and compares what comes of it.
func (s *toolSuite) want(t *testing.T, id string, c tool, text string, isError bool) {
	t.Helper()
	if diff := cmp.Diff(sandbox.ToolResult{Text: text, IsError: isError}, s.run(t, id, c)); diff != "" {
		t.Errorf("%s %v: %s", c.name, c.input, diff)
	}
}

// begin starts a call and answers a channel with what comes of it.
func (s *toolSuite) begin(t *testing.T, ctx context.Context, id string, call sandbox.ToolCall) <-chan toolOutcome {
	done := make(chan toolOutcome, 1)
	go func() {
		r, err := s.tools.RunTool(ctx, id, call)
		done <- toolOutcome{r, err}
	}()
	return done
}

type toolOutcome struct {
	sandbox.ToolResult
	err error
}

// awaitFile waits until a file is in the sandbox.
func (s *toolSuite) awaitFile(t *testing.T, id, path string) {
	t.Helper()
	eventually(t, path+" is there", func() bool {
		return s.exec(t, id, sandbox.Command{Args: []string{"test", "-e", path}}).Code == 0
	})
}

func testShell(t *testing.T, s *toolSuite) {
	id := s.create(t, func(spec *sandbox.Spec) { spec.Env = []string{"OF_THE_SANDBOX=yes", "ANTHROPIC_API_KEY=none"} })
	s.want(t, id, bash("echo hello"), "hello\n\n", false)
	s.want(t, id, bash("printf 'hello\\n0\\n'; false"), "hello\n0\n\n\nexit code: 1", true)
	s.want(t, id, bash("true"), "", false)
	s.want(t, id, bash("pwd; echo $OF_THE_SANDBOX$ANTHROPIC_API_KEY$PS1$PS2 $TERM; umask"), "/workspace\nyes dumb\n0022\n\n", false)
	s.want(t, id, bash("cd /tmp; export KEPT=1; f() { echo in f; }; (sleep 1000 &)"), "", false)
	s.want(t, id, bash("pwd; echo $KEPT; f; pgrep -c sleep"), "/tmp\n1\nin f\n1\n\n", false)
	s.want(t, id, bash("cat; read x || echo no input"), "no input\n\n", false)
	s.want(t, id, bash("test -t 1 || echo no terminal; echo oops >&2"), "no terminal\noops\n\n", false)
	s.want(t, id, bash("echo 'a!b' !$ \"x\ty\""), "a!b !$ x\ty\n\n", false)
	s.want(t, id, bash("cat <<'END'\n$HOME\nEND\n# the end"), "$HOME\n\n", false)
	s.want(t, id, bash("printf '\\033[31mred\\033[0m\\r\\n'"), "red\n\n", false)
	s.want(t, id, bash("echo -e '\\n\\nx\\xff'"), "x\uFFFD\n\n", false)
	if r := s.run(t, id, bash("echo 'not closed")); !r.IsError || !strings.Contains(r.Text, "unexpected EOF") {
		t.Errorf("a quote that is not closed: %+v", r)
	}
	s.want(t, id, bash("if true; then { for x in a; do echo $x; done; }; fi"), "a\n\n", false)
	if r := s.run(t, id, bash("for x in; do }")); !r.IsError || !strings.Contains(r.Text, "syntax error") {
		t.Errorf("no shell language: %+v", r)
	}
	long := strings.Repeat("x", 70_000)
	s.want(t, id, bash("true "+long+"; echo long"), "long\n\n", false)
	s.want(t, id, tool{name: "bash"}, "bash: command is required", true)
	s.want(t, id, tool{name: "bash", input: map[string]any{"restart": true}}, "bash session restarted", false)
	s.want(t, id, bash("pwd; echo [$KEPT]; jobs"), "/workspace\n[]\n\n", false)
	s.want(t, id, tool{name: "bash", input: map[string]any{"restart": true, "command": "echo anew"}}, "anew\n\n", false)
}

// testShellAlone: nobody is at a terminal, so what asks is told so at once.
func testShellAlone(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	s.want(t, id, bash("(: </dev/tty) 2>/dev/null || echo no terminal to ask at"), "no terminal to ask at\n\n", false)
	s.want(t, id, bash("ps -o tty= -p $$; test -t 0 || test -t 2 || echo none"), "?\nnone\n\n", false)
	s.want(t, id, bash("read -p 'Continue? ' x; echo \"$? [$x]\""), "1 []\n\n", false)
	s.want(t, id, bash(`python3 -c 'input("name? ")' 2>&1 | tail -1`), "EOFError: EOF when reading a line\n\n", false)
	s.want(t, id, bash("echo $PAGER $GIT_PAGER $MANPAGER $SYSTEMD_PAGER $GIT_TERMINAL_PROMPT $DEBIAN_FRONTEND"), "cat cat cat cat 0 noninteractive\n\n", false)
	// A terminal is there for who wants one.
	s.want(t, id, bash("script -qc tty /dev/null | tr -d 0-9"), "/dev/pts/\n\n", false)
	// What the environment says wins.
	id = s.create(t, func(spec *sandbox.Spec) { spec.Env = []string{"PAGER=less", "GIT_TERMINAL_PROMPT=1"} })
	s.want(t, id, bash("echo $PAGER $GIT_TERMINAL_PROMPT $MANPAGER"), "less 1 cat\n\n", false)
	// A mistake does not end the shell, a trace does not confuse it, and what was
	// written before a time-out is told.
	s.want(t, id, bash("KEPT=1; set -u; : $unset"), "bash: unset: unbound variable\n\n\nexit code: 1", true)
	s.want(t, id, bash("set +u; echo $KEPT $not_set"), "1\n\n", false)
	if r := s.run(t, id, bash("set -vx; true")); r.IsError {
		t.Errorf("a trace: %+v", r)
	}
	if r := s.run(t, id, bash("set +vx; false")); !r.IsError || !strings.Contains(r.Text, "exit code: 1") {
		t.Errorf("the end of a trace: %+v", r)
	}
	r := s.run(t, id, tool{name: "bash", input: map[string]any{"command": "python3 -c 'print(\"progress\"); import time; time.sleep(1000)'", "timeout_ms": 3000}})
	if !strings.HasPrefix(r.Text, "progress\n") || !r.IsError {
		t.Errorf("what was written before a time-out: %+v", r)
	}
}

// ignoredSignals prints the signals that a program begins with ignored. gVisor's
// /proc/self/status does not tell them.
const ignoredSignals = `perl -e 'print join(" ", "ignored:", grep { ($SIG{$_} // "") eq "IGNORE" } qw(HUP INT QUIT PIPE TERM USR1 ALRM CHLD)), "\n"'`

// testSignals: a program begins with the defaults, whoever starts it.
func testSignals(t *testing.T, s *suite) {
	id := s.create(t, nil)
	if got := s.sh(t, id, ignoredSignals); got != "ignored:\n" {
		t.Errorf("a command's program: %q", got)
	}
	if got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", ignoredSignals}, TTY: &sandbox.WindowSize{Rows: 24, Cols: 80}}); !strings.HasPrefix(got.Stdout, "ignored:\r\n") {
		t.Errorf("a program on a terminal: %q", got.Stdout)
	}
}

func testShellSignals(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	s.want(t, id, bash(ignoredSignals), "ignored:\n\n", false)
	s.want(t, id, bash("yes | head -1; find / 2>/dev/null | head -1"), "y\n/\n\n", false)
	for _, signal := range []string{"HUP", "INT", "QUIT", "TERM", "PIPE"} {
		s.want(t, id, bash(fmt.Sprintf("perl -e 'kill %s, $$'; kill -l $?", signal)), signal+"\n\n", false)
		s.want(t, id, bash(fmt.Sprintf("bash -c 'trap \"echo trapped; exit\" %s; kill -%[1]s $$; sleep 1000'", signal)), "trapped\n\n", false)
	}
	// A server in the background ends when it is told to.
	s.want(t, id, bash("{ python3 -c 'open(\"/tmp/up\", \"w\"); import time; time.sleep(1000)' & } 2>/dev/null; while [ ! -e /tmp/up ]; do sleep 0.01; done; kill $!; wait $!; kill -l $?"),
		"TERM\n\n", false)
	s.want(t, id, bash(`python3 -c 'import subprocess as s; p = s.Popen(["sleep", "1000"]); p.terminate(); print(p.wait())'`), "-15\n\n", false)
}

func testShellEnds(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	r := s.run(t, id, tool{name: "bash", input: map[string]any{"command": "echo begun; (sleep 1000 &); sleep 1000", "timeout_ms": 1500}})
	if want := "begun\n\n[timed out]\nsession restarted after timeout"; r.Text != want || !r.IsError {
		t.Errorf("time-out: %+v", r)
	}
	eventually(t, "what ran is gone", func() bool { return !strings.Contains(s.sh(t, id, "cat /proc/[0-9]*/comm"), "sleep") })
	s.want(t, id, bash("echo again"), "again\n\n", false)
	s.want(t, id, bash("exit 3"), "bash: bash session terminated", true)
	s.want(t, id, bash("sleep 1000 & kill -9 $$"), "bash: bash session terminated", true)
	s.want(t, id, bash("set -e; false"), "bash: bash session terminated", true)
	s.want(t, id, bash("rm -r /workspace"), "", false)
	s.want(t, id, tool{name: "bash", input: map[string]any{"restart": true, "command": "pwd"}}, "/workspace\n\n", false)
}

func testShellOutput(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	r := s.run(t, id, tool{id: "sevt_long", name: "bash", input: map[string]any{"command": "seq 100000"}})
	if !strings.HasPrefix(r.Text, "[output truncated]\n") || !strings.Contains(r.Text, "\n99999\n100000\n\n\n[the whole output, ") || len(r.Text) > 101_000 {
		t.Errorf("long output: %d bytes, %.60q … %q", len(r.Text), r.Text, r.Text[max(0, len(r.Text)-120):])
	}
	if got, want := s.sh(t, id, "wc /mnt/session/tool_outputs/sevt_long.txt"), "100000 100000 588895 "; !strings.HasPrefix(got, want) {
		t.Errorf("the file holds %s", got)
	}
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "/mnt/session/tool_outputs/sevt_long.txt", "view_range": []int{54321, 54321}}}, "54321", false)
	r = s.run(t, id, bash("head -c 99000 /dev/zero | tr '\\0' a"))
	if r.Text != strings.Repeat("a", 99000)+"\n" {
		t.Errorf("output below the limit: %d bytes", len(r.Text))
	}
	// Programs that go on writing between calls disturb nobody.
	s.run(t, id, bash("((while [ ! -e /tmp/stop ]; do echo noise; done; touch /tmp/stopped) </dev/null &)"))
	r = s.run(t, id, bash("touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.01; done; sleep 0.2; echo last"))
	if !strings.HasSuffix(r.Text, "last\n\n") && !strings.Contains(r.Text, "last\n\n\n[the whole") || r.IsError {
		t.Errorf("noise from the background: %.200q", r.Text)
	}
}

func testFileTools(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "a/b.txt", "content": "one\ntwo\nthree\n"}}, "wrote 14 bytes to a/b.txt", false)
	if got, want := s.sh(t, id, "stat -c %a a a/b.txt; cat a/b.txt"), "700\n600\none\ntwo\nthree\n"; got != want {
		t.Errorf("written: %q", got)
	}
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "/workspace/a/b.txt"}}, "one\ntwo\nthree\n", false)
	s.want(t, id, tool{name: "edit", input: map[string]any{"file_path": "a/b.txt", "old_string": "two", "new_string": "2"}}, "edited a/b.txt (1 replacement(s))", false)
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "a/b.txt", "view_range": []int{2, 3}}}, "2\nthree", false)
	s.sh(t, id, "chmod 755 a/b.txt")
	s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "a/b.txt", "content": "x"}}, "wrote 1 bytes to a/b.txt", false)
	if got := s.sh(t, id, "stat -c %a a/b.txt; ls -A a"); got != "755\nb.txt\n" {
		t.Errorf("replaced: %q", got)
	}
	s.sh(t, id, "mkfifo pipe; head -c 300000 /dev/zero | tr '\\0' z > big; touch empty")
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "empty"}}, "", false)
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "none"}}, "read none: no such file or directory", true)
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "a/b.txt/c"}}, "read a/b.txt/c: not a directory", true)
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "pipe"}}, "read: pipe is not a regular file", true)
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "big"}},
		"read: big is 300000 bytes, exceeds 262144-byte limit. Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].", true)
	s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "a", "content": "x"}}, "write a: file exists", true)
	got := s.watch(t, id, "/workspace/a", func() {
		s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "a/c.txt", "content": "old"}}, "wrote 3 bytes to a/c.txt", false)
		s.want(t, id, tool{name: "edit", input: map[string]any{"file_path": "a/c.txt", "old_string": "old", "new_string": "new"}}, "edited a/c.txt (1 replacement(s))", false)
	})
	if got != "c.txt\nc.txt\n" {
		t.Errorf("seen while a file was written and edited: %q", got)
	}
}

func testToolPaths(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	s.sh(t, id, "ln -s /etc out; ln -s ../tmp in; ln -s loop loop; ln -s /etc/new dangling; echo t > /tmp/t; ln -s /etc/passwd link; echo mine > mine; ln -s mine alias")
	const outside = ` is outside the session's working directory and its other permitted directories`
	for path, want := range map[string]string{
		"/etc/passwd": `read: path "/etc/passwd"` + outside, "out/passwd": `read: path "out/passwd"` + outside, "link": `read: path "link"` + outside,
		"../../etc/passwd": `read: path "../../etc/passwd"` + outside, "loop": `read: path "loop": too many levels of symbolic links`,
		"/workspacex": `read: path "/workspacex"` + outside,
	} {
		s.want(t, id, tool{name: "read", input: map[string]any{"file_path": path}}, want, true)
	}
	s.want(t, id, tool{name: "read", input: map[string]any{"file_path": "in/t"}}, "t\n", false)
	s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "dangling", "content": "x"}}, `write: path "dangling"`+outside, true)
	s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "alias", "content": "x"}}, "wrote 1 bytes to alias", false)
	if got := s.sh(t, id, "cat mine; readlink alias; test ! -e /etc/new"); got != "xmine\n" {
		t.Errorf("written through a link: %q", got)
	}
}

func testSearch(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	s.want(t, id, tool{name: "glob", input: map[string]any{"pattern": "**/*.go"}}, "no matches", false)
	s.sh(t, id, "mkdir -p a/b .git; echo 'package x' > a/b/x.go; echo 'package y' > a/y.go; echo package > .git/z; ln -s /etc etc; touch -d @1000 a/y.go")
	s.want(t, id, tool{name: "glob", input: map[string]any{"pattern": "**/*.go"}}, "/workspace/a/b/x.go\n/workspace/a/y.go", false)
	s.want(t, id, tool{name: "glob", input: map[string]any{"pattern": "*.go", "path": "a"}}, "/workspace/a/y.go", false)
	s.want(t, id, tool{name: "glob", input: map[string]any{"pattern": "etc/*"}}, "no matches", false)
	s.want(t, id, tool{name: "glob", input: map[string]any{"pattern": "/etc/*"}}, "glob: absolute pattern not permitted; pass a relative pattern (and optionally path)", true)
	s.want(t, id, tool{name: "grep", input: map[string]any{"pattern": "^package [y]"}}, "/workspace/a/y.go:1:package y", false)
	s.want(t, id, tool{name: "grep", input: map[string]any{"pattern": "package", "path": "a/b/x.go"}}, "/workspace/a/b/x.go:1:package x", false)
	s.want(t, id, tool{name: "grep", input: map[string]any{"pattern": "no such text"}}, "no matches", false)
}

func testToolOnce(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	once := tool{id: "sevt_once", name: "bash", input: map[string]any{"command": "echo ran >> /tmp/log; wc -l < /tmp/log"}}
	for range 3 {
		s.want(t, id, once, "1\n\n", false)
	}
	// One that runs is waited for, by all who ask, also after the first has left.
	long := s.call(t, tool{id: "sevt_twice", name: "bash", input: map[string]any{"command": "touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo ran >> /tmp/log; wc -l < /tmp/log"}})
	short, leave := context.WithCancel(testContext(t))
	first := s.begin(t, short, id, long)
	s.awaitFile(t, id, "/tmp/began")
	leave()
	if got := <-first; !errors.Is(got.err, context.Canceled) {
		t.Errorf("the first caller got %+v", got)
	}
	impatient := long
	impatient.Patience = time.Second
	if got := <-s.begin(t, testContext(t), id, impatient); !errors.Is(got.err, sandbox.ErrBadReply) {
		t.Errorf("an impatient caller got %+v", got)
	}
	second, third := s.begin(t, testContext(t), id, long), s.begin(t, testContext(t), id, long)
	s.sh(t, id, "touch /tmp/go")
	for _, c := range []<-chan toolOutcome{second, third} {
		if got := <-c; got.err != nil || got.Text != "2\n\n" {
			t.Errorf("a later caller got %+v", got)
		}
	}
}

func testToolCancel(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	long := s.call(t, bash("echo begun; touch /tmp/began; sleep 1000"))
	running := s.begin(t, ctx, id, long)
	s.awaitFile(t, id, "/tmp/began")
	waiting := s.begin(t, ctx, id, s.call(t, tool{id: "sevt_waits", name: "bash", input: map[string]any{"command": "echo ran > /tmp/waited"}}))
	if err := s.tools.CancelTool(ctx, id, "sevt_waits"); err != nil {
		t.Fatal(err)
	}
	if got := <-waiting; got.err != nil || !got.IsError || !strings.Contains(got.Text, "interrupted") {
		t.Errorf("the waiting call: %+v", got)
	}
	if err := s.tools.CancelTool(ctx, id, long.ID); err != nil {
		t.Fatal(err)
	}
	want := sandbox.ToolResult{Text: "begun\n\n[interrupted]\nsession restarted after interrupt", IsError: true}
	if got := <-running; got.err != nil || got.ToolResult != want {
		t.Errorf("the running call: %+v", got)
	}
	eventually(t, "what ran is gone", func() bool { return !strings.Contains(s.sh(t, id, "cat /proc/[0-9]*/comm"), "sleep") })
	if err := s.tools.CancelTool(ctx, id, "sevt_never"); err != nil {
		t.Fatal(err)
	}
	s.want(t, id, tool{id: "sevt_never", name: "bash", input: map[string]any{"command": "touch /tmp/waited"}}, "interrupted before it ran", true)
	s.want(t, id, bash("test ! -e /tmp/waited && echo fine"), "fine\n\n", false)
	if err := s.tools.CancelTool(ctx, id, long.ID); err != nil {
		t.Error(err)
	}
}

// killTools ends all tool processes of a sandbox, as the loss of its processes
// does, by the name of the program.
const killTools = `for p in /proc/[0-9]*; do if tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^atoll-guest daemon'; then kill -%s ${p#/proc/}; echo found; fi; done`

func testToolsLost(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	done := tool{id: "sevt_done", name: "bash", input: map[string]any{"command": "echo ran >> /tmp/log; echo done"}}
	s.want(t, id, done, "done\n\n", false)
	lost := s.call(t, tool{id: "sevt_lost", name: "bash", input: map[string]any{"command": "echo ran >> /tmp/log; touch /tmp/began; sleep 1000"}})
	running := s.begin(t, testContext(t), id, lost)
	s.awaitFile(t, id, "/tmp/began")
	if got := s.sh(t, id, fmt.Sprintf(killTools, "KILL")); got != "found\n" {
		t.Fatalf("killing the daemon: %q", got)
	}
	if got := <-running; got.err != nil || !got.IsError || !strings.Contains(got.Text, "outcome of this call is unknown") {
		t.Errorf("the call that ran: %+v", got)
	}
	if r := s.run(t, id, tool{id: "sevt_lost", name: "bash", input: map[string]any{"command": "echo ran >> /tmp/log"}}); !strings.Contains(r.Text, "unknown") {
		t.Errorf("asked again: %+v", r)
	}
	s.want(t, id, done, "done\n\n", false)
	s.want(t, id, bash("wc -l < /tmp/log"), "2\n\n", false)
}

// testToolsStopped stops the daemon, as a careless kill does: the next client
// puts another in its place.
func testToolsStopped(t *testing.T, s *toolSuite) {
	if testing.Short() {
		t.Skip("waits for a daemon that does not answer")
	}
	id := s.create(t, nil)
	s.want(t, id, bash("echo one"), "one\n\n", false)
	if got := s.sh(t, id, fmt.Sprintf(killTools, "STOP")); got != "found\n" {
		t.Fatalf("stopping the daemon: %q", got)
	}
	s.want(t, id, bash("echo two"), "two\n\n", false)
}

func testToolsFullDisk(t *testing.T, s *toolSuite) {
	id := s.create(t, func(spec *sandbox.Spec) { spec.Limits.DiskBytes = 32 << 20 })
	s.want(t, id, bash("true"), "", false)
	s.sh(t, id, "cat /dev/zero > fill 2>/dev/null || true; sync; for i in 1 2 3 4 5 6 7 8; do echo x >> fill$i 2>/dev/null || true; done")
	full := tool{id: "sevt_full", name: "bash", input: map[string]any{"command": "echo ran >> /dev/shm/log; wc -l < /dev/shm/log"}}
	for range 2 {
		s.want(t, id, full, "1\n\n", false)
	}
	if r := s.run(t, id, tool{name: "write", input: map[string]any{"file_path": "x", "content": strings.Repeat("x", 100000)}}); !r.IsError || !strings.Contains(r.Text, "no space left") {
		t.Errorf("write on a full disk: %+v", r)
	}
	s.want(t, id, bash("rm fill*"), "", false)
	s.want(t, id, tool{name: "write", input: map[string]any{"file_path": "x", "content": "x"}}, "wrote 1 bytes to x", false)
}

// testToolsHibernate puts a sandbox aside with its shell, and once with a call
// that runs.
func testToolsHibernate(t *testing.T, s *toolSuite) {
	s.checkpointer(t)
	id := s.create(t, nil)
	s.want(t, id, bash("cd /usr; KEPT=variable; (sleep 1000 &)"), "", false)
	s.hibernate(t, id)
	if _, err := s.tools.RunTool(testContext(t), id, s.call(t, bash("true"))); !errors.Is(err, sandbox.ErrHibernated) {
		t.Errorf("a call of a hibernated sandbox: %v", err)
	}
	s.restore(t, id)
	s.want(t, id, bash("pwd; echo $KEPT; cat /proc/[0-9]*/comm | grep -c sleep"), "/usr\nvariable\n1\n\n", false)
	long := s.call(t, bash("touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo ran >> /tmp/log; wc -l < /tmp/log"))
	ctx, leave := context.WithCancel(testContext(t))
	first := s.begin(t, ctx, id, long)
	s.awaitFile(t, id, "/tmp/began")
	leave()
	<-first
	s.hibernate(t, id)
	s.restore(t, id)
	second := s.begin(t, testContext(t), id, long)
	s.sh(t, id, "touch /tmp/go")
	if got := <-second; got.err != nil || got.Text != "1\n\n" {
		t.Errorf("the call that was put aside: %+v", got)
	}
}

// testToolsRevive loses all processes of a sandbox and keeps its disk.
func testToolsRevive(t *testing.T, s *toolSuite) {
	c := s.checkpointer(t)
	id := s.create(t, func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 128 << 20 })
	done := tool{id: "sevt_done", name: "bash", input: map[string]any{"command": "echo ran >> log; echo done"}}
	s.want(t, id, done, "done\n\n", false)
	lost := s.call(t, tool{id: "sevt_lost", name: "bash", input: map[string]any{"command": "echo ran >> log; sync; touch /tmp/began; sleep 1000"}})
	running := s.begin(t, testContext(t), id, lost)
	s.awaitFile(t, id, "/tmp/began")
	s.kill(t, id)
	if got := <-running; got.err == nil && !strings.Contains(got.Text, "unknown") {
		t.Errorf("the call that ran: %+v", got)
	}
	if err := c.Revive(testContext(t), id, ""); err != nil {
		t.Fatal(err)
	}
	s.want(t, id, done, "done\n\n", false)
	if r, err := s.tools.RunTool(testContext(t), id, lost); err != nil || !r.IsError || !strings.Contains(r.Text, "unknown") {
		t.Errorf("asked for again: %+v %v", r, err)
	}
	s.want(t, id, bash("wc -l < log"), "2\n\n", false)
}

func testToolInput(t *testing.T, s *toolSuite) {
	id := s.create(t, nil)
	s.want(t, id, tool{name: "nothing"}, `"nothing": there is no such tool`, true)
	if r := s.run(t, id, tool{name: "bash", input: map[string]any{"command": 7}}); !r.IsError || !strings.HasPrefix(r.Text, "invalid bash input: ") {
		t.Errorf("wrong type: %+v", r)
	}
	ctx := testContext(t)
	for _, call := range []sandbox.ToolCall{{ID: "", Name: "bash"}, {ID: "../x", Name: "bash"}, {ID: "sevt_x", Name: "bash", Input: []byte("{")},
		{ID: "sevt_y", Name: "bash", Input: []byte(`"` + strings.Repeat("x", sandbox.MaxToolInput) + `"`)}} {
		if r, err := s.tools.RunTool(ctx, id, call); err == nil {
			t.Errorf("call %.20q with %d bytes of input: %+v", call.ID, len(call.Input), r)
		}
	}
	for _, absent := range []string{"absent", "../x"} {
		if _, err := s.tools.RunTool(ctx, absent, s.call(t, bash("true"))); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("absent sandbox: %v", err)
		}
	}
}
