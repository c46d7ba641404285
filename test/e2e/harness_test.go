// Package e2e drives the real binary over HTTP, the way a user does: real
// sandboxes, real package managers, real networks. It needs root. Every server
// it starts has its own data directory, which is removed afterwards; the cache
// directory is shared, so that templates are built once.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const testKey = "sk-atoll-e2e-0123456789"

// binary is the atoll under test, built once from the checkout.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() { // minutes of real sandboxes are no part of the quick loop
		fmt.Fprintln(os.Stderr, "test/e2e: left out by -short")
		os.Exit(0)
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/e2e: needs root (sandboxes, mounts and network namespaces)")
		if os.Getenv("ATOLL_CI") != "" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/e2e:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "atoll-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "atoll")
	for _, args := range [][]string{
		{"generate", "../../internal/sandbox/gvisor"},
		{"build", "-o", binary, "../../cmd/atoll"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return m.Run(), nil
}

// server is one running atoll.
type server struct {
	t    *testing.T
	Data string
	URL  string
	args []string
	env  []string
	wrap []string // a program that starts the server in its place, with its arguments; empty: none

	cmd  *exec.Cmd
	logf *os.File
	done chan struct{}
}

// newServer prepares a server on its own data directory and starts it. The
// configuration is YAML, or empty.
func newServer(t *testing.T, config string) *server {
	return newServerIn(t, "", config)
}

// newServerIn is newServer with a data directory in a directory, empty for the
// usual one, and with a program that starts the server in its place.
func newServerIn(t *testing.T, dir, config string, wrap ...string) *server {
	t.Helper()
	// Not t.TempDir: its removal would fail the test while a mount is left, but
	// the name should be short, for sockets.
	data, err := os.MkdirTemp(dir, "atoll-d-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, Data: data, wrap: wrap}
	s.URL = "http://" + freeAddr(t)
	s.args = []string{"serve", "--listen", strings.TrimPrefix(s.URL, "http://"), "--data", data, "--cache", cacheDir(t)}
	if !strings.Contains(config, "limits:") { // any machine can promise this to several sandboxes
		config += "\nlimits: {disk: 1GiB, processes: 400}\n"
	}
	if config != "" {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = append(s.args, "--config", file)
	}
	t.Cleanup(func() {
		s.deleteAllSessions()
		s.stop(syscall.SIGTERM)
		if left := leftovers(t, data); len(left) > 0 {
			t.Errorf("left behind by %s:\n  %s", t.Name(), strings.Join(left, "\n  "))
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(data, "e2e-server.log"))
			t.Logf("server log without requests that succeeded:\n%s", tail(notable(b), 12000))
		}
		if err := os.RemoveAll(data); err != nil {
			t.Errorf("removing the data directory: %v", err)
		}
	})
	s.start()
	return s
}

func cacheDir(t *testing.T) string {
	if dir := os.Getenv("ATOLL_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "atoll")
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the server and waits until it answers.
func (s *server) start() {
	s.t.Helper()
	var err error
	s.logf, err = os.OpenFile(filepath.Join(s.Data, "e2e-server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	command := append(append(s.wrap[:len(s.wrap):len(s.wrap)], binary), s.args...)
	s.cmd = exec.Command(command[0], command[1:]...)
	s.cmd.Env = append(os.Environ(), append([]string{"ATOLL_API_KEY=" + testKey, "ATOLL_LOG_LEVEL=debug"}, s.env...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.logf, s.logf
	// A terminal's Ctrl-C must not reach it, and a kill of it must not be a
	// kill of its group: sandboxes outlive the server.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // the reason stands in the log
		close(done)
	}(s.cmd, s.done)
	waitFor(s.t, 60*time.Second, "the server to answer", func() bool {
		select {
		case <-s.done:
			b, _ := os.ReadFile(filepath.Join(s.Data, "e2e-server.log"))
			s.t.Fatalf("server ended: %v\n%s", s.cmd.ProcessState, tail(b, 4000))
		default:
		}
		resp, err := http.Get(s.URL + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
}

// stop sends a signal and waits for the end.
func (s *server) stop(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		s.t.Errorf("the server does not end on %v", sig)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	s.logf.Close()
	s.cmd = nil
}

// kill9 ends the server without a chance to tidy, and starts it again.
func (s *server) kill9() {
	s.t.Helper()
	s.stop(syscall.SIGKILL)
	s.start()
}

// deleteAllSessions removes every session, so that what is left on the machine
// afterwards is a leak.
func (s *server) deleteAllSessions() {
	if s.cmd == nil {
		return
	}
	for {
		var list struct{ Data []struct{ ID string } }
		if s.try("GET", "/v1/sessions?limit=100&include_archived=true", nil, &list) != 200 || len(list.Data) == 0 {
			return
		}
		for _, d := range list.Data {
			if code := s.try("DELETE", "/v1/sessions/"+d.ID, nil, nil); code != 200 {
				s.t.Errorf("deleting session %s: %d", d.ID, code)
				return
			}
		}
	}
}

// try sends a request and returns the status, 0 when the server did not answer.
func (s *server) try(method, path string, body, into any) int {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, s.URL+path, rd)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("x-api-key", testKey)
	if body != nil {
		req.Header.Set("content-type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	switch dst := into.(type) {
	case nil:
	case *string:
		*dst = string(b)
	default:
		if resp.StatusCode == 200 {
			if err := json.Unmarshal(b, into); err != nil {
				s.t.Fatalf("%s %s: %v in %s", method, path, err, b)
			}
		}
	}
	if resp.StatusCode >= 400 && into == nil {
		s.t.Logf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode
}

// call is try that must succeed.
func (s *server) call(method, path string, body, into any) {
	s.t.Helper()
	var raw string
	if code := s.try(method, path, body, &raw); code != 200 {
		s.t.Fatalf("%s %s: status %d: %s", method, path, code, raw)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(raw), into); err != nil {
			s.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
}

type object = map[string]any

// environment creates a cloud environment and returns its id.
func (s *server) environment(config object) string {
	s.t.Helper()
	config["type"] = "cloud"
	var out struct{ ID string }
	s.call("POST", "/v1/environments", object{"name": fmt.Sprintf("e2e-%d", time.Now().UnixNano()), "config": config}, &out)
	return out.ID
}

// agent creates an agent and returns its id.
func (s *server) agent() string {
	s.t.Helper()
	var out struct{ ID string }
	s.call("POST", "/v1/agents", object{"name": "e2e", "model": "claude-opus-4-8"}, &out)
	return out.ID
}

// session creates a session and returns its id.
func (s *server) session(agent, environment string) string {
	s.t.Helper()
	var out struct{ ID string }
	s.call("POST", "/v1/sessions", object{"agent": agent, "environment_id": environment}, &out)
	return out.ID
}

// result is the answer of an exec that was not streamed.
type result struct {
	Stdout, Stderr string
	Code           int
	Signal         string
	TimedOut       bool `json:"timed_out"`
}

// exec runs a shell command in a session; it must be possible to run it.
func (s *server) exec(session, shell string) result {
	s.t.Helper()
	var out result
	s.call("POST", "/atoll/v1/sessions/"+session+"/exec?stream=false", object{"shell": shell, "timeout_ms": 300000}, &out)
	return out
}

// must runs a shell command that must exit 0 and returns its output, trimmed.
func (s *server) must(session, shell string) string {
	s.t.Helper()
	r := s.exec(session, shell)
	if r.Code != 0 {
		s.t.Fatalf("%s\nexit %d %s\nstdout: %s\nstderr: %s", shell, r.Code, r.Signal, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// waitFor polls a condition until it holds.
func waitFor(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// notable leaves out the log lines of requests that went well, and details
// other than why a connection was not made.
func notable(log []byte) []byte {
	var out []byte
	for line := range bytes.Lines(log) {
		boring := bytes.Contains(line, []byte(`"msg":"request"`)) && bytes.Contains(line, []byte(`"level":"INFO"`)) ||
			bytes.Contains(line, []byte(`"level":"DEBUG"`)) && !bytes.Contains(line, []byte("not connected"))
		if !boring {
			out = append(out, line...)
		}
	}
	return out
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return b
}

// leftovers lists what a data directory still has on this machine: mounts,
// namespaces, loop devices, cgroups, processes and per-session directories.
func leftovers(t *testing.T, data string) []string {
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, data+"/") {
			left = append(left, "mount: "+strings.TrimSpace(line))
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range loops {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), data+"/") {
			left = append(left, "loop device: "+strings.TrimSpace(string(b)))
		}
	}
	left = append(left, processesOf(data)...)
	return left
}

// processesOf lists processes that work on a data directory.
func processesOf(data string) []string {
	var left []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if bytes.Contains(cmdline, []byte(data)) {
			left = append(left, "process: "+strings.ReplaceAll(string(tail(cmdline, 300)), "\x00", " "))
		}
	}
	return left
}

// processIDs lists gVisor's processes of one kind, by its argv[0], that work on a
// data directory.
func processIDs(data, kind string) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if bytes.HasPrefix(cmdline, []byte(kind+"\x00")) && bytes.Contains(cmdline, []byte(data+"/")) {
			if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
