package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/atolltest"
)

// cli prepares a command line that talks to this server.
func (s *server) cli(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), binary, args...)
	// A terminal of whoever runs the tests is not the command's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = append(os.Environ(), "ATOLL_URL="+s.URL, "ATOLL_API_KEY="+atolltest.Key, "ATOLL_DATA="+s.Dir, "ATOLL_CACHE="+s.Cache)
	return cmd
}

// atoll runs a command line to its end.
func (s *server) atoll(stdin string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	cmd := s.cli(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	return exitOf(s.t, cmd.Run()), out.String(), errs.String()
}

func exitOf(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

// mustAtoll runs a command line that must exit 0 and returns its output.
func (s *server) mustAtoll(args ...string) string {
	s.t.Helper()
	code, stdout, stderr := s.atoll("", args...)
	if code != 0 {
		s.t.Fatalf("atoll %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// TestCommandExec runs single commands from a command line.
func TestCommandExec(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	for _, tt := range []struct {
		name, stdin    string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"streams apart, code passed", "", []string{id, "--", "sh", "-c", "echo out; echo err >&2; exit 7"}, 7, "out\n", "err\n"},
		{"arguments as they are", "", []string{id, "printf", "%s|", "a b", "$HOME", "--x"}, 0, "a b|$HOME|--x|", ""},
		{"input", "one\ntwo\n", []string{id, "--", "cat", "-n"}, 0, "     1\tone\n     2\ttwo\n", ""},
		{"bytes", "\xff\x00\xfe", []string{id, "cat"}, 0, "\xff\x00\xfe", ""},
		{"input that nobody reads", strings.Repeat("x", 4<<20), []string{id, "true"}, 0, "", ""},
		{"cwd and env", "", []string{"-e", "A=1=2", "--cwd", "/tmp", id, "--", "sh", "-c", "echo $A; pwd"}, 0, "1=2\n/tmp\n", ""},
		{"time", "", []string{"--timeout", "300ms", id, "sleep", "100"}, 124, "", ""},
		{"signal", "", []string{id, "--", "sh", "-c", "kill -9 $$"}, 137, "", ""},
		{"no program", "", []string{id, "no-such-program"}, 125, "", "atoll: .*no-such-program"},
		{"no session", "", []string{"sesn_nothing", "true"}, 125, "", "atoll: Session sesn_nothing not found.\n"},
		{"a wrong key", "", []string{"--key", "wrong", id, "true"}, 125, "", "atoll: Authentication failed\n"},
	} {
		code, stdout, stderr := s.atoll(tt.stdin, append([]string{"exec"}, tt.args...)...)
		if code != tt.code || stdout != tt.stdout || !regexp.MustCompile("^"+tt.stderr).MatchString(stderr) || tt.stderr == "" && stderr != "" {
			t.Errorf("%s: exit %d, stdout %.200q, stderr %q", tt.name, code, stdout, stderr)
		}
	}
	// More than any request holds, there and back.
	big := strings.Repeat("0123456789abcde\n", 40<<20/16)
	if code, stdout, stderr := s.atoll(big, "exec", id, "cat"); code != 0 || stdout != big {
		t.Errorf("40 MiB: exit %d, %d bytes, %s", code, len(stdout), stderr)
	}
}

// TestCommandExecInput: the command starts before its input ends, and takes it
// as it comes.
func TestCommandExecInput(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	cmd := s.cli("exec", id, "--", "sh", "-c", "echo ready; read a; echo got $a; exit 3")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 6)
	if _, err := io.ReadFull(out, buffer); err != nil || string(buffer) != "ready\n" {
		t.Fatalf("%q, %v", buffer, err)
	}
	if _, err := io.WriteString(in, "it\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(out) // the input stays open: the command ends by itself
	if code := exitOf(t, cmd.Wait()); err != nil || code != 3 || string(rest) != "got it\n" {
		t.Errorf("exit %d, %q, %v", code, rest, err)
	}
}

// runs tells whether some process of a session has this command line.
func (s *server) runs(session, command string) bool {
	s.t.Helper()
	return strings.Contains(s.exec(session, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").Stdout, command)
}

// TestCommandExecInterrupted: Ctrl-C ends all that the command started, also
// when the input is open and nobody reads it.
func TestCommandExecInterrupted(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGKILL} {
		cmd := s.cli("exec", id, "--", "sh", "-c", "trap '' INT TERM HUP; sleep 4711 & echo up; sleep 4711")
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if !s.runs(id, "sleep 4711") {
			t.Error("the command does not run")
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code := exitOf(t, cmd.Wait()); code != 130 && sig != syscall.SIGKILL {
			t.Errorf("%v: exit %d", sig, code)
		}
		waitFor(t, 20*time.Second, "the process group to end", func() bool {
			return !s.runs(id, "sleep 4711")
		})
	}
}

// TestCommandBuild shows builds, follows one, and makes one again.
func TestCommandBuild(t *testing.T) {
	s := newServer(t, "sessions: {hibernate_after: 1s}\n")
	env := s.environment(object{"base_template": "slim", "packages": object{"apt": []string{"figlet"}}})
	code, stdout, stderr := s.atoll("", "build", env, "--follow")
	if code != 0 || !regexp.MustCompile(`(?s)^`+env+`: ready on slim in .*apt +ready .*figlet \S+ \(\d+ in all\)\n$`).MatchString(stdout) {
		t.Errorf("build --follow: exit %d\n%s%s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, "s  building: apt building\n") || strings.ContainsAny(stderr, "\r\x1b") {
		t.Errorf("progress that is not on a terminal: %q", stderr)
	}
	if out := s.mustAtoll("build", env); out != stdout {
		t.Errorf("build: %s\nafter --follow: %s", out, stdout)
	}
	if out := s.mustAtoll("build", "--log", env); !strings.Contains(out, "figlet") {
		t.Errorf("build --log: %q", out)
	}
	if out := s.mustAtoll("build", "--rebuild", "--follow", env); !strings.Contains(out, ": ready") || strings.Contains(out, "cached") {
		t.Errorf("build --rebuild --follow: %s", out)
	}
	same := s.environment(object{"base_template": "slim", "packages": object{"apt": []string{"figlet"}}})
	if out := s.mustAtoll("build", "-f", same); !strings.Contains(out, "ready (cached)") {
		t.Errorf("the same packages again: %s", out)
	}
	none := s.environment(object{"base_template": "slim"})
	if out := s.mustAtoll("build", "-f", none); !strings.HasPrefix(out, none+": ready") {
		t.Errorf("no packages: %s", out)
	}
	bad := s.environment(object{"base_template": "slim", "packages": object{"apt": []string{"atoll-no-such-package"}}})
	if code, stdout, stderr := s.atoll("", "build", bad, "--follow"); code != 1 || !strings.Contains(stdout+stderr, "atoll-no-such-package") {
		t.Errorf("a build that fails: exit %d\n%s%s", code, stdout, stderr)
	}
	s.checkToolchain()
	s.checkLiveBuild(env)
	if code, _, stderr := s.atoll("", "build", "env_nothing"); code != 1 || stderr != "atoll: Environment env_nothing not found.\n" {
		t.Errorf("no environment: exit %d, %s", code, stderr)
	}
	s.checkCache()
	s.checkKept(env, same)
}

// checkToolchain: a template without a manager says so, before anything runs or
// after its apt packages did not bring it; never is a list left out.
func (s *server) checkToolchain() {
	s.t.Helper()
	const words = "atoll: npm: the template has no npm: choose a template that has it, or list an apt package that brings it\n"
	for _, packages := range []object{{"npm": []string{"left-pad"}}, {"apt": []string{"figlet"}, "npm": []string{"left-pad"}}} {
		env := s.environment(object{"base_template": "slim", "packages": packages})
		code, stdout, stderr := s.atoll("", "build", env, "--follow")
		if b := s.built(env); code != 1 || !strings.HasSuffix(stderr, words) || b.Error == nil || b.Error.Kind != "toolchain_missing" {
			s.t.Errorf("%v: exit %d\n%s%s%+v", packages, code, stdout, stderr, b.Error)
		}
	}
}

// checkLiveBuild follows a build on a terminal: a line for each manager that is
// rewritten in place, with what the manager says, and then the result.
func (s *server) checkLiveBuild(env string) {
	s.t.Helper()
	term := newTerminal(s.t, 24, 60)
	cmd := s.cli("build", "--rebuild", "--follow", env)
	cmd.Stdout, cmd.Stderr = term.tty, term.tty
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	term.see("building on slim ")
	term.see("  apt   building ")
	term.see("\x1b[2A") // up again, over both lines
	term.see("  apt   building ")
	term.see("figlet")
	term.see("\x1b[J" + env + ": ready on slim")
	if code := exitOf(s.t, cmd.Wait()); code != 0 {
		s.t.Errorf("exit %d", code)
	}
}

// checkCache shows and prunes the layers with the server up and down; what
// environments use stays.
func (s *server) checkCache() {
	s.t.Helper()
	show := func() string {
		out := s.mustAtoll("cache", "show")
		if !strings.Contains(out, "figlet") || !strings.Contains(out, " of 20.0 GiB") || !strings.Contains(out, " downloads, ") {
			s.t.Errorf("cache show: %s", out)
		}
		return out
	}
	up := show()
	s.mustAtoll("cache", "prune")
	if out := show(); len(out) > len(up) {
		s.t.Errorf("before: %safter: %s", up, out)
	}
	s.Stop(syscall.SIGTERM)
	show()
	if out := s.mustAtoll("cache", "prune"); !strings.HasPrefix(out, "0 layers removed, 0 KiB\n") || !strings.Contains(out, " downloads removed, ") {
		s.t.Errorf("cache prune without a server removed what is used: %s", out)
	}
	s.Start()
}

// checkKept: an update is for the sandboxes that are made later. A sandbox keeps
// the layers that it has, also while it hibernates, whatever its environment
// comes to; a live session keeps those of an archived one.
func (s *server) checkKept(env, same string) {
	s.t.Helper()
	agent := s.agent()
	layers := func() string {
		out, _, _ := strings.Cut(s.mustAtoll("cache", "show"), "TEMPLATE")
		return out
	}
	old := s.session(agent, env)
	s.must(old, "figlet ok")
	s.call("POST", "/v1/environments/"+env, object{"config": object{"type": "cloud", "base_template": "slim", "packages": object{"apt": []string{"hello"}}}}, nil)
	s.call("DELETE", "/v1/environments/"+same, nil, nil)
	s.builtAtLast(agent, env)
	later := s.session(agent, env)
	s.must(later, "hello && ! command -v figlet")
	s.must(old, "figlet ok && ! command -v hello")
	s.call("POST", "/v1/environments/"+env+"/archive", nil, nil)
	s.allHibernate(2)
	s.mustAtoll("cache", "prune") // the first figlet layer, from before the rebuilds, may go
	if out := layers(); strings.Count(out, " figlet\n") != 1 || strings.Count(out, " hello\n") != 1 {
		s.t.Errorf("what sandboxes stand on was removed:\n%s", out)
	}
	s.must(old, "figlet ok && ! command -v hello")
	s.must(later, "hello && ! command -v figlet")
	s.DeleteSessions()
	s.mustAtoll("cache", "prune")
	if out := layers(); strings.Contains(out, " figlet\n") || strings.Contains(out, " hello\n") {
		s.t.Errorf("what nothing uses is kept:\n%s", out)
	}
}

// TestCommandEgress lists what a session tried.
func TestCommandEgress(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim", "networking": object{"type": "limited", "allowed_hosts": []string{"allowed.example.com"}}}))
	s.exec(id, "curl -sS -m 5 http://refused.example.com/; curl -sS -m 5 https://refused.example.net/")
	out := s.mustAtoll("egress", "--denied", id)
	if !strings.Contains(out, "refused.example.com") || !strings.Contains(out, "refused.example.net") || strings.Contains(out, " allowed ") {
		t.Errorf("egress --denied:\n%s", out)
	}
	if out := s.mustAtoll("egress", "--denied", "--json", "--limit", "1", id); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"verdict":"refused"`) {
		t.Errorf("egress --json: %s", out)
	}
	if code, _, stderr := s.atoll("", "egress", "--limit", "0", id); code != 1 || !strings.Contains(stderr, "between 1 and 1000") {
		t.Errorf("egress --limit 0: exit %d, %s", code, stderr)
	}
	t.Run("E290", func(t *testing.T) {
		id := s.session(s.agent(), s.environment(object{"networking": object{"type": "limited"}}))
		r := s.exec(id, "pip install --retries 0 --index-url https://wheels.example.com/simple six")
		if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "wheels.example.com") {
			t.Errorf("pip says %+v", r)
		}
		out := s.mustAtoll("egress", "--denied", id)
		if !regexp.MustCompile(`(?m)^\S+ +refused +wheels\.example\.com +443 +tls +name_not_allowed`).MatchString(out) {
			t.Errorf("egress --denied:\n%s", out)
		}
	})
	t.Run("E293", func(t *testing.T) {
		s.mustAtoll("workspace", "create", "elsewhere")
		other := strings.TrimSpace(s.mustAtoll("key", "create", "--workspace", "elsewhere", "worker"))
		code, stdout, stderr := s.atoll("", "egress", "--key", other, id)
		if code != 1 || stdout != "" || !strings.Contains(stderr, id+" not found") {
			t.Errorf("exit %d, %q, %q", code, stdout, stderr)
		}
		req, err := http.NewRequest("GET", s.URL+"/atoll/v1/sessions/"+id+"/egress", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-api-key", other)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 404 {
			t.Errorf("status %d, want 404", resp.StatusCode)
		}
	})
}

// TestWorkspaces makes a second workspace with a key of its own: neither sees what
// the other has, names may be the same, and an archived one is closed.
func TestWorkspaces(t *testing.T) {
	s := newServer(t, "")
	s.mustAtoll("workspace", "create", "--max-sessions", "1", "other")
	other := strings.TrimSpace(s.mustAtoll("key", "create", "--workspace", "other", "worker"))
	// ask is a request with the other workspace's key.
	ask := func(method, path string, body object, into any) int {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-api-key", other)
		req.Header.Set("content-type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		return resp.StatusCode
	}
	var mine, theirs struct{ ID, Name string }
	config := object{"name": "same", "config": object{"type": "cloud", "base_template": "slim"}}
	s.call("POST", "/v1/environments", config, &mine)
	if code := ask("POST", "/v1/environments", config, &theirs); code != 200 || theirs.ID == mine.ID {
		t.Fatalf("the same name in the other workspace: %d %+v", code, theirs)
	}
	var list struct{ Data []struct{ ID string } }
	if code := ask("GET", "/v1/environments", nil, &list); code != 200 || len(list.Data) != 1 || list.Data[0].ID != theirs.ID {
		t.Errorf("the other workspace lists %d %+v", code, list)
	}
	if code := ask("GET", "/v1/environments/"+mine.ID, nil, &struct{}{}); code != 404 {
		t.Errorf("the first workspace's environment: %d", code)
	}
	var agent, session struct{ ID string }
	ask("POST", "/v1/agents", object{"name": "a", "model": "m"}, &agent)
	if code := ask("POST", "/v1/sessions", object{"agent": agent.ID, "environment_id": theirs.ID}, &session); code != 200 {
		t.Fatalf("a session there: %d", code)
	}
	var refused struct {
		Error struct {
			Type    string
			Details struct {
				Code string `json:"error_code"`
			}
		}
	}
	second := object{"agent": agent.ID, "environment_id": theirs.ID}
	if code := ask("POST", "/v1/sessions", second, &refused); code != 429 || refused.Error.Type != "rate_limit_error" || refused.Error.Details.Code != "workspace_sessions_limit" {
		t.Errorf("a session beyond the limit: %d %+v", code, refused)
	}
	s.must(s.session(s.agent(), mine.ID), "true") // the first workspace has no limit
	if code := s.try("GET", "/v1/sessions/"+session.ID, nil, nil); code != 404 {
		t.Errorf("the first workspace sees the session: %d", code)
	}
	if code, _, stderr := s.atoll("", "workspace", "archive", "other"); code != 1 || !strings.Contains(stderr, "sessions that are not archived") {
		t.Errorf("archiving with a session: exit %d, %s", code, stderr)
	}
	if code := ask("DELETE", "/v1/sessions/"+session.ID, nil, &struct{}{}); code != 200 {
		t.Errorf("deleting the session: %d", code)
	}
	for _, limit := range []struct {
		max  string
		code int
	}{{"1", 200}, {"1", 429}, {"2", 200}, {"0", 200}} {
		s.mustAtoll("workspace", "update", "--max-sessions", limit.max, "other")
		var made struct{ ID string }
		if code := ask("POST", "/v1/sessions", second, &made); code != limit.code {
			t.Errorf("at most %s: %d, want %d", limit.max, code, limit.code)
		}
	}
	var live struct{ Data []struct{ ID string } }
	ask("GET", "/v1/sessions", nil, &live)
	for _, l := range live.Data {
		ask("DELETE", "/v1/sessions/"+l.ID, nil, &struct{}{})
	}
	s.mustAtoll("workspace", "archive", "other")
	for range 2 {
		if code := ask("GET", "/v1/environments", nil, &struct{}{}); code != 401 {
			t.Errorf("a key of an archived workspace: %d", code)
		}
		s.kill9()
	}
	if code := s.try("GET", "/v1/environments/"+mine.ID, nil, nil); code != 200 {
		t.Errorf("the first workspace afterwards: %d", code)
	}
}

// TestCommandKeys manages keys with the server up and down; both ways the key
// works, and a revoked one does not.
func TestCommandKeys(t *testing.T) {
	s := newServer(t, "")
	env := s.environment(object{"base_template": "slim"})
	works := func(key string) bool {
		code, _, _ := s.atoll("", "build", "--key", key, env)
		return code == 0
	}
	for _, state := range []string{"up", "down"} {
		if state == "down" {
			s.Stop(syscall.SIGTERM)
		}
		secret := strings.TrimSpace(s.mustAtoll("key", "create", "worker "+state))
		list := s.mustAtoll("key", "list")
		id := regexp.MustCompile(`(?m)^(\S+) +worker ` + state).FindStringSubmatch(list)
		if secret == "" || id == nil || strings.Contains(list, secret) {
			t.Fatalf("%s: %q in\n%s", state, secret, list)
		}
		if state == "down" {
			s.Start()
		}
		if !works(secret) {
			t.Errorf("%s: a new key is refused", state)
		}
		if state == "down" {
			s.Stop(syscall.SIGTERM)
		}
		s.mustAtoll("key", "revoke", id[1])
		if state == "down" {
			s.Start()
		}
		if works(secret) {
			t.Errorf("%s: a revoked key is accepted", state)
		}
	}
}

// TestCommandHost runs what looks at the machine and needs no server.
func TestCommandHost(t *testing.T) {
	s := newServer(t, "")
	s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	if out := s.mustAtoll("doctor"); !strings.HasSuffix(out, "This host can run Atoll.\n") || strings.Contains(out, "FAIL") {
		t.Errorf("doctor:\n%s", out)
	}
	if out := s.mustAtoll("version"); !regexp.MustCompile(`^atoll \S+ linux/\S+ go1\.\S+ gvisor v\S+\n$`).MatchString(out) {
		t.Errorf("version: %q", out)
	}
	list := s.mustAtoll("template", "list")
	for _, name := range []string{"slim", "base", "code_interpreter"} {
		if !regexp.MustCompile(`(?m)^` + name + ` `).MatchString(list) {
			t.Errorf("template list lacks %s:\n%s", name, list)
		}
	}
	waitFor(t, 10*time.Minute, "slim to be built", func() bool {
		return strings.Contains(s.mustAtoll("template", "show", "slim"), "digest")
	})
	show := s.mustAtoll("template", "show", "slim")
	for _, want := range []string{"name", "size", "registry", "apt", "python"} {
		if !strings.Contains(show, want) {
			t.Errorf("template show lacks %s:\n%s", want, show)
		}
	}
	if out := s.mustAtoll("template", "show", "--json", "slim"); !strings.HasPrefix(out, "{") {
		t.Errorf("template show --json: %s", out)
	}
}
