package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/atolltest"
	"golang.org/x/sys/unix"
)

// The tests of this file have two greedy sessions, or strangers, take all that
// they can get of one thing, beside a third that measures: it has to work as if
// it were alone. What the greedy ones are refused, they are refused in words.

// smallDisk mounts a file system of this size, with so many inodes or, for 0,
// the usual number, and returns where.
func smallDisk(t *testing.T, bytes int64, inodes int) string {
	t.Helper()
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "m")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, bytes), os.Mkdir(at, 0o700)); err != nil {
		t.Fatal(err)
	}
	format := []string{"mkfs.ext4", "-q", "-F", "-m", "0"}
	if inodes > 0 {
		format = append(format, "-N", strconv.Itoa(inodes))
	}
	for _, args := range [][]string{append(format, image), {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		// What still uses it is a leak, and the server's own clean-up says which.
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
	return at
}

// neighbour is a session that measures what the others cost it.
type neighbour struct {
	*server
	id   string
	sums map[string]string // file in the sandbox → SHA-256 of what was written
}

func (s *server) neighbour(agent, env string) *neighbour {
	s.t.Helper()
	n := &neighbour{server: s, id: s.session(agent, env), sums: map[string]string{}}
	s.must(n.id, "true")
	return n
}

// writes has the neighbour write random bytes to its disk, and sync them.
func (n *neighbour) writes(name string, size int) {
	n.t.Helper()
	content := make([]byte, size)
	rand.Read(content)
	sum := sha256.Sum256(content)
	req, err := http.NewRequest("PUT", n.URL+"/atoll/v1/sessions/"+n.id+"/files?path=/root/"+name, strings.NewReader(string(content)))
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("x-api-key", atolltest.Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatalf("the neighbour writes %s: %v", name, err)
	}
	defer resp.Body.Close()
	if said, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
		n.t.Fatalf("the neighbour writes %s: %d %s", name, resp.StatusCode, said)
	}
	n.must(n.id, "sync")
	n.sums["/root/"+name] = hex.EncodeToString(sum[:])
}

// has holds what the neighbour wrote against what is on its disk, and not only
// in the host's memory.
func (n *neighbour) has() {
	n.t.Helper()
	for name, want := range n.sums {
		forget(n.t, filepath.Join(n.Dir, "sandboxes"), name)
		if got, _, _ := strings.Cut(n.must(n.id, "sha256sum "+name), " "); got != want {
			n.t.Errorf("the neighbour's %s is not what it wrote: %s, want %s", name, got, want)
		}
	}
}

// forget makes the host read a file of a sandbox from its disk again.
func forget(t *testing.T, sandboxes, name string) {
	t.Helper()
	found := false
	err := filepath.WalkDir(sandboxes, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, name) {
			return nil // what goes away meanwhile is not looked for
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		found = true
		_ = f.Sync() // an error of the disk shows in what is read then
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil || !found {
		t.Fatalf("looking for %s below %s: found: %v, %v", name, sandboxes, found, err)
	}
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

// peakMemory is the most memory that the server has had at a time.
func (s *server) peakMemory() int64 {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Process().Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n << 10
		}
	}
	s.t.Fatal("no VmHWM")
	return 0
}

// E301: two sessions write until they may not, on a host whose disk is smaller
// than what all may write together.
func TestE301Disk(t *testing.T) {
	s := newServerIn(t, smallDisk(t, 6<<30, 0), "limits: {disk: 4GiB}\n") // a server wants 5 GiB to begin with
	agent, env := s.agent(), s.environment(object{"base_template": "slim"})
	n := s.neighbour(agent, env)
	n.writes("before", 64<<20)
	for _, a := range s.greedy(agent, env, "dd if=/dev/zero of=/root/fill bs=1M 2>&1; sync; ls -l /root/fill") {
		if a.status == 200 && !strings.Contains(a.Stdout, "No space left on device") {
			t.Errorf("a greedy session was not told that its disk is full:\n%s%s", a.Stdout, a.Stderr)
		}
	}
	n.writes("after", 128<<20)
	n.has()
	n.works()
	var host unix.Statfs_t
	if err := unix.Statfs(s.Dir, &host); err != nil || host.Bavail == 0 {
		t.Errorf("the host's disk: %+v %v", host, err)
	}
}

// E302: two builds make more files than the host's file system has inodes. One
// fits; the other is refused, and leaves the host what it keeps free.
func TestE302Inodes(t *testing.T) {
	const files = "\n    for d in range(40):\n        os.makedirs(f'/usr/local/many/{d}')\n        for i in range(1000):\n            open(f'/usr/local/many/{d}/{i}', 'w').close()\n"
	m := newMirror(t)
	names := []string{"atoll-e2e-files-one", "atoll-e2e-files-two"}
	for _, name := range names {
		m.addSource(t, name, files+strings.ReplaceAll(wheel, "NAME", strings.ReplaceAll(name, "-", "_")))
	}
	const inodes = 45_000
	s := newServerIn(t, smallDisk(t, 8<<30, inodes), m.config("limits: {disk: 256MiB}\npackages: {disk: 1GiB}\n"))
	agent, env := s.agent(), s.environment(object{"base_template": "slim"})
	n := s.neighbour(agent, env)
	n.writes("before", 1<<20)
	lowest := lowestInodes(t, s.Dir)
	status := map[string]int{}
	for _, name := range names {
		b := s.built(s.environment(mirrored(object{"pip": []string{name}})))
		t.Logf("%s: %s %+v", name, b.Status, b.Error)
		status[b.Status]++
	}
	if status["ready"] != 1 || status["failed"] != 1 {
		t.Errorf("the builds: %v, want one that fits and one that does not", status)
	}
	n.writes("after", 1<<20)
	n.has()
	n.works()
	s.must(s.session(agent, env), "touch /root/x")
	if got := lowest(); got < inodes/25 {
		t.Errorf("the host had %d inodes left, want a twenty-fifth of %d", got, inodes)
	}
}

// lowestInodes watches how many inodes are free on the file system of a
// directory. The function ends that and tells the lowest number.
func lowestInodes(t *testing.T, dir string) func() uint64 {
	t.Helper()
	stop, lowest := make(chan struct{}), make(chan uint64, 1)
	go func() {
		least := ^uint64(0)
		for {
			var host unix.Statfs_t
			if unix.Statfs(dir, &host) == nil {
				least = min(least, host.Ffree)
			}
			select {
			case <-stop:
				lowest <- least
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(stop); return <-lowest }
}

// E303: two sessions hold all the connections that they get, with a server that
// may have few descriptors.
func TestE303Descriptors(t *testing.T) {
	site := newSite(t)
	end := make(chan struct{})
	site.hosts["hang"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-end:
		case <-r.Context().Done():
		}
	})
	site.hosts["ok"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	s := newServerIn(t, "", site.config(), "prlimit", "--nofile=1200:1200")
	agent, env := s.agent(), s.environment(object{"base_template": "slim", "networking": object{"type": "limited", "allowed_hosts": []string{"hang.example.com", "ok.example.com"}}})
	n := s.neighbour(agent, env)
	const held = 400
	done := make(chan []attempt, 1)
	go func() {
		done <- s.greedy(agent, env, fmt.Sprintf(`for i in $(seq %d); do curl -sk --max-time 60 https://hang.example.com/ & done; wait; true`, held))
	}()
	// Each of the greedy ones gets a share of the 1,200 and not more, six for a
	// connection; the rest of their programs are refused meanwhile.
	const shares = 60
	waitFor(t, 120*time.Second, "the greedy sessions' connections", func() bool { return site.asked("hang") >= shares })
	for range 20 {
		if got := n.must(n.id, "curl -sk --max-time 20 https://ok.example.com/"); got != "ok" {
			t.Errorf("the neighbour got %q", got)
		}
		n.works()
	}
	s.must(s.session(agent, env), "true")
	close(end)
	<-done
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
	for _, pid := range processIDs(s.Dir, "runsc-sandbox") {
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

// E305: the clients of two sessions send almost all of large requests and stop,
// and collect large outputs.
func TestE305Memory(t *testing.T) {
	// A quarter for requests; the rest is the server itself, and what its garbage
	// collector has not given back.
	const most = 640 << 20
	s := newServer(t, "http: {memory: 160MiB}\n")
	agent, env := s.agent(), s.environment(object{"base_template": "slim"})
	n := s.neighbour(agent, env)
	piece := []byte(strings.Repeat("x", 1<<20))
	for range 2 {
		session := s.session(agent, env)
		for range 12 {
			c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprintf(c, "POST /v1/sessions/%s/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"events\":[{\"type\":\"user.message\",\"content\":[{\"type\":\"text\",\"text\":\"", session, atolltest.Key, 32<<20)
			for range 31 {
				if _, err := c.Write(piece); err != nil { // refused meanwhile
					break
				}
			}
		}
	}
	n.works()
	for range 3 {
		s.greedy(agent, env, "head -c 25165824 /dev/zero | tr '\\0' x")
		n.works()
	}
	if got := s.peakMemory(); got > most {
		t.Errorf("the server has taken %d MiB, want at most %d", got>>20, most>>20)
	}
}

// E306: two builds sleep; a third one that is not theirs is made meanwhile.
func TestE306Builds(t *testing.T) {
	m := newMirror(t)
	var greedy []string
	for _, name := range []string{"atoll-e2e-sleep-one", "atoll-e2e-sleep-two"} {
		m.addSource(t, name, backends["atoll-e2e-sleep"])
	}
	s := newServer(t, m.config("packages: {manager_timeout: 5m}\n"))
	s.builtAtLast(s.agent(), s.environment(mirrored(object{}))) // the template
	for _, name := range []string{"atoll-e2e-sleep-one", "atoll-e2e-sleep-two"} {
		env := s.environment(mirrored(object{"pip": []string{name}}))
		greedy = append(greedy, env)
		waitFor(t, 5*time.Minute, "a build to be under way or wait", func() bool {
			var b build
			s.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &b)
			return b.Status == "building" || b.Status == "queued"
		})
	}
	if b := s.built(s.environment(mirrored(object{"pip": []string{"six==1.17.0"}}))); b.Status != "ready" {
		t.Errorf("the neighbour's build: %s %+v", b.Status, b.Error)
	}
	for _, env := range greedy {
		var b build
		s.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &b)
		if b.Status != "building" && b.Status != "queued" {
			t.Errorf("the neighbour waited until a greedy build was %s", b.Status)
		}
		s.call("DELETE", "/v1/environments/"+env, nil, nil)
	}
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
