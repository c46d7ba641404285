package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The tests of this file have two greedy sessions, or strangers, take all that
// they can get of one thing, beside a third that measures: it has to work as if
// it were alone. What the greedy ones are refused, they are refused in words.

// neighbour is a session that measures what the others cost it.
type neighbour struct {
	*server
	id string
}

func (s *server) neighbour(agent, env string) *neighbour {
	s.t.Helper()
	n := &neighbour{server: s, id: s.session(agent, env)}
	s.must(n.id, "true")
	return n
}

// works has the neighbour and its owner do what they did before.
func (n *neighbour) works() {
	n.t.Helper()
	n.must(n.id, "echo here > /tmp/x && grep here /tmp/x")
	n.environment(object{"base_template": "slim"})
}

// attempt is one command of a greedy session: what it came to, or how it was
// refused.
type attempt struct {
	result
	status int
	said   string
}

// greedy runs a command in each of two new sessions at the same time, and
// returns what became of it when both have ended.
func (s *server) greedy(agent, env, shell string) []attempt {
	s.t.Helper()
	out := make([]attempt, 2)
	var wait sync.WaitGroup
	for i := range out {
		wait.Go(func() {
			var created struct{ ID string }
			var said string
			if out[i].status = s.try("POST", "/v1/sessions", object{"agent": agent, "environment_id": env}, &said); out[i].status == 200 {
				decode(s.t, said, &created)
				out[i].status = s.try("POST", "/atoll/v1/sessions/"+created.ID+"/exec?stream=false", object{"shell": shell, "timeout_ms": 240000}, &said)
			}
			if out[i].said = said; out[i].status == 200 {
				decode(s.t, said, &out[i].result)
			}
		})
	}
	wait.Wait()
	for i, a := range out {
		s.t.Logf("greedy session %d: status %d: %.300s", i+1, a.status, a.said)
		if a.status == 500 || a.status == 0 {
			s.t.Errorf("greedy session %d was not refused in words: status %d", i+1, a.status)
		}
	}
	return out
}

// E304: two sessions start all the processes that they can; each has a bound of
// its own outside of the sandbox too.
func TestE304Processes(t *testing.T) {
	const inside, outside = 300, 4096
	s := newServer(t, fmt.Sprintf("limits: {processes: %d}\n", inside))
	agent, env := s.agent(), s.environment(object{"base_template": "slim"})
	n := s.neighbour(agent, env)
	s.greedy(agent, env, "for i in $(seq 2000); do sleep 300 </dev/null >/dev/null 2>&1 & done; true")
	for range 5 {
		n.works()
	}
	seen := 0
	for _, pid := range processIDs(s.Data, "runsc-sandbox") {
		seen++
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		current, most := pidsOf(t, string(text))
		if most <= 0 || most > outside || current > most {
			t.Errorf("process %d: %d of %d in its cgroup, want a bound of at most %d:\n%s", pid, current, most, outside, text)
		}
	}
	if seen < 3 {
		t.Errorf("%d sandboxes are there", seen)
	}
	s.must(s.session(agent, env), "true")
}

// pidsOf reads how many processes are in the cgroup of a process, and how many
// may be; -1 where nothing bounds them.
func pidsOf(t *testing.T, cgroups string) (current, most int) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		for line := range strings.Lines(cgroups) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 || f[1] != "pids" && f[1] != "" {
				continue
			}
			limit, err := os.ReadFile(filepath.Join(root, f[2], "pids.max"))
			count, failed := os.ReadFile(filepath.Join(root, f[2], "pids.current"))
			if errors.Join(err, failed) != nil || strings.TrimSpace(string(limit)) == "max" {
				continue
			}
			most, _ = strconv.Atoi(strings.TrimSpace(string(limit)))
			current, _ = strconv.Atoi(strings.TrimSpace(string(count)))
			return current, most
		}
	}
	return 0, -1
}

// E307: two strangers without a key hold all the connections that they can, with
// requests that are never whole, with a server that may have few descriptors.
func TestE307KeylessClients(t *testing.T) {
	s := newServerIn(t, "", "", "prlimit", "--nofile=700:700")
	agent, env := s.agent(), s.environment(object{"base_template": "slim"})
	n := s.neighbour(agent, env)
	const each = 500
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for _, from := range []string{"127.0.0.2", "127.0.0.3"} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		for i := range each {
			c, err := d.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				break // refused is as good
			}
			held = append(held, c)
			if i%2 == 0 {
				_, _ = io.WriteString(c, "POST /v1/environments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n") // refused is as good
			}
		}
	}
	t.Logf("%d connections were made", len(held))
	for range 10 {
		n.works()
	}
	s.must(s.session(agent, env), "true")
}
