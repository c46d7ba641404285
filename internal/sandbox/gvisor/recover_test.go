package gvisor_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// Each step of putting a sandbox aside and bringing it back is cut off, and the
// next engine finds a sandbox that is one thing or another.
func TestRecover(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	ctx := context.Background()
	for name, test := range map[string]struct {
		step string
		cut  func(t *testing.T, e *gvisor.Engine, dir string) // leaves things as a kill there does
		want sandbox.State
		kept bool // the processes too
	}{
		"before the processes are stopped": {"freezing", func(t *testing.T, _ *gvisor.Engine, dir string) {
			mkdir(t, dir, "checkpoint.new")
		}, sandbox.StateRunning, true},
		"with the processes stopped": {"freezing", func(t *testing.T, e *gvisor.Engine, dir string) {
			mkdir(t, dir, "checkpoint.new")
			if err := gvisor.StopProcesses(e, "x"); err != nil {
				t.Fatal(err)
			}
		}, sandbox.StateRunning, true},
		"with an image and processes": {"freezing", func(t *testing.T, e *gvisor.Engine, dir string) {
			if err := gvisor.StopProcesses(e, "x"); err != nil {
				t.Fatal(err)
			}
			mkdir(t, dir, "checkpoint")
		}, sandbox.StateHibernated, false},
		"dead while being stopped": {"freezing", func(t *testing.T, e *gvisor.Engine, dir string) {
			mkdir(t, dir, "checkpoint.new")
			kill(t, dir)
		}, sandbox.StateStopped, false},
		"with a gVisor that was not told to restore": {"waking", func(t *testing.T, e *gvisor.Engine, _ string) {
			hibernate(t, e)
			if err := gvisor.LaunchOnly(e, "x"); err != nil {
				t.Fatal(err)
			}
		}, sandbox.StateHibernated, true},
		"with the processes going on and the image there": {"waking", func(t *testing.T, _ *gvisor.Engine, dir string) {
			mkdir(t, dir, "checkpoint")
		}, sandbox.StateRunning, true},
		"with the image given up": {"waking", func(t *testing.T, _ *gvisor.Engine, dir string) {
			mkdir(t, dir, "checkpoint.used")
		}, sandbox.StateRunning, true},
		"dead with an image that may be stale": {"waking", func(t *testing.T, e *gvisor.Engine, dir string) {
			hibernate(t, e)
		}, sandbox.StateStopped, false},
		"while it starts anew": {"reviving", func(*testing.T, *gvisor.Engine, string) {}, sandbox.StateStopped, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			before := worldOf(root)
			dir := filepath.Join(root, "sandboxes", "x")
			first, err := gvisor.New(gvisor.Config{Dir: root, DefaultLimits: smallLimits})
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Create(ctx, sandbox.Spec{ID: "x", Layers: []string{layer}, Dir: "/workspace"}); err != nil {
				t.Fatal(err)
			}
			output(t, first, "echo kept > file; setsid sleep 12345 </dev/null >/dev/null 2>&1 &")
			test.cut(t, first, dir)
			if err := os.WriteFile(filepath.Join(dir, "step"), []byte(test.step), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}

			second, err := gvisor.New(gvisor.Config{Dir: root, DefaultLimits: smallLimits})
			if err != nil {
				t.Fatal(err)
			}
			info, err := second.Inspect(ctx, "x")
			if err != nil || info.State != test.want || !info.Files {
				t.Errorf("it is %+v, %v; want %s", info, err, test.want)
			}
			if info.State == sandbox.StateHibernated {
				err = second.Restore(ctx, "x", "")
				if errors.Is(err, sandbox.ErrCheckpoint) && !test.kept { // the test's image is empty
					err = second.Revive(ctx, "x", "")
				}
			} else if info.State == sandbox.StateStopped {
				err = second.Revive(ctx, "x", "")
			}
			if err != nil {
				t.Fatal(err)
			}
			want := "kept\n0\n"
			if test.kept {
				want = "kept\n1\n"
			}
			if got := output(t, second, "cat file; cat /proc/[0-9]*/comm | grep -c ^sleep || true"); got != want {
				t.Errorf("inside: %q, want %q", got, want)
			}
			hibernate(t, second) // and it is whole: it can do all again
			if err := second.Restore(ctx, "x", ""); err != nil {
				t.Error(err)
			}
			for _, name := range []string{"step", "checkpoint", "checkpoint.new", "checkpoint.used"} {
				if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is left: %v", name, err)
				}
			}
			if err := errors.Join(second.Destroy(ctx, "x"), second.Close()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "nothing is left", func() bool { return worldOf(root) == before })
		})
	}
}

// An image of another version is not tried, and one that is broken changes
// nothing; the files are there in both cases.
func TestUnusableImage(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	ctx := context.Background()
	root := t.TempDir()
	engine := open(t, root)
	if err := engine.Create(ctx, sandbox.Spec{ID: "x", Layers: []string{layer}, Dir: "/workspace"}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := engine.Destroy(ctx, "x"); err != nil {
			t.Error(err)
		}
	}()
	output(t, engine, "echo kept > file")
	for _, name := range []string{"version", "checkpoint.img", "pages_meta.img"} {
		hibernate(t, engine)
		if err := os.WriteFile(filepath.Join(root, "sandboxes", "x", "checkpoint", name), []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := engine.Restore(ctx, "x", ""); !errors.Is(err, sandbox.ErrCheckpoint) {
				t.Errorf("with a bad %s: %v", name, err)
			}
			if info, err := engine.Inspect(ctx, "x"); err != nil || info.State != sandbox.StateHibernated {
				t.Errorf("with a bad %s it is %+v, %v", name, info, err)
			}
		}
		if err := engine.Revive(ctx, "x", ""); err != nil {
			t.Fatal(err)
		}
		if got := output(t, engine, "cat file"); got != "kept\n" {
			t.Errorf("inside: %q", got)
		}
	}
}

func mkdir(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
}

func hibernate(t *testing.T, e *gvisor.Engine) {
	t.Helper()
	eventually(t, "the sandbox hibernates", func() bool {
		err := e.Checkpoint(context.Background(), "x")
		if err != nil && !errors.Is(err, sandbox.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// kill ends the one sandbox below dir as the host's kernel does.
func kill(t *testing.T, dir string) {
	t.Helper()
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		line, _ := os.ReadFile(path)
		if !bytes.HasPrefix(line, []byte("runsc-")) || !bytes.Contains(line, []byte(dir+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// output runs a script that must exit 0.
func output(t *testing.T, e *gvisor.Engine, script string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	process, err := e.Exec(context.Background(), "x", sandbox.Command{Args: []string{"sh", "-ec", script}, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := process.Wait(context.Background())
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: %+v %v\n%s", script, exit, err, stderr.String())
	}
	return stdout.String()
}
