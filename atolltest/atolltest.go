// Package atolltest starts a real Atoll server for a test, in one call:
//
//	server := atolltest.Start(t, atolltest.Options{})
//	client := anthropic.NewClient(option.WithBaseURL(server.URL), option.WithAPIKey(server.Key))
//
// The server is the program itself, with real sandboxes, on a data directory of
// its own that goes when the test ends. Templates come from the user's cache
// directory, which all servers share: the first test on a machine waits minutes
// for the default template, later ones do not. It needs root, and what
// docs/operations.md says that a machine must have; [Available] tells.
//
// Nothing is faked, so a failure of the server fails the test, with the end of
// the server's log. Servers of tests that run at the same time do not see each
// other, but they share the machine: [Options] has small limits by default.
package atolltest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Key is the API key of every server that [Start] starts. It opens the server's
// default workspace.
const Key = "sk-atoll-test-0123456789"

// startTime is how long a server may take until it answers.
const startTime = time.Minute

// stopTime is how long a server may take to end on SIGTERM.
const stopTime = 30 * time.Second

// Options say how a server is started. The zero value is right for most tests.
type Options struct {
	// Binary is the path of the atoll program. Empty means what the variable
	// ATOLL_BINARY names, else atoll on PATH.
	Binary string
	// Config is the server's configuration file, YAML. Without a "limits:" in it
	// each sandbox gets 1 GiB of disk and 400 processes, which any machine can
	// promise to several. The address, the data and the cache directory are set
	// by Start.
	Config string
	// Parent is the directory in which the data directory is made; empty means
	// the system's for temporary files. Its path should be short: sockets lie below.
	Parent string
	// Cache is the cache directory. Empty means what the variable ATOLL_CACHE
	// names, else the user's.
	Cache string
	// Env is added to the server's environment, as KEY=VALUE.
	Env []string
	// Wrap is a program, with arguments, that executes the server in its place;
	// empty means none.
	Wrap []string
}

// Server is a running server. Its methods may be called by one goroutine at a
// time; they fail the test when something goes wrong.
type Server struct {
	// URL is where it answers, http on loopback; the same after a restart.
	URL string
	// Key is the constant of that name.
	Key string
	// Dir is its data directory.
	Dir string
	// Cache is its cache directory.
	Cache string
	// Args are the program's arguments. A change holds from the next Start on.
	Args []string
	// Env is what Options.Env was. A change holds from the next Start on.
	Env []string

	t      testing.TB
	binary string
	wrap   []string
	run    *run // nil while it is stopped
}

// run is one life of the server's process.
type run struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when the process has ended
}

// Available tells why no server can be started here, or nil: a test may skip
// itself by it.
func Available() error {
	if os.Getuid() != 0 {
		return errors.New("atolltest: sandboxes, mounts and network namespaces need root")
	}
	_, err := findBinary("")
	return err
}

func findBinary(path string) (string, error) {
	if path == "" {
		path = os.Getenv("ATOLL_BINARY")
	}
	if path == "" {
		path = "atoll"
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("atolltest: no atoll program; set ATOLL_BINARY to its path: %w", err)
	}
	return filepath.Abs(found)
}

// Start starts a server and returns when it answers. When the test ends, its
// sessions are deleted, it is stopped with SIGTERM, and its data directory is
// removed; what it leaves mounted then is an error of the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	binary, err := findBinary(o.Binary)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: the name should be short, for sockets, and a mount that is
	// left should be an error of its own.
	dir, err := os.MkdirTemp(o.Parent, "atoll-d-")
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	s := &Server{URL: "http://" + address, Key: Key, Dir: dir, Cache: cacheDir(t, o.Cache), Env: o.Env, t: t, binary: binary, wrap: o.Wrap}
	config := o.Config
	if !strings.Contains(config, "limits:") {
		config += "\nlimits: {disk: 1GiB, processes: 400}\n"
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Args = []string{"serve", "--listen", address, "--data", dir, "--cache", s.Cache, "--config", file}
	t.Cleanup(s.remove)
	s.Start()
	return s
}

// Close deletes the server's sessions and stops it, as the end of the test does.
// Its data directory stays until then.
func (s *Server) Close() {
	s.t.Helper()
	if s.run != nil {
		s.DeleteSessions()
		s.Stop(syscall.SIGTERM)
	}
}

// remove undoes Start.
func (s *Server) remove() {
	s.Close()
	if s.t.Failed() {
		s.t.Logf("the server's log without requests that succeeded:\n%s", s.LogTail(12_000))
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		s.t.Errorf("removing the data directory: %v", err)
	}
}

func cacheDir(t testing.TB, dir string) string {
	if dir != "" {
		return dir
	}
	if dir := os.Getenv("ATOLL_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "atoll")
}

// ports are the loopback ports that this process has given to servers: one that
// is stopped comes back to its own.
var ports struct {
	sync.Mutex
	given map[string]bool
}

func freeAddress(t testing.TB) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[string]bool{}
	}
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		if !ports.given[address] {
			ports.given[address] = true
			return address
		}
	}
}

// Start starts the server again after a Stop, on the same data and the same
// address, and returns when it answers.
func (s *Server) Start() {
	s.t.Helper()
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	command := append(append(s.wrap[:len(s.wrap):len(s.wrap)], s.binary), s.Args...)
	r := &run{cmd: exec.Command(command[0], command[1:]...), log: log, done: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), append([]string{"ATOLL_API_KEY=" + Key, "ATOLL_LOG_LEVEL=debug"}, s.Env...)...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	// A terminal's Ctrl-C must not reach it, and a kill of it must not be a kill
	// of its group: sandboxes outlive the server.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // the reason stands in the log
		close(r.done)
	}()
	s.run = r
	if err := s.answers(); err != nil {
		s.t.Fatal(err)
	}
}

// answers waits until the server answers or has ended.
func (s *Server) answers() error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(startTime)
	for {
		resp, err := http.Get(s.URL + "/healthz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-s.run.done:
			return fmt.Errorf("the server ended: %v\n%s", s.run.cmd.ProcessState, s.LogTail(4000))
		case <-late:
			return fmt.Errorf("the server does not answer within %v\n%s", startTime, s.LogTail(4000))
		case <-tick.C:
		}
	}
}

// Stop sends a signal to the server and waits for its end. Sandboxes go on. A
// server that is stopped already is left alone.
func (s *Server) Stop(signal syscall.Signal) {
	s.t.Helper()
	if s.run == nil {
		return
	}
	_ = s.run.cmd.Process.Signal(signal)
	select {
	case <-s.run.done:
	case <-time.After(stopTime):
		s.t.Errorf("the server does not end on %v", signal)
		_ = s.run.cmd.Process.Kill()
		<-s.run.done
	}
	_ = s.run.log.Close()
	s.run = nil
}

// Process is the server's process, or nil while it is stopped.
func (s *Server) Process() *os.Process {
	if s.run == nil {
		return nil
	}
	return s.run.cmd.Process
}

// LogFile is the path of the server's log, all its lives in one.
func (s *Server) LogFile() string { return filepath.Join(s.Dir, "test-server.log") }

// LogTail is the end of the server's log, at most n bytes, without requests
// that went well and without details other than why a connection was not made.
func (s *Server) LogTail(n int) string {
	text, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	var out []byte
	for line := range bytes.Lines(text) {
		var entry struct{ Level, Msg string }
		_ = json.Unmarshal(line, &entry) // what is no entry of the log is kept
		boring := entry.Level == "INFO" && entry.Msg == "request" || entry.Level == "DEBUG" && !bytes.Contains(line, []byte("not connected"))
		if !boring {
			out = append(out, line...)
		}
	}
	return string(out[max(0, len(out)-n):])
}

// DeleteSessions deletes every session, with its sandbox. Nothing is deleted if
// the server does not answer.
func (s *Server) DeleteSessions() {
	for {
		var list struct{ Data []struct{ ID string } }
		body, status := s.request(http.MethodGet, "/v1/sessions?limit=100&include_archived=true")
		if status != http.StatusOK || json.Unmarshal(body, &list) != nil || len(list.Data) == 0 {
			return
		}
		for _, session := range list.Data {
			if body, status := s.request(http.MethodDelete, "/v1/sessions/"+session.ID); status != http.StatusOK {
				s.t.Errorf("deleting session %s: %d %s", session.ID, status, body)
				return
			}
		}
	}
}

// request returns a reply's body and status, zero if the server does not answer.
func (s *Server) request(method, path string) ([]byte, int) {
	req, err := http.NewRequest(method, s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("x-api-key", Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, 0
	}
	return body, resp.StatusCode
}
