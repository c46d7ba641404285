package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// counterProgram counts in memory and writes each number to a file: what is lost
// or done twice shows as a gap or a repetition.
const counterProgram = `import time
n = 0
while True:
    n += 1
    with open('/workspace/count', 'a') as f: f.write('%d\n' % n)
    time.sleep(0.01)
`

// quietly starts a program in the background that holds nothing of the command
// which starts it.
func (s *server) quietly(session, name, program string) {
	s.t.Helper()
	s.put(session, "/workspace/"+name, []byte(program))
	s.must(session, "setsid python3 /workspace/"+name+" </dev/null >/workspace/"+name+".log 2>&1 &")
}

// counting waits until the counter goes on, and checks every number so far.
func (s *server) counting(session string) {
	s.t.Helper()
	s.must(session, `n=$(wc -l < count); while [ $(wc -l < count) -le $n ]; do sleep 0.01; done
head -n $(wc -l < count) count | awk '$1 != NR { print "line " NR " is " $1; exit 1 }'`)
}

// sandboxes reads how many sandboxes are in a state.
func (s *server) sandboxes(state string) int {
	s.t.Helper()
	var text string
	if code := s.try("GET", "/metrics", nil, &text); code != 200 {
		s.t.Fatalf("metrics: %d", code)
	}
	m := regexp.MustCompile(`atoll_sandboxes\{state="` + state + `"\} (\d+)`).FindStringSubmatch(text)
	if m == nil {
		s.t.Fatalf("no metric of %s sandboxes", state)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *server) allHibernate(n int) {
	s.t.Helper()
	waitFor(s.t, 120*time.Second, fmt.Sprintf("%d sandboxes to hibernate", n), func() bool { return s.sandboxes("hibernated") == n })
	for _, p := range processesOf(s.Dir) {
		if strings.Contains(p, "runsc-") {
			s.t.Errorf("a hibernated sandbox has a process: %s", p)
		}
	}
}

// held keeps one connection open until the client has gone.
func held(t *testing.T) (address string, gone chan struct{}) {
	t.Helper()
	address = fmt.Sprintf("127.%d.%d.1", 64+rand.IntN(64), rand.IntN(256))
	l, err := net.Listen("tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	gone = make(chan struct{}, 10)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			gone <- struct{}{}
			return
		}
		fmt.Fprintln(w, "hello")
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return address, gone
}

// TestHibernation lets a sandbox with servers, connections and a counter
// hibernate, and uses it again in every way.
func TestHibernation(t *testing.T) {
	address, gone := held(t)
	s := newServer(t, fmt.Sprintf("sessions: {hibernate_after: 2s}\negress:\n  hosts: {www.example.com: [%s]}\n  exempt: [{host: www.example.com, cidr: %s/32}]\n", address, address))
	env := s.environment(object{"base_template": "slim", "networking": object{"type": "limited", "allowed_hosts": []string{"www.example.com"}}})
	id := s.session(s.agent(), env)
	s.quietly(id, "counter.py", counterProgram)
	s.must(id, "mkdir /workspace/site; echo from-inside > /workspace/site/page; (cd /workspace/site; setsid python3 -m http.server --bind 127.0.0.1 8123 </dev/null >/workspace/http.log 2>&1 &)")
	s.must(id, "(setsid curl -sSN http://www.example.com/hold </dev/null >/workspace/curl.log 2>&1; echo ended $? >> /workspace/curl.log) >/dev/null 2>&1 </dev/null &")
	inside := "for i in $(seq 200); do curl -s http://127.0.0.1:8123/page && exit; sleep 0.05; done; exit 1"
	names := "getent hosts www.example.com refused.example.com | awk '{print $1}'"
	if got := s.must(id, inside); got != "from-inside" {
		t.Fatalf("the server inside says %q", got)
	}
	before := s.must(id, names)
	for round := range 3 {
		s.allHibernate(1)
		if round == 0 {
			select {
			case <-gone:
			case <-time.After(30 * time.Second):
				t.Error("a connection to the outside stays open while its sandbox hibernates")
			}
		}
		var records struct{ Data []object }
		s.call("GET", "/atoll/v1/sessions/"+id+"/egress", nil, &records)
		if len(records.Data) == 0 || s.sandboxes("hibernated") != 1 {
			t.Errorf("decisions of a hibernated session: %v", records)
		}
		var page string
		if code := s.try("GET", "/atoll/v1/sessions/"+id+"/files?path=/workspace/site/page", nil, &page); code != 200 || page != "from-inside\n" {
			t.Errorf("reading a file wakes: %d %q", code, page)
		}
		s.counting(id)
		if got := s.must(id, inside); got != "from-inside" {
			t.Errorf("the server inside says %q", got)
		}
		if got := s.must(id, names); got != before {
			t.Errorf("names have other addresses: %q, before %q", got, before)
		}
		if got := s.must(id, "curl -sS http://www.example.com/"); got != "hello" {
			t.Errorf("the network after waking: %q", got)
		}
		if got := s.must(id, "curl -s -o /dev/null -w '%{http_code}' http://refused.example.com/"); got != "403" {
			t.Errorf("a refused host after waking: %q", got)
		}
	}
	s.must(id, "while ! grep -q ended curl.log; do sleep 0.05; done") // it notices that its connection is gone
	// A command that runs is use, however long it says nothing.
	if got := s.must(id, "sleep 5; echo $PPID"); s.sandboxes("hibernated") != 0 {
		t.Errorf("a sandbox hibernated under a command, which says %q", got)
	}
	s.allHibernate(1)
	s.kill9()
	s.allHibernate(1)
	s.counting(id)
	s.allHibernate(1)
	s.Stop(syscall.SIGTERM)
	s.Start()
	if got := s.must(id, inside+" && curl -sS http://www.example.com/"); got != "from-inside" {
		t.Errorf("after a restart the server inside says %q", got)
	}
	s.counting(id)
}

// TestKilledWhileHibernating kills the server while sandboxes are put aside and
// brought back. Not one number of their counters is lost or written twice.
func TestKilledWhileHibernating(t *testing.T) {
	s := newServer(t, "sessions: {hibernate_after: 1s}\nlimits: {memory: 512MiB}\n")
	env, agent := s.environment(object{"base_template": "slim"}), s.agent()
	ids := make([]string, 4)
	for i := range ids {
		ids[i] = s.session(agent, env)
		s.quietly(ids[i], "counter.py", counterProgram)
	}
	for round := range 6 {
		<-time.After(time.Second + time.Duration(rand.IntN(600))*time.Millisecond) // any moment will do
		s.kill9()
		var all sync.WaitGroup
		for _, id := range ids {
			all.Go(func() { s.counting(id) })
		}
		all.Wait()
		if round%2 == 1 { // while all wake
			s.allHibernate(len(ids))
			for _, id := range ids {
				all.Go(func() {
					s.try("POST", "/atoll/v1/sessions/"+id+"/exec?stream=false", object{"shell": "true"}, new(string))
				})
			}
			<-time.After(time.Duration(rand.IntN(500)) * time.Millisecond)
			s.kill9()
			all.Wait()
			for _, id := range ids {
				all.Go(func() { s.counting(id) })
			}
			all.Wait()
		}
	}
}

// TestManyHibernate has twenty sandboxes hibernate and wakes them all at once.
func TestManyHibernate(t *testing.T) {
	s := newServer(t, "sessions: {hibernate_after: 1s}\nlimits: {memory: 256MiB, disk: 256MiB, processes: 200}\n")
	env, agent := s.environment(object{"base_template": "slim"}), s.agent()
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = s.session(agent, env)
		s.must(ids[i], fmt.Sprintf("echo %d > /dev/shm/mine; setsid sleep 55555 </dev/null >/dev/null 2>&1 &", i))
	}
	s.allHibernate(len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			if got := s.must(id, "cat /dev/shm/mine; cat /proc/[0-9]*/comm | grep -c sleep"); got != fmt.Sprintf("%d\n1", i) {
				t.Errorf("session %d: %q", i, got)
			}
		})
	}
	all.Wait()
	s.allHibernate(len(ids)) // and are deleted so
}

// TestDeadSandboxKeepsItsFiles has the memory limit end sandboxes.
func TestDeadSandboxKeepsItsFiles(t *testing.T) {
	s := newServer(t, "limits: {memory: 128MiB}\n")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	const fill = "import os\nfor i in range(8):\n  if os.fork() == 0: break\nb = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"
	for round := range 2 {
		s.must(id, fmt.Sprintf("echo %d >> /workspace/mine; setsid sleep 44444 </dev/null >/dev/null 2>&1 &", round))
		waitFor(t, 120*time.Second, "the sandbox to die", func() bool {
			var raw string
			code := s.try("POST", "/atoll/v1/sessions/"+id+"/exec?stream=false", object{"command": []string{"python3", "-c", fill}}, &raw)
			if code == 409 && !strings.Contains(raw, "files are kept") {
				t.Errorf("told %s", raw)
			}
			return s.must(id, "cat /proc/[0-9]*/comm | grep -c sleep || true") == "0"
		})
		if got := s.must(id, "cat /workspace/mine; ls /workspace"); got != strings.Repeat("0\n1\n", 1)[:2*(round+1)]+"mine" {
			t.Errorf("round %d: files of the remade sandbox: %q", round, got)
		}
	}
	// While the server is away, too.
	s.Stop(syscall.SIGTERM)
	killed := 0
	for _, p := range processIDs(s.Dir, "runsc-sandbox") {
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed++
	}
	if killed != 1 {
		t.Fatalf("killed %d sandboxes, want 1", killed)
	}
	s.Start()
	if got := s.must(id, "cat /workspace/mine"); got != "0\n1" {
		t.Errorf("files after a restart: %q", got)
	}
}

// TestAgentHibernates has an agent's own shell go on after hibernation, and the
// agent's log say that a sandbox died.
func TestAgentHibernates(t *testing.T) {
	s, _ := newAgentServer(t, "sessions: {hibernate_after: 1s}\n")
	session := s.session(s.toolAgent("always_allow"), s.environment(object{"base_template": "slim"}))
	turns := 0
	say := func(command, want string) {
		t.Helper()
		turns++
		s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{bash(command)}}, {Text: "{{result}}"}}.Message())
		log := s.idle(session, turns, 2*time.Minute)
		answer := ""
		for _, e := range log {
			if e.Type == "agent.message" {
				answer = e.text()
			}
		}
		if !strings.Contains(answer, want) {
			t.Errorf("%s: the answer is %q, want %q in it", command, answer, want)
		}
	}
	say("cd /usr/lib; KEPT=variable; echo begun", "begun")
	for range 2 {
		s.allHibernate(1)
		say(`echo "$KEPT in $PWD"`, "variable in /usr/lib")
	}
	s.must(session, "echo mine > /workspace/mine")
	for _, pid := range processIDs(s.Dir, "runsc-sandbox") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	say(`cat /workspace/mine; echo "now $KEPT in $PWD"`, "mine\nnow  in /workspace")
	if log, _ := s.events(session); count(log, "session.error") != 1 {
		t.Errorf("%d session.error events, want one that tells of the sandbox: %v", count(log, "session.error"), kinds(log))
	}
}
