package gvisor_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// smallHost makes a file system of the size, in a sparse file, and returns where
// it is mounted. The test's end takes it away.
func smallHost(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "host.ext4"), filepath.Join(dir, "host")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(mount, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		var err error
		poll(t, "the loop devices to let go of the small host", func() bool {
			err = unix.Unmount(mount, 0)
			return !errors.Is(err, unix.EBUSY)
		})
		if err != nil {
			t.Errorf("unmounting the small host: %v", err)
		}
	})
	return mount
}

// guests is an engine on a small host, with what tests do in its sandboxes.
type guests struct {
	*gvisor.Engine
	t     *testing.T
	dir   string
	layer string
}

func newGuests(t *testing.T, config gvisor.Config) *guests {
	t.Helper()
	g := &guests{t: t, dir: config.Dir, layer: sandboxtest.Rootfs(t)}
	var err error
	if g.Engine, err = gvisor.New(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		infos, err := g.List(context.Background())
		for _, info := range infos {
			err = errors.Join(err, g.Destroy(context.Background(), info.ID))
		}
		if err := errors.Join(err, g.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *guests) add(id string, limits sandbox.Limits) error {
	return g.Create(g.t.Context(), sandbox.Spec{ID: id, Layers: []string{g.layer}, Dir: "/workspace", Limits: limits})
}

// run runs a program to its end and returns its exit code and output.
func (g *guests) run(id string, args ...string) (int, string) {
	g.t.Helper()
	var out bytes.Buffer
	p, err := g.Exec(g.t.Context(), id, sandbox.Command{Args: args, Stdout: &out, Stderr: io.Discard})
	if err != nil {
		g.t.Fatalf("%s: %q: %v", id, args, err)
	}
	exit, err := p.Wait(g.t.Context())
	if err != nil {
		g.t.Fatalf("%s: %q: %v", id, args, err)
	}
	return exit.Code, out.String()
}

// writeScript writes noise to a file, up to so many MiB or until there is no
// space, syncs, and prints how many bytes were accepted and their digest.
const writeScript = `import errno, hashlib, os, sys
f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
done, digest, why = 0, hashlib.sha256(), 'enough'
while done < int(sys.argv[2]) << 20:
    piece = os.urandom(65536)
    try: n = os.write(f, piece)
    except OSError as e:
        why = errno.errorcode[e.errno]
        break
    digest.update(piece[:n]); done += n
os.sync()
print(done, digest.hexdigest(), why)
`

// written is what a program inside was told about its writes.
type written struct {
	bytes       int64
	digest, why string
}

func (g *guests) write(id, file, mebibytes string) written {
	g.t.Helper()
	_, out := g.run(id, "python3", "-c", writeScript, file, mebibytes)
	f := strings.Fields(out)
	if len(f) != 3 {
		g.t.Fatalf("%s: writing %s said %q", id, file, out)
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return written{n, f[1], f[2]}
}

// onDisk is the digest of a sandbox's file as it is on its disk, past every cache.
func (g *guests) onDisk(id, file string) string {
	g.t.Helper()
	path := filepath.Join(g.dir, "sandboxes", id, "disk", "upper", file)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	memory, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		g.t.Fatal(err)
	}
	defer unix.Munmap(memory)
	digest := sha256.New()
	for {
		n, err := f.Read(memory)
		digest.Write(memory[:n])
		if err == io.EOF {
			return hex.EncodeToString(digest.Sum(nil))
		}
		if err != nil {
			g.t.Fatalf("%s: reading %s from the disk: %v", id, file, err)
		}
	}
}

func (g *guests) hostFree() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(g.dir, &st); err != nil {
		g.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestDiskPromise fills a small host with sandboxes: one that could not use its
// limit is refused, and those that are there can use theirs to the full.
func TestDiskPromise(t *testing.T) {
	g := newGuests(t, gvisor.Config{Dir: smallHost(t, 1<<30), MinFreeBytes: 128 << 20})
	limits := sandbox.Limits{DiskBytes: 320 << 20}
	for _, id := range []string{"greedy", "neighbour"} {
		if err := g.add(id, limits); err != nil {
			t.Fatal(err)
		}
	}
	var short *sandbox.CapacityError
	if err := g.add("third", limits); !errors.As(err, &short) || !errors.Is(err, sandbox.ErrCapacity) || short.Resource != "disk" {
		t.Fatalf("a third sandbox, for which there is no room: %v", err)
	}
	if w := g.write("greedy", "big", "2000"); w.why != "ENOSPC" || w.bytes < 250<<20 {
		t.Errorf("the greedy one wrote %+v", w)
	}
	if w := g.write("neighbour", "kept", "250"); w.why != "enough" || g.onDisk("neighbour", "workspace/kept") != w.digest {
		t.Errorf("the neighbour wrote %+v, and the disk holds something else", w)
	}
	if err := g.add("third", sandbox.Limits{DiskBytes: 32 << 20}); err != nil {
		t.Errorf("a small sandbox, for which there is room: %v", err)
	}
	if err := g.Destroy(t.Context(), "greedy"); err != nil {
		t.Fatal(err)
	}
	if err := g.add("fourth", sandbox.Limits{DiskBytes: 256 << 20}); err != nil {
		t.Errorf("a sandbox in place of the greedy one: %v", err)
	}
}

// TestDiskOvercommit promises more than the host has: a greedy sandbox meets
// ENOSPC before the host does, whatever it does to its disk, and what its
// neighbour's sync acknowledged is on the disk. Then a stranger takes what is left.
func TestDiskOvercommit(t *testing.T) {
	const reserve = 128 << 20
	g := newGuests(t, gvisor.Config{Dir: smallHost(t, 1<<30), MinFreeBytes: reserve, DiskOvercommit: 4})
	for _, id := range []string{"greedy", "neighbour"} {
		if err := g.add(id, sandbox.Limits{DiskBytes: 900 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	first := g.write("neighbour", "first", "100")
	if first.why != "enough" {
		t.Fatalf("the neighbour wrote %+v", first)
	}
	// Room that is claimed and not written, and then files in ever new places.
	g.run("greedy", "fallocate", "-l", "200M", "claimed")
	if w := g.write("greedy", "big", "2000"); w.why != "ENOSPC" || w.bytes < 100<<20 {
		t.Errorf("the greedy one wrote %+v", w)
	}
	for range 3 {
		g.run("greedy", "sh", "-c", "rm big; dd if=/dev/zero of=big bs=1M count=2000; dd if=/dev/zero of=claimed bs=1M count=200 conv=notrunc; sync")
	}
	second := g.write("neighbour", "second", "300")
	if free := g.hostFree(); free < reserve/2 {
		t.Errorf("%d MiB are free on the host; %d are to be kept", free>>20, reserve>>20)
	}
	// Somebody else takes what is left, all but a little. Until then the reserve
	// has held what was still on its way to the host.
	unix.Sync()
	stranger := filepath.Join(g.dir, "stranger")
	if out, err := exec.Command("fallocate", "-l", strconv.FormatInt((g.hostFree()-32<<20)>>20, 10)+"M", stranger).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	poll(t, "the growth of disks to stop", func() bool { return g.write("greedy", "more", "64").why == "ENOSPC" })
	third := g.write("neighbour", "third", "100")
	if third.why != "ENOSPC" {
		t.Errorf("the neighbour wrote %+v on a host that is full", third)
	}
	for file, w := range map[string]written{"first": first, "second": second, "third": third} {
		if w.bytes > 0 && g.onDisk("neighbour", "workspace/"+file) != w.digest {
			t.Errorf("%s: the neighbour's %d bytes are not on its disk, though its sync succeeded", file, w.bytes)
		}
	}
	if err := errors.Join(os.Remove(stranger), g.Destroy(t.Context(), "greedy")); err != nil {
		t.Fatal(err)
	}
	poll(t, "the neighbour's disk to grow again", func() bool { return g.write("neighbour", "last", "400").why == "enough" })
}

// poll waits for a condition.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s took too long", what)
		}
	}
}

// TestProcessPromise: a sandbox's processes on the host are limited, and one is
// refused for which the host would not have enough if all used theirs. One that
// hibernates has none.
func TestProcessPromise(t *testing.T) {
	limits := sandbox.Limits{Processes: 100, DiskBytes: 64 << 20}
	each := gvisor.HostTasks(limits.Processes)
	dir := t.TempDir()
	g := newGuests(t, gvisor.Config{Dir: dir, MaxTasks: 2*each + 1})
	for _, id := range []string{"greedy", "neighbour"} {
		if err := g.add(id, limits); err != nil {
			t.Fatal(err)
		}
	}
	var short *sandbox.CapacityError
	if err := g.add("third", limits); !errors.As(err, &short) || short.Resource != "processes" {
		t.Fatalf("a third sandbox, for which there are no processes: %v", err)
	}
	// As many as are allowed inside run, and the neighbour has its own.
	g.run("greedy", "sh", "-c", "for i in $(seq 300); do sleep 1000 >/dev/null 2>&1 & done")
	usage, err := g.Usage(t.Context(), "greedy")
	if err != nil || usage.Processes < 90 {
		t.Errorf("the greedy one has %+v, %v", usage, err)
	}
	now, most := hostTasksOf(t, dir, "greedy", "pids.current"), hostTasksOf(t, dir, "greedy", "pids.max")
	if most != each || now > most || now < usage.Processes {
		t.Errorf("on the host the greedy one has %d processes of at most %d; the limit should be %d", now, most, each)
	}
	if code, out := g.run("neighbour", "sh", "-c", "for i in $(seq 50); do sleep 0 & done; wait; echo done"); code != 0 || out != "done\n" {
		t.Errorf("the neighbour: %d, %q", code, out)
	}
	if err := g.Checkpoint(t.Context(), "neighbour"); err != nil {
		t.Fatal(err)
	}
	if err := g.add("third", limits); err != nil {
		t.Errorf("a third sandbox, while another hibernates: %v", err)
	}
	if err := g.Restore(t.Context(), "neighbour", ""); !errors.Is(err, sandbox.ErrCapacity) {
		t.Errorf("waking one for which there are no processes: %v", err)
	}
	if err := errors.Join(g.Destroy(t.Context(), "third"), g.Restore(t.Context(), "neighbour", "")); err != nil {
		t.Errorf("waking it when there are: %v", err)
	}
	room, err := g.Room()
	if err != nil || room.TasksCommitted != 2*each {
		t.Errorf("room: %+v, %v", room, err)
	}
	if survey, err := gvisor.Survey(gvisor.Config{Dir: dir, MaxTasks: 2*each + 1}); err != nil || survey.TasksCommitted != room.TasksCommitted || survey.TasksPromisable != room.TasksPromisable {
		t.Errorf("a survey from outside says %+v, %v; the engine %+v", survey, err, room)
	}
}

// hostTasksOf reads a control file of a sandbox's pids cgroup.
func hostTasksOf(t *testing.T, dir, id, name string) int {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		data, err := os.ReadFile(filepath.Join(root, "atoll-"+gvisor.NameOf(dir), id, name))
		if err != nil {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			t.Fatalf("%s of %s: %q", name, id, data)
		}
		return n
	}
	t.Fatalf("sandbox %s has no pids cgroup", id)
	return 0
}
