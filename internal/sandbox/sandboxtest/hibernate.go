package sandboxtest

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// counter counts in memory and writes each number to a file, so that what is
// lost or done twice shows as a gap or a repetition.
const counter = `import time
n = 0
while True:
    n += 1
    with open('/workspace/count', 'a') as f: f.write('%d\n' % n)
    time.sleep(0.005)
`

// shellServer owns a shell on a pseudo-terminal inside the sandbox and runs for
// each connection one line in it, as a persistent shell of an agent does.
const shellServer = `import os, socket
null = os.open('/dev/null', os.O_RDWR)
for fd in range(3): os.dup2(null, fd)
pid, master = os.forkpty()
if pid == 0: os.execv('/bin/sh', ['sh'])
server = socket.socket(socket.AF_UNIX)
server.bind('/workspace/shell.sock')
server.listen(5)
while True:
    conn, _ = server.accept()
    line = conn.recv(4096)
    os.write(master, line + b'echo END-$((40+2))\n')
    out = b''
    while b'END-42' not in out: out += os.read(master, 4096)
    conn.sendall(out)
    conn.close()
`

const shellClient = `import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect('/workspace/shell.sock')
s.sendall(sys.argv[1].encode() + b'\n')
out = b''
while True:
    part = s.recv(4096)
    if not part: break
    out += part
print(out.decode())
`

// background starts a program that holds nothing of the command that starts it.
func (s *suite) background(t *testing.T, id, name, program string) {
	t.Helper()
	s.write(t, id, "/workspace/"+name, program)
	s.sh(t, id, "setsid python3 /workspace/"+name+" </dev/null >/workspace/"+name+".log 2>&1 &")
}

func (s *suite) checkpointer(t *testing.T) sandbox.Checkpointer {
	t.Helper()
	c, ok := s.engine.(sandbox.Checkpointer)
	if !ok {
		t.Skip("this engine cannot put sandboxes aside")
	}
	return c
}

// hibernate puts a sandbox aside; a command that has just ended may be in the way.
func (s *suite) hibernate(t *testing.T, id string) {
	t.Helper()
	c := s.checkpointer(t)
	eventually(t, "the sandbox hibernates", func() bool {
		err := c.Checkpoint(testContext(t), id)
		if err != nil && !errors.Is(err, sandbox.ErrBusy) {
			t.Fatalf("checkpoint: %v", err)
		}
		return err == nil
	})
	s.state(t, id, sandbox.StateHibernated)
}

func (s *suite) restore(t *testing.T, id string) {
	t.Helper()
	if err := s.checkpointer(t).Restore(testContext(t), id, ""); err != nil {
		t.Fatalf("restore: %v", err)
	}
	s.state(t, id, sandbox.StateRunning)
}

func (s *suite) state(t *testing.T, id string, want sandbox.State) {
	t.Helper()
	info, err := s.engine.Inspect(testContext(t), id)
	if err != nil || info.State != want {
		t.Fatalf("sandbox is %q, %v; want %q", info.State, err, want)
	}
}

// counts waits for the counter to come past after and checks every line so far.
func (s *suite) counts(t *testing.T, id string, after int) (last int) {
	t.Helper()
	eventually(t, "the counter goes on", func() bool {
		content, err := s.read(t, id, "/workspace/count")
		if err != nil {
			return false
		}
		lines := strings.Split(strings.TrimSuffix(content, "\n"), "\n")
		for i, line := range lines {
			if n, err := strconv.Atoi(line); err != nil || n != i+1 {
				t.Fatalf("line %d of the counter is %q", i+1, line)
			}
		}
		last = len(lines)
		return last > after
	})
	return last
}

func testHibernate(t *testing.T, s *suite) {
	s.checkpointer(t)
	id := s.create(t, nil)
	s.background(t, id, "counter.py", counter)
	s.background(t, id, "shell.py", shellServer)
	s.write(t, id, "/workspace/client.py", shellClient)
	s.sh(t, id, "echo on-disk > /workspace/file; echo in-memory > /dev/shm/file; for i in $(seq 500); do [ -e /workspace/shell.sock ] && exit; sleep 0.01; done; cat /workspace/*.log >&2; exit 1")
	shell := func(line string) string { return s.sh(t, id, "python3 /workspace/client.py '"+line+"'") }
	shell("cd /usr; KEPT=variable")
	last := 0
	for round := range 3 {
		last = s.counts(t, id, last)
		s.hibernate(t, id)
		if usage, err := s.engine.Usage(testContext(t), id); err != nil || usage.MemoryBytes != 0 || usage.Processes != 0 || usage.DiskBytes == 0 {
			t.Errorf("round %d: usage while hibernated: %+v %v", round, usage, err)
		}
		start := time.Now()
		s.restore(t, id)
		t.Logf("round %d: restored in %v", round, time.Since(start))
		if got := s.sh(t, id, "cat /workspace/file /dev/shm/file; cat /proc/sys/kernel/hostname"); got != "on-disk\nin-memory\nsandbox\n" {
			t.Errorf("round %d: files: %q", round, got)
		}
		if got := shell("echo $KEPT in $(pwd)"); !strings.Contains(got, "variable in /usr") {
			t.Errorf("round %d: the shell on its terminal says %q", round, got)
		}
	}
	s.counts(t, id, last)
	// Orphans are still waited for, limits hold, and memory is counted.
	s.sh(t, id, "for i in $(seq 20); do (sleep 0.01 &) ; done")
	eventually(t, "no zombie is left", func() bool {
		return strings.TrimSpace(s.sh(t, id, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z' || true")) == "0"
	})
	got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "for i in $(seq 200); do sleep 30 & done"}})
	if got.Code == 0 {
		t.Error("200 processes run in a sandbox of 100")
	}
	if usage, err := s.engine.Usage(testContext(t), id); err != nil || usage.MemoryBytes == 0 {
		t.Errorf("usage after waking: %+v %v", usage, err)
	}
}

func testHibernated(t *testing.T, s *suite) {
	c, ctx := s.checkpointer(t), testContext(t)
	id := s.create(t, func(spec *sandbox.Spec) { spec.Labels = map[string]string{"kept": "yes"} })
	if err := c.Restore(ctx, id, ""); !errors.Is(err, sandbox.ErrRunning) {
		t.Errorf("restore of a running one: %v", err)
	}
	if err := c.Revive(ctx, id, ""); !errors.Is(err, sandbox.ErrRunning) {
		t.Errorf("revive of a running one: %v", err)
	}
	s.hibernate(t, id)
	s.hibernate(t, id) // once more changes nothing
	if _, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"true"}}); !errors.Is(err, sandbox.ErrHibernated) {
		t.Errorf("exec: %v", err)
	}
	if _, _, err := s.engine.ReadFile(ctx, id, "/etc/passwd"); !errors.Is(err, sandbox.ErrHibernated) {
		t.Errorf("read: %v", err)
	}
	infos, err := s.engine.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, info := range infos {
		found = found || info.ID == id && info.State == sandbox.StateHibernated && info.Files && info.Labels["kept"] == "yes"
	}
	if !found {
		t.Errorf("not in the list: %+v", infos)
	}
	if err := c.Restore(ctx, id, "/no/such/netns"); err == nil {
		t.Error("restored into a network that is not there")
	}
	s.state(t, id, sandbox.StateHibernated)
	s.restore(t, id)
	s.hibernate(t, id)
	if err := s.engine.Destroy(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.engine.Inspect(ctx, id); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("after destroy: %v", err)
	}
	for name, call := range map[string]func(context.Context, string) error{
		"checkpoint": c.Checkpoint,
		"restore":    func(ctx context.Context, id string) error { return c.Restore(ctx, id, "") },
		"revive":     func(ctx context.Context, id string) error { return c.Revive(ctx, id, "") },
	} {
		if err := call(ctx, id); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("%s after destroy: %v", name, err)
		}
	}
}

func testHibernateBusy(t *testing.T, s *suite) {
	c, ctx := s.checkpointer(t), testContext(t)
	id := s.create(t, nil)
	process, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"sleep", "1000"}, Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Checkpoint(ctx, id); !errors.Is(err, sandbox.ErrBusy) {
		t.Errorf("while a command runs: %v", err)
	}
	if err := process.Signal(ctx, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := process.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	// What still writes to a command's output would write into the void after a
	// restore, and notice.
	s.sh(t, id, "(while [ ! -e /tmp/stop ]; do echo noise; sleep 0.01; done) & true")
	if err := c.Checkpoint(ctx, id); !errors.Is(err, sandbox.ErrBusy) {
		t.Errorf("while a background process holds the output: %v", err)
	}
	s.sh(t, id, "touch /tmp/stop")
	s.hibernate(t, id)
	s.restore(t, id)
	// Commands that come at the same moment either run or are told.
	for range 3 {
		errs := make(chan error, 4)
		for range cap(errs) {
			go func() {
				process, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"true"}})
				if err == nil {
					_, err = process.Wait(ctx)
				}
				errs <- err
			}()
		}
		hibernated := c.Checkpoint(ctx, id)
		if hibernated != nil && !errors.Is(hibernated, sandbox.ErrBusy) {
			t.Error(hibernated)
		}
		for range cap(errs) {
			if err := <-errs; err != nil && !errors.Is(err, sandbox.ErrHibernated) {
				t.Errorf("a command at the moment of a checkpoint: %v", err)
			}
		}
		if hibernated == nil {
			s.restore(t, id)
		}
	}
}

func testRevive(t *testing.T, s *suite) {
	c, ctx := s.checkpointer(t), testContext(t)
	id := s.create(t, func(spec *sandbox.Spec) {
		spec.Limits.MemoryBytes = 128 << 20
		spec.Env = []string{"KEPT=yes"}
		spec.Files = map[string][]byte{"/etc/hosts": []byte("ours\n")}
	})
	s.sh(t, id, "echo mine > /workspace/file; mkdir /workspace/dir; rm /etc/issue; echo temp > /tmp/file; chmod 600 /workspace/file; ln -s file /workspace/link")
	check := func(what string) {
		t.Helper()
		s.state(t, id, sandbox.StateRunning)
		if got := s.sh(t, id, "cat file link /tmp/file /etc/hosts; stat -c %a file; ls -d dir; test ! -e /etc/issue; echo $KEPT; ls -A /tmp; cat /proc/[0-9]*/comm | grep -c sleep || true"); got != "mine\nmine\ntemp\nours\n600\ndir\nyes\nfile\n0\n" {
			t.Errorf("%s: %q", what, got)
		}
	}
	for range 2 {
		s.sh(t, id, "sleep 1000 >/dev/null 2>&1 &")
		s.kill(t, id)
		if info, err := s.engine.Inspect(ctx, id); err != nil || !info.Files {
			t.Errorf("a dead sandbox: %+v %v", info, err)
		}
		if err := c.Restore(ctx, id, ""); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("restore of a dead one: %v", err)
		}
		if err := c.Checkpoint(ctx, id); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("checkpoint of a dead one: %v", err)
		}
		if err := c.Revive(ctx, id, ""); err != nil {
			t.Fatal(err)
		}
		check("revived")
	}
	s.sh(t, id, "sleep 1000 >/dev/null 2>&1 &")
	s.hibernate(t, id)
	if err := c.Revive(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	check("revived from hibernation")
	got := s.exec(t, id, sandbox.Command{Args: []string{"sh", "-c", "dd if=/dev/zero of=big bs=1M count=400; rm big"}})
	if got.Code == 0 && strings.Contains(got.Stderr, "400+0 records out") {
		t.Error("400 MiB fit on a disk of 256 MiB")
	}
	s.hibernate(t, id)
	s.restore(t, id)
	if _, err := s.engine.Tree(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := c.Revive(ctx, id, ""); !errors.Is(err, sandbox.ErrFilesLost) {
		t.Errorf("revive after Tree: %v", err)
	}
}

// kill ends a sandbox from inside, as running out of memory does.
func (s *suite) kill(t *testing.T, id string) {
	t.Helper()
	ctx := testContext(t)
	eventually(t, "the sandbox dies", func() bool {
		process, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"python3", "-c",
			"import os\nfor i in range(8):\n  if os.fork() == 0: break\nb = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"}})
		if err == nil {
			_, _ = process.Wait(ctx)
		}
		info, err := s.engine.Inspect(ctx, id)
		return err == nil && info.State == sandbox.StateStopped
	})
}
