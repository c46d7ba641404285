package gvisor_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// serverDir makes this test binary, executed anew, be a server: it opens the
// engine on the directory, makes sandboxes and waits to be killed.
const serverDir = "ATOLL_TEST_SERVER_DIR"

func beServer(dir, layer string) error {
	engine, err := gvisor.New(gvisor.Config{Dir: dir, DefaultLimits: smallLimits})
	if err != nil {
		return err
	}
	ctx := context.Background()
	for _, id := range []string{"one", "two"} {
		spec := sandbox.Spec{ID: id, Layers: []string{layer}, Dir: "/here", Env: []string{"KEPT=yes"}, Labels: map[string]string{"of": "test"}}
		if err := engine.Create(ctx, spec); err != nil {
			return err
		}
	}
	if _, err := engine.Exec(ctx, "one", sandbox.Command{Args: []string{"sh", "-c", "echo started > /here/state; exec sleep 100000"}}); err != nil {
		return err
	}
	fmt.Println("ready")
	for i := 0; ; i++ { // be killed in the middle of a create, most of the time
		spec := sandbox.Spec{ID: fmt.Sprint("half-", i), Layers: []string{layer}}
		if err := engine.Create(ctx, spec); err != nil {
			return err
		}
		if err := engine.Destroy(ctx, spec.ID); err != nil {
			return err
		}
	}
}

func TestServerKilled(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	for round := range 4 { // kill at different moments of a create
		dir := t.TempDir()
		before := worldOf(dir)
		cmd := exec.Command("/proc/self/exe", layer)
		cmd.Env = append(os.Environ(), serverDir+"="+dir, "ATOLL_API_KEY=secret-of-the-server")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("the server said %q, %v", line, err)
		}
		<-time.After(time.Duration(round) * 23 * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		adopt(t, dir)
		if after := worldOf(dir); after != before {
			eventually(t, "the killed server's remains are gone: "+worldOf(dir), func() bool { return worldOf(dir) == before })
		}
	}
}

// adopt is what the next server does.
func adopt(t *testing.T, dir string) {
	t.Helper()
	ctx := context.Background()
	engine, err := gvisor.New(gvisor.Config{Dir: dir, DefaultLimits: smallLimits})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := engine.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]sandbox.State{}
	for _, info := range infos {
		states[info.ID] = info.State
		if !strings.HasPrefix(info.ID, "half-") && info.Labels["of"] != "test" {
			t.Errorf("labels are lost: %+v", info)
		}
	}
	if states["one"] != sandbox.StateRunning || states["two"] != sandbox.StateRunning {
		t.Fatalf("sandboxes did not survive: %v", states)
	}
	var stdout bytes.Buffer
	process, err := engine.Exec(ctx, "one", sandbox.Command{
		Args: []string{"sh", "-c", "cat state; echo $KEPT; cat /proc/[0-9]*/comm | grep -c ^sleep; cat /proc/[0-9]*/environ | grep -c secret-of"}, Stdout: &stdout,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := process.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if got, want := stdout.String(), "started\nyes\n1\n0\n"; got != want {
		t.Errorf("in the surviving sandbox: got %q, want %q", got, want)
	}
	checkNoSecret(t, dir)
	if _, err := engine.Tree(ctx, "two"); err != nil {
		t.Error(err)
	}
	for id := range states {
		if err := engine.Destroy(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if err := engine.Close(); err != nil {
		t.Error(err)
	}
}

// checkNoSecret looks for the server's environment in gVisor's processes. One of
// a sandbox that was just being made may not have come to wiping its own yet.
func checkNoSecret(t *testing.T, dir string) {
	t.Helper()
	pids, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	checked := 0
	for _, path := range pids {
		line, _ := os.ReadFile(path)
		if !bytes.Contains(line, []byte(dir)) || !bytes.HasPrefix(line, []byte("runsc-")) {
			continue
		}
		checked++
		eventually(t, fmt.Sprintf("%.40q has no more of the server's environment", line), func() bool {
			environ, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "environ")) // gone with its process
			return !bytes.Contains(environ, []byte("secret-of-the-server"))
		})
	}
	if checked < 4 {
		t.Errorf("found %d processes of two sandboxes", checked)
	}
}

func TestNothingLeft(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	dir := t.TempDir()
	before := worldOf(dir)
	descriptors := countFiles(t)
	ctx := context.Background()
	for range 2 {
		engine, err := gvisor.New(gvisor.Config{Dir: dir, DefaultLimits: smallLimits})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			spec := sandbox.Spec{ID: fmt.Sprint(i), Layers: []string{layer}}
			if err := engine.Create(ctx, spec); err != nil {
				t.Fatal(err)
			}
			process, err := engine.Exec(ctx, spec.ID, sandbox.Command{Args: []string{"sh", "-c", "sleep 1000 & exit 3"}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := process.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				if _, err := engine.Tree(ctx, spec.ID); err != nil {
					t.Fatal(err)
				}
			}
			if err := engine.Destroy(ctx, spec.ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "nothing is left", func() bool { return worldOf(dir) == before })
	eventually(t, "no descriptor is left", func() bool { return countFiles(t) <= descriptors })
}

func TestBurst(t *testing.T) {
	layer := sandboxtest.Rootfs(t)
	engine := open(t, t.TempDir())
	ctx := context.Background()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			id := fmt.Sprint("burst-", i)
			if err := engine.Create(ctx, sandbox.Spec{ID: id, Layers: []string{layer}}); err != nil {
				t.Error(err)
				return
			}
			process, err := engine.Exec(ctx, id, sandbox.Command{Args: []string{"true"}})
			if err != nil {
				t.Error(err)
			} else if exit, err := process.Wait(ctx); err != nil || exit.Code != 0 {
				t.Error(exit, err)
			}
			if err := engine.Destroy(ctx, id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestTwoServers(t *testing.T) {
	t.Parallel()
	layer := sandboxtest.Rootfs(t)
	ctx := context.Background()
	spec := sandbox.Spec{ID: "same", Layers: []string{layer}}
	one, two := open(t, t.TempDir()), open(t, t.TempDir())
	for _, engine := range []*gvisor.Engine{one, two} {
		if err := engine.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := engine.Destroy(ctx, spec.ID); err != nil {
				t.Error(err)
			}
		}()
	}
	if err := one.Destroy(ctx, spec.ID); err != nil {
		t.Fatal(err)
	}
	process, err := two.Exec(ctx, spec.ID, sandbox.Command{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := process.Wait(ctx); err != nil || exit.Code != 0 {
		t.Error(exit, err)
	}
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	layer := sandboxtest.Rootfs(t)
	engine, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), MinFreeBytes: 1 << 60})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	err = engine.Create(context.Background(), sandbox.Spec{ID: "x", Layers: []string{layer}})
	if !errors.Is(err, sandbox.ErrCapacity) {
		t.Error(err)
	}
	if infos, err := engine.List(context.Background()); err != nil || len(infos) != 0 {
		t.Error(infos, err)
	}
}

// TestNotGVisor checks that command lines of people stay with the program.
func TestNotGVisor(t *testing.T) {
	for _, args := range [][]string{{"atoll"}, {"atoll", "exec", "x", "--", "umount", "--sync-fd=3"}, {"exe", "boot"}, {"/proc/self/exe", "exec"},
		{"/proc/self/exe", "umount", "/x"}, {"atoll", "gofer", "--bundle=/x"}, {}} {
		if gvisor.IsHelper(args) {
			t.Errorf("%q was taken for a helper of gVisor", args)
		}
	}
	for _, args := range [][]string{{"runsc-sandbox", "--root=/x", "boot"}, {"runsc-gofer", "gofer"}, {"/proc/self/exe", "umount", "--sync-fd=3", "/proc"}} {
		if !gvisor.IsHelper(args) {
			t.Errorf("%q was not taken for a helper of gVisor", args)
		}
	}
}

// worldOf counts what an engine on dir has outside and inside of it.
func worldOf(dir string) string {
	grep := func(path, what string) int {
		data, _ := os.ReadFile(path)
		return strings.Count(string(data), what)
	}
	processes, loops := 0, 0
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if grep(path, dir) > 0 {
			processes++
		}
	}
	paths, _ = filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range paths {
		loops += grep(path, dir)
	}
	name := gvisor.NameOf(dir)
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*/atoll-" + name)
	unified, _ := filepath.Glob("/sys/fs/cgroup/atoll-" + name)
	run, _ := filepath.Glob("/run/atoll-" + name)
	entries, _ := os.ReadDir(filepath.Join(dir, "sandboxes"))
	return fmt.Sprintf("processes %d, mounts %d, loop devices %d, cgroups %d, run directories %d, sandboxes %d",
		processes, grep("/proc/self/mountinfo", dir)+grep("/proc/self/mountinfo", "atoll-"+name), loops, len(cgroups)+len(unified), len(run), len(entries))
}

func countFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	layer := sandboxtest.Rootfs(b)
	config := gvisor.Config{Dir: b.TempDir()}
	if testing.Verbose() {
		config.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	engine, err := gvisor.New(config)
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	ctx := context.Background()
	var creates, execs, destroys []time.Duration
	spec := sandbox.Spec{ID: "bench", Layers: []string{layer}}
	for b.Loop() {
		start := time.Now()
		if err := engine.Create(ctx, spec); err != nil {
			b.Fatal(err)
		}
		creates = append(creates, time.Since(start))
		for range 5 {
			start = time.Now()
			process, err := engine.Exec(ctx, spec.ID, sandbox.Command{Args: []string{"/bin/echo", "x"}})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := process.Wait(ctx); err != nil {
				b.Fatal(err)
			}
			execs = append(execs, time.Since(start))
		}
		start = time.Now()
		if err := engine.Destroy(ctx, spec.ID); err != nil {
			b.Fatal(err)
		}
		destroys = append(destroys, time.Since(start))
	}
	b.ReportMetric(median(creates), "ms/create")
	b.ReportMetric(median(execs), "ms/exec")
	b.ReportMetric(median(destroys), "ms/destroy")
}

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2].Microseconds()) / 1000
}
