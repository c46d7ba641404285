package security

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// E221: a server that has run out of something refuses, and recovers without a
// restart. It is a process of its own, so that nobody else runs out.
func TestExhaustion(t *testing.T) {
	t.Parallel()
	for mode := range allModes() {
		needHost(t)
		for _, place := range []string{inGVisor, inPlain} {
			t.Run(mode+"/"+place, func(t *testing.T) {
				t.Parallel()
				s := newStand(t, place, mode, nil)
				dir := t.TempDir()
				t.Cleanup(func() {
					if err := leaveDirectory(dir); err != nil {
						t.Error(err)
					}
				})
				server := startServer(t, s, dir)
				s.try(t, "E221", func(c *attempt) {
					c.outOfDescriptors(server.Process.Pid)
					if peak := statusOf(c, server.Process.Pid, "VmHWM:"); peak > 256<<10 {
						c.Errorf("the server took %d KiB at its peak", peak)
					}
					c.note("descriptors and memory")
				})
			})
		}
	}
}

// outOfDescriptors leaves the server a few descriptors, and has the sandbox take
// them all by connections that say nothing to the end.
func (c *attempt) outOfDescriptors(pid int) {
	c.Helper()
	s := c.s
	const spare, connections = 24, 100
	address := c.address("ok.example.com")
	c.reaches()
	limit, idle := len(openFiles(c, pid))+spare, sockets(c, pid)
	c.limitFiles(pid, limit)
	flood := s.probe.start(c, wire.Request{Op: "many", Addresses: slices.Repeat([]string{at(address, 443)}, connections), Parallel: connections, Data: helloAs(c, "ok.example.com")[:50], WaitMS: 15_000})
	eventually(c, "no descriptor left", func() bool { return len(openFiles(c, pid)) >= limit-1 })
	c.stillRefused()
	for outcome := range (<-flood).Counts {
		if strings.HasPrefix(outcome, "HTTP/") {
			c.Errorf("half a hello was answered %q", outcome)
		}
	}
	c.recovers()
	c.limitFiles(pid, 4096)
	// Of the connections that waited for descriptors some were served only then.
	eventually(c, "the end of the last connection", func() bool { return sockets(c, pid) <= idle })
	c.packets(func(p string) bool { return strings.HasPrefix(p, "tcp up:") })
}

func (c *attempt) limitFiles(pid, n int) {
	c.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: 4096}, nil); err != nil {
		c.Fatal(err)
	}
}

// stillRefused tries what is refused at all times.
func (c *attempt) stillRefused() {
	c.Helper()
	for _, address := range []string{"198.18.0.1:80", "169.254.100.1:15001", "10.0.0.5:80", "169.254.169.254:80"} {
		r := c.do(wire.Request{Op: "talk", Address: address, Data: []byte(httpGet("ok.example.com")), WaitMS: 1000})
		if strings.Contains(string(r.Data), " 200 ") {
			c.Errorf("%s: %s", address, told(r))
		}
	}
}

// reaches makes an allowed request, and tells whether it was answered.
func (c *attempt) reaches() bool {
	c.Helper()
	return c.do(wire.Request{Op: "get", URL: "http://ok.example.com/", WaitMS: 5000}).Status == 200
}

// recovers waits until an allowed request is answered, by the same process, and
// looks at what was asked of the internet meanwhile.
func (c *attempt) recovers() {
	c.Helper()
	eventually(c, "an answer again", c.reaches)
	s := c.s
	s.mu.Lock()
	for _, seen := range s.seen {
		if seen != "GET http ok.example.com/ 0" {
			c.Errorf("upstream saw %q", seen)
		}
	}
	s.seen = nil
	s.mu.Unlock()
}

// openFiles are what a process's descriptors stand for.
func openFiles(t testing.TB, pid int) (out []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(dir + fd.Name()) // one that was closed meanwhile stands for nothing
		out = append(out, to)
	}
	return out
}

// sockets counts those of a process; pipes that move data stay for a while when
// the connection has ended.
func sockets(t testing.TB, pid int) (n int) {
	t.Helper()
	for _, to := range openFiles(t, pid) {
		if strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// statusOf is a number that the kernel tells of a process.
func statusOf(t testing.TB, pid int, field string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", field)
	return 0
}
