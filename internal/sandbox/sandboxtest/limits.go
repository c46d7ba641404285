package sandboxtest

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox"
)

func testMemory(t *testing.T, s *suite) {
	witness := s.create(t, nil)
	id := s.create(t, func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 128 << 20 })
	if total := s.sh(t, id, "awk '/MemTotal/ {print $2}' /proc/meminfo 2>/dev/null || grep MemTotal /proc/meminfo"); !strings.Contains(total, "131072") {
		t.Errorf("the sandbox sees %q KiB of memory", total)
	}
	ctx := testContext(t)
	process, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"python3", "-c", "b = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('got it')"}})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := process.Wait(ctx)
	if err == nil && exit.Code == 0 {
		t.Fatal("a program got 600 MiB in a sandbox of 128 MiB")
	}
	usage, err := s.engine.Usage(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.engine.Inspect(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after running out of memory: exit %v, state %s, usage %+v", exit, info.State, usage)
	if usage.OOMKills == 0 && info.State == sandbox.StateRunning && exit.Code == 137 {
		t.Error("running out of memory is not visible")
	}
	// Files in memory count too.
	tmpfs := s.create(t, func(spec *sandbox.Spec) { spec.Limits.MemoryBytes = 128 << 20 })
	got := s.exec(t, tmpfs, sandbox.Command{Args: []string{"dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=400"}})
	if got.Code == 0 {
		t.Error("400 MiB fit into /dev/shm of a sandbox of 128 MiB")
	}
	if out := s.sh(t, witness, "echo alive"); out != "alive\n" {
		t.Errorf("the other sandbox says %q", out)
	}
}

const forkScript = `
import os, sys, errno
count = 0
try:
    while count < 2000:
        if os.fork() == 0:
            import time; time.sleep(1000)
        count += 1
except OSError as e:
    print(count, errno.errorcode[e.errno])
`

func testProcesses(t *testing.T, s *suite) {
	witness := s.create(t, nil)
	id := s.create(t, func(spec *sandbox.Spec) { spec.Limits.Processes = 50 })
	ctx := testContext(t)
	got := s.exec(t, id, sandbox.Command{Args: []string{"python3", "-c", forkScript}})
	fields := strings.Fields(got.Stdout)
	if len(fields) != 2 || fields[1] != "EAGAIN" || len(fields[0]) != 2 {
		t.Fatalf("forking without end: %+v", got)
	}
	usage, err := s.engine.Usage(ctx, id)
	if err != nil || usage.Processes < 45 || usage.Processes > 60 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	if out := s.sh(t, witness, "echo alive"); out != "alive\n" {
		t.Errorf("the other sandbox says %q", out)
	}
	// Another user id and another cgroup are no way around.
	fresh := s.create(t, func(spec *sandbox.Spec) { spec.Limits.Processes = 50 })
	script := `import os, subprocess
subprocess.run(['sh', '-c', 'mkdir -p /mnt/c; unshare -Urm mount -t cgroup2 none /mnt/c; mount -t cgroup2 none /mnt/c; mount -o remount,rw /sys/fs/cgroup; echo max > /sys/fs/cgroup/pids.max; unshare -Urm sh -c "mount -t cgroup2 x /mnt/c && echo max > /mnt/c/pids.max && echo escaped; mount -t cgroup -o pids x /mnt/c && echo \\$\\$ > /mnt/c/cgroup.procs && echo v1"'], stderr=subprocess.DEVNULL)
os.setuid(1234)
` + forkScript
	got = s.exec(t, fresh, sandbox.Command{Args: []string{"python3", "-c", script}})
	fields = strings.Fields(got.Stdout)
	if len(fields) != 2 || fields[1] != "EAGAIN" || len(fields[0]) != 2 {
		t.Errorf("forking without end as another user: %+v", got)
	}
	if got := s.exec(t, fresh, sandbox.Command{Args: []string{"cat", "/sys/fs/cgroup/pids.max"}}); len(strings.TrimSpace(got.Stdout)) != 2 {
		t.Errorf("the limit could be changed from inside: %+v", got)
	}
	if strings.Contains(got.Stdout, "escaped") || strings.Contains(got.Stdout, "v1") {
		t.Errorf("got round the limit: %q", got.Stdout)
	}
}

// testLimitsShown: programs that ask how much there is are told the limits.
func testLimitsShown(t *testing.T, s *suite) {
	host := runtime.NumCPU()
	for limit, want := range map[float64]int{0.5: 1, 1: 1, 1.5: min(2, host), 2: min(2, host)} {
		id := s.create(t, func(spec *sandbox.Spec) { spec.Limits.CPUs, spec.Limits.Processes = limit, 77 })
		script := "nproc; grep -c ^processor /proc/cpuinfo; bash -c 'ulimit -u; ulimit -Hu'; python3 -c 'import os; print(os.cpu_count())'"
		if got, want := s.sh(t, id, script), fmt.Sprintf("%d\n%[1]d\n77\n77\n%[1]d\n", want); got != want {
			t.Errorf("a limit of %v processors and 77 processes is shown as %q, want %q", limit, got, want)
		}
	}
}

func testDisk(t *testing.T, s *suite) {
	id := s.create(t, func(spec *sandbox.Spec) { spec.Limits.DiskBytes = 64 << 20 })
	got := s.exec(t, id, sandbox.Command{Args: []string{"dd", "if=/dev/zero", "of=big", "bs=1M", "count=200"}})
	if got.Code == 0 || !strings.Contains(got.Stderr, "No space left on device") {
		t.Errorf("writing 200 MiB to 64 MiB: %+v", got)
	}
	usage, err := s.engine.Usage(testContext(t), id)
	if err != nil || usage.DiskBytes < 40<<20 || usage.DiskBytes > 64<<20 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	err = s.engine.WriteFile(testContext(t), id, "more", 0o644, strings.NewReader(strings.Repeat("x", 30<<20)))
	if !errors.Is(err, sandbox.ErrFile) || !strings.Contains(err.Error(), "no space") {
		t.Errorf("writing a file to a full disk: %v", err)
	}
	if out := s.sh(t, id, "rm big; echo ok > after; cat after; ls -A"); out != "ok\nafter\n" {
		t.Errorf("after making room: %q", out)
	}
}

func testUsage(t *testing.T, s *suite) {
	id := s.create(t, nil)
	s.sh(t, id, "dd if=/dev/zero of=/workspace/x bs=1M count=20 2>/dev/null; sync")
	usage, err := s.engine.Usage(testContext(t), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("idle usage: %+v", usage)
	if usage.MemoryBytes < 1<<20 || usage.Processes < 1 || usage.DiskBytes < 20<<20 || usage.OOMKills != 0 {
		t.Errorf("usage %+v", usage)
	}
	if _, err := s.engine.Usage(testContext(t), "absent"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("absent sandbox: %v", err)
	}
}

func testPrivileges(t *testing.T, s *suite) {
	id := s.create(t, nil)
	if out := s.sh(t, id, "id -u; touch /etc/mine; chown 33:33 /etc/mine; stat -c %u /etc/mine"); out != "0\n33\n" {
		t.Errorf("root inside: %q", out)
	}
	script := "import socket\ntry:\n  socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('raw')\nexcept PermissionError: print('refused')"
	if got := s.exec(t, id, sandbox.Command{Args: []string{"python3", "-c", script}}); got.Stdout != "refused\n" {
		t.Errorf("raw socket: %+v", got)
	}
	if out := s.sh(t, id, "ls -A /sys/class/net 2>/dev/null || true; cat /proc/net/dev | grep -c : "); !strings.Contains(out, "1") {
		t.Errorf("interfaces: %q", out)
	}
}
