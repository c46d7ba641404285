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
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/atolltest"
)

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
	*atolltest.Server
	t *testing.T
}

// newServer starts a server on its own data directory. The configuration is
// YAML, or empty.
func newServer(t *testing.T, config string) *server {
	return newServerIn(t, "", config)
}

// newServerIn is newServer with a data directory in a directory, empty for the
// usual one, and with a program that starts the server in its place.
func newServerIn(t *testing.T, dir, config string, wrap ...string) *server {
	t.Helper()
	s := &server{Server: atolltest.Start(t, atolltest.Options{Binary: binary, Config: config, Parent: dir, Wrap: wrap}), t: t}
	t.Cleanup(func() {
		s.Close()
		if left := leftovers(t, s.Dir); len(left) > 0 {
			t.Errorf("left behind by %s:\n  %s", t.Name(), strings.Join(left, "\n  "))
		}
	})
	return s
}

// kill9 ends the server without a chance to tidy, and starts it again.
func (s *server) kill9() {
	s.t.Helper()
	s.Stop(syscall.SIGKILL)
	s.Start()
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
	req.Header.Set("x-api-key", atolltest.Key)
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

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

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
