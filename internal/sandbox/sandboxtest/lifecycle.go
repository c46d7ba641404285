package sandboxtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/sandbox"
)

func testIsolation(t *testing.T, s *suite) {
	one, two := s.create(t, nil), s.create(t, nil)
	before, err := os.ReadFile(filepath.Join(s.layers[0], "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	s.sh(t, one, "echo mine > /etc/mine; echo changed >> /etc/passwd; rm -f /etc/issue; sleep 999 >/dev/null 2>&1 &")
	if got := s.sh(t, two, "test ! -e /etc/mine; test -e /etc/issue; grep -c changed /etc/passwd || true; cat /proc/[0-9]*/comm | grep -c ^sleep || true"); got != "0\n0\n" {
		t.Errorf("the second sandbox sees the first: %q", got)
	}
	after, err := os.ReadFile(filepath.Join(s.layers[0], "etc/passwd"))
	if err != nil || string(after) != string(before) {
		t.Errorf("the layer has changed: %v", err)
	}
	if _, err := os.Stat(filepath.Join(s.layers[0], "etc/issue")); err != nil {
		t.Errorf("the layer has changed: %v", err)
	}
}

func testSpec(t *testing.T, s *suite) {
	extra := t.TempDir()
	if err := os.Chmod(extra, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"top": "extra", "etc/hosts": "layer"} {
		if err := os.MkdirAll(filepath.Join(extra, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(extra, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/var/real", filepath.Join(extra, "linked")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../etc/hostname-elsewhere", filepath.Join(extra, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(extra, "var/real"), 0o755); err != nil {
		t.Fatal(err)
	}
	id := s.create(t, func(spec *sandbox.Spec) {
		spec.Layers = append(append([]string{}, spec.Layers...), extra)
		spec.Dirs = []string{"/mnt/a/b", "/linked/inner"}
		spec.Files = map[string][]byte{"/etc/hosts": []byte("ours"), "/etc/resolv.conf": []byte("dns"), "/deep/er/file": []byte("f")}
		spec.Hostname = "mybox"
		spec.Dir = "/home/agent"
	})
	want := "/home/agent\nmybox\nextra ours dns f\n755 644\n/var/real/inner\n"
	got := s.sh(t, id, "pwd; cat /proc/sys/kernel/hostname; echo $(cat /top) $(cat /etc/hosts) $(cat /etc/resolv.conf) $(cat /deep/er/file); echo $(stat -c %a /mnt/a/b /etc/hosts); readlink -f /linked/inner")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if data, err := os.ReadFile(filepath.Join(extra, "etc/hosts")); err != nil || string(data) != "layer" {
		t.Errorf("the layer has changed: %q %v", data, err)
	}
	if got := s.sh(t, id, "ls -A /tmp; stat -c %a /tmp; touch /tmp/x /dev/shm/y; ls /dev/pts /dev/null /proc/self/stat > /dev/null; stat -f -c %T /tmp"); got == "" || got[:5] != "1777\n" {
		t.Errorf("/tmp: %q", got)
	}
}

func testLifeCycle(t *testing.T, s *suite) {
	ctx := testContext(t)
	start := time.Now()
	id := s.create(t, func(spec *sandbox.Spec) { spec.Labels = map[string]string{"session": "x", "odd": "a=b\n"} })
	info, err := s.engine.Inspect(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	want := sandbox.Info{ID: id, State: sandbox.StateRunning, Files: true, Labels: map[string]string{"session": "x", "odd": "a=b\n"}, CreatedAt: info.CreatedAt}
	if diff := cmp.Diff(want, info); diff != "" || info.CreatedAt.Before(start.Add(-time.Second)) || info.CreatedAt.After(time.Now()) {
		t.Error(diff, info.CreatedAt)
	}
	infos, err := s.engine.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, other := range infos {
		if other.ID == id {
			found = true
			if diff := cmp.Diff(info, other); diff != "" {
				t.Error(diff)
			}
		}
	}
	if !found {
		t.Errorf("not in the list: %v", infos)
	}
	spec := sandbox.Spec{ID: id, Layers: s.layers}
	if err := s.engine.Create(ctx, spec); !errors.Is(err, sandbox.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	process, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.engine.Destroy(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if exit, err := process.Wait(ctx); err == nil || exit.Code != 137 {
		t.Errorf("program of a destroyed sandbox: %v %v", exit, err)
	}
	if _, err := s.engine.Inspect(ctx, id); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("after destroy: %v", err)
	}
	if _, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"true"}}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("exec after destroy: %v", err)
	}
	if _, err := s.engine.Tree(ctx, id); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("tree after destroy: %v", err)
	}
	for _, bad := range []sandbox.Spec{{ID: "../x", Layers: s.layers}, {ID: "", Layers: s.layers}, {ID: id}, {ID: id, Layers: []string{"/no/such/layer"}},
		{ID: id, Layers: s.layers, Dir: "relative"}, {ID: id, Layers: s.layers, Dir: "/etc/passwd/x"}, {ID: id, Layers: s.layers, NetNS: "/no/such/netns"}} {
		if err := s.engine.Create(ctx, bad); err == nil {
			t.Errorf("create %+v worked", bad)
		}
		if _, err := s.engine.Inspect(ctx, id); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("a failed create left something: %v", err)
		}
	}
}

func testCancelled(t *testing.T, s *suite) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(context.Background(), after)
		id := "cancelled-" + after.String()
		err := s.engine.Create(ctx, sandbox.Spec{ID: id, Layers: s.layers})
		cancel()
		if err == nil { // it was quicker
			if err := s.engine.Destroy(context.Background(), id); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", after, err)
		}
		if _, err := s.engine.Inspect(context.Background(), id); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("after %v it is still there: %v", after, err)
		}
	}
}
