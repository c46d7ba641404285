package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFullDisk runs a server on a small file system of its own that promises
// more than it has. A greedy session meets ENOSPC; environments can still be
// made, and what a neighbour's sync acknowledged is on its disk.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "host.ext4"), filepath.Join(dir, "host")
	for _, args := range [][]string{
		{"truncate", "-s", "6G", image}, {"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mkdir", mount}, {"mount", "-o", "loop", image, mount},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		waitFor(t, time.Minute, "the small file system to be let go", func() bool { return syscall.Unmount(mount, 0) == nil })
	})
	t.Setenv("TMPDIR", mount) // the server's data directory is made here
	s := newServer(t, "limits: {disk: 4GiB, memory: 512MiB, processes: 64}\nhost: {disk_overcommit: 4, disk_reserve: 200MiB}\n")
	env := s.environment(object{"base_template": "slim"})
	agent := s.agent()
	greedy, neighbour := s.session(agent, env), s.session(agent, env)
	first := s.must(neighbour, "head -c 100M /dev/urandom > /workspace/first && sync && sha256sum < /workspace/first")
	got := s.exec(greedy, "fallocate -l 2400M /workspace/claimed; dd if=/dev/zero of=/workspace/fill bs=1M count=8000; sync")
	if !strings.Contains(got.Stderr, "No space left on device") {
		t.Errorf("the greedy one: %+v", got)
	}
	second := s.must(neighbour, "head -c 300M /dev/urandom > /workspace/second 2>/dev/null; sync; sha256sum < /workspace/second")
	for i := range 20 {
		var raw string
		if code := s.try("POST", "/v1/environments", object{"name": fmt.Sprintf("more-%d", i)}, &raw); code != 200 {
			t.Errorf("environment %d: %d %s", i, code, raw)
		}
	}
	for file, want := range map[string]string{"first": first, "second": second} {
		path := filepath.Join(s.Dir, "sandboxes", "sandboxes", neighbour, "disk", "upper", "workspace", file)
		out, err := exec.Command("sh", "-c", `dd if="$0" iflag=direct bs=1M 2>/dev/null | sha256sum`, path).Output()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: its sync succeeded, and the disk holds something else: %q, not %q (%v)", file, out, want, err)
		}
	}
	var metrics string
	if code := s.try("GET", "/metrics", nil, &metrics); code != 200 || !strings.Contains(metrics, `atoll_host_disk_bytes{kind="committed"}`) {
		t.Errorf("metrics: %d", code)
	}
}
