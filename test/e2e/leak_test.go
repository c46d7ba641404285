package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestNothingIsLeftBehind creates and deletes 200 sessions, with ten SIGKILLs of
// the server on the way, and then looks for whatever remains on the machine.
func TestNothingIsLeftBehind(t *testing.T) {
	const sessions, kills, workers = 200, 10, 4
	s := newServer(t, "")
	env := s.environment(object{"base_template": "slim"})
	agent := s.agent()
	first := s.session(agent, env) // the template is built, the caches are warm
	s.must(first, "true")
	s.call("DELETE", "/v1/sessions/"+first, nil, nil)
	before := machine(t, s.Dir)

	var done atomic.Int64
	var up sync.RWMutex // held for writing while the server is down
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done.Add(1) <= sessions {
				up.RLock()
				oneSession(s, agent, env, done.Load()%2 == 0)
				up.RUnlock()
			}
		})
	}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for k := range int64(kills) {
			waitFor(t, 4*time.Minute, "progress", func() bool { return done.Load() >= (k+1)*sessions/(kills+1) })
			// Not under the lock: requests are under way when the kill comes.
			_ = s.Process().Signal(syscall.SIGKILL)
			up.Lock()
			s.Stop(syscall.SIGKILL)
			s.Start()
			up.Unlock()
		}
	}()
	wg.Wait()
	<-killed
	s.DeleteSessions()

	waitFor(t, 30*time.Second, "the machine to be as before", func() bool { return len(diff(before, machine(t, s.Dir))) == 0 || t.Failed() })
	if d := diff(before, machine(t, s.Dir)); len(d) > 0 {
		t.Errorf("left behind after %d sessions and %d kills:\n  %s", sessions, kills, strings.Join(d, "\n  "))
	}
}

// oneSession creates, perhaps uses, and deletes a session. The server may be
// killed at any moment, so each step may go unanswered; what was acknowledged
// is deleted at the latest by deleteAllSessions.
func oneSession(s *server, agent, env string, use bool) {
	var out struct{ ID string }
	if s.try("POST", "/v1/sessions", object{"agent": agent, "environment_id": env}, &out) != 200 {
		return
	}
	if use {
		var r result
		s.try("POST", "/atoll/v1/sessions/"+out.ID+"/exec?stream=false", object{"shell": "echo x > /workspace/x; (sleep 100 &)"}, &r)
	}
	s.try("DELETE", "/v1/sessions/"+out.ID, nil, nil)
}

// machine counts what a server can leave on a machine.
func machine(t *testing.T, data string) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], data+"/") {
			seen["mount "+f[4]] = true
		}
	}
	for _, pattern := range []string{"/sys/class/net/*", "/run/netns/*", "/sys/fs/cgroup/*/atoll*/*", "/sys/fs/cgroup/*/atoll*/*/*", "/sys/fs/cgroup/atoll*/*"} {
		names, _ := filepath.Glob(pattern)
		for _, n := range names {
			if fi, err := os.Stat(n); err == nil && fi.IsDir() {
				seen[n] = true
			}
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range loops {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), data+"/") {
			seen["loop "+strings.TrimSpace(string(b))] = true
		}
	}
	for _, p := range processesOf(data) {
		if !strings.Contains(p, " serve ") {
			seen[p] = true
		}
	}
	dirs, _ := filepath.Glob(data + "/*/*")
	for _, d := range dirs {
		seen["entry "+d] = true
	}
	return seen
}

// diff lists what is in after and not in before. Pools made ahead have other
// names each time, so entries are compared by count per kind where they are
// pooled: see pooled.
func diff(before, after map[string]bool) []string {
	var extra []string
	for k := range after {
		if !before[k] && !pooled(k) {
			extra = append(extra, k)
		}
	}
	return extra
}

// pooled tells what the server keeps ready for the next session under a name of
// its own; the clean-up of the harness checks that it goes with the server.
func pooled(name string) bool { return strings.Contains(name, "/pool") }
