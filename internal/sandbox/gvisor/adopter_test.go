package gvisor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/state"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/pkg/state/wire"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/internal/sandbox/sandboxtest"
)

// Images that a sandbox might make of its own memory end as an error, whatever
// they do to the process that reads them. Read in this process, several of these
// would end the tests: Go cannot survive an allocation that the system refuses,
// nor a stack of a gigabyte.
func TestAdoptHostile(t *testing.T) {
	needRoot(t)
	good := adoptable(t)
	noise := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	huge := func(kind byte, length uint64) []byte {
		return append(group(t, 1), binary.AppendUvarint([]byte{kind}, length)...)
	}
	for name, content := range map[string][]byte{
		"empty":                     {},
		"noise":                     noise,
		"noise after a head":        append(head(t), noise...),
		"cut off in the head":       good[:10],
		"cut off after the head":    head(t),
		"cut off in the objects":    good[:len(good)-3],
		"a string of 64 TiB":        append(head(t), huge(kindOf(new(wire.String)), 1<<46)...),
		"a string of all addresses": append(head(t), huge(kindOf(new(wire.String)), 1<<63)...),
		"an array of 128 GiB":       append(head(t), huge(kindOf(&wire.Array{}), 1<<33)...),
		"arrays in arrays":          append(head(t), append(group(t, 1), bytes.Repeat([]byte{kindOf(&wire.Array{}), 1}, 8<<20)...)...),
		"no tasks":                  append(head(t), append(group(t, 0), group(t, 0)...)...),
		"more objects than bytes":   append(head(t), append(group(t, 0), group(t, 1<<62)...)...),
	} {
		t.Run(name, func(t *testing.T) {
			dir := imageOf(t, content)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := gvisor.Adopt(t.Context(), dir)
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("no error")
			}
			if len(err.Error()) > 4<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
				t.Errorf("this process allocated %d bytes", used)
			}
			unchanged(t, dir, content)
		})
	}
}

// An image whose objects alone are larger than a limit is not read at all.
func TestAdoptTooLarge(t *testing.T) {
	dir := imageOf(t, nil)
	if err := os.Truncate(filepath.Join(dir, checkpointfiles.StateFileName), gvisor.MaxStateBytes+1); err != nil {
		t.Fatal(err)
	}
	if err := gvisor.Adopt(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("got %v, want an error of the limit", err)
	}
}

// A process that reads an image is ended when the time is over. While it works it
// has limits, a network of its own without anything in it, and the image's files.
func TestAdoptCancelled(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	object := append(encoded(wire.Uint(0)), encoded(wire.Nil{})...)
	content := append(head(t), append(group(t, 0), group(t, 1<<62)...)...)
	content = append(content, bytes.Repeat(object, 64<<20/len(object))...) // some seconds of work
	dir := imageOf(t, content)
	ended := make(chan error, 1)
	go func() { ended <- gvisor.Adopt(ctx, dir) }()
	var proc string
	eventually(t, "the image is read by nobody", func() bool {
		proc = adopterOf(dir)
		return proc != ""
	})
	limits, err := os.ReadFile(filepath.Join(proc, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Max address space": "4294967296", "Max data size": "536870912", "Max cpu time": "60", "Max core file size": "0",
		"Max open files": "32", "Max file size": strconv.Itoa(len(content)),
	} {
		_, rest, _ := strings.Cut(string(limits), name+" ")
		if got := strings.Fields(rest); len(got) < 2 || got[0] != want || got[1] != want {
			t.Errorf("%s: got %.2q, want %s", name, got, want)
		}
	}
	for _, kind := range []string{"net", "pid", "ipc", "uts"} {
		theirs, err := os.Readlink(filepath.Join(proc, "ns", kind))
		ours, err2 := os.Readlink(filepath.Join("/proc/self/ns", kind))
		if theirs == ours || errors.Join(err, err2) != nil {
			t.Errorf("namespace %s: %s, and the server's is %s (%v)", kind, theirs, ours, errors.Join(err, err2))
		}
	}
	if jail, err := os.Readlink(filepath.Join(proc, "root")); err != nil || filepath.Dir(jail) != dir {
		t.Errorf("its file system begins at %s: %v", jail, err)
	}
	links, err := filepath.Glob(filepath.Join(proc, "fd", "*"))
	if err != nil || len(links) < 5 {
		t.Errorf("descriptors %v: %v", links, err)
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		state := filepath.Join(dir, checkpointfiles.StateFileName)
		switch {
		case err != nil, target == filepath.Join(proc, "status"), strings.HasPrefix(target, "anon_inode:"), strings.HasPrefix(target, "pipe:"):
		case target != "/dev/null" && target != state && target != state+".new":
			t.Errorf("it has %s open", target)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if _, err := os.Stat(proc); err == nil {
		t.Error("the process is still there")
	}
	unchanged(t, dir, content)
}

// adopterOf finds the directory in /proc of the process that reads an image and
// that has given up its privileges; or nothing.
func adopterOf(dir string) string {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, _ := os.ReadFile(path)
		if !bytes.HasPrefix(line, []byte("atoll-image-adopter\x00")) {
			continue
		}
		proc := filepath.Dir(path)
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
		status, _ := os.ReadFile(filepath.Join(proc, "status"))
		if filepath.Dir(cwd) == dir && bytes.Contains(status, []byte("\nUid:\t65534\t65534\t65534\t65534\n")) {
			return proc
		}
	}
	return ""
}

// The mark of a command that left a process behind becomes zero, and nothing else
// changes.
func TestAdopt(t *testing.T) {
	needRoot(t)
	content := adoptable(t)
	dir := imageOf(t, content)
	if err := gvisor.Adopt(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, checkpointfiles.StateFileName))
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(content)
	want[len(want)-1] = 0 // the field of the last object
	if bytes.Equal(want, content) || !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x\nfrom %x", got, want, content)
	}
	unchanged(t, dir, want)
}

// The kernel itself says what the process that reads images may do.
func TestAdopterPrivileges(t *testing.T) {
	needRoot(t)
	status, err := gvisor.AdopterStatus(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		got[name] = strings.Join(strings.Fields(value), " ")
	}
	for name, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "", "NoNewPrivs": "1",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
		"CapBnd": "00000000000400c0", // nothing reaches these: setgid, setuid, chroot
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s: got %q, want %q", name, value, want)
		}
	}
	if pids := strings.Fields(got["NSpid"]); len(pids) < 2 || pids[len(pids)-1] != "1" {
		t.Errorf("NSpid: got %v, want the first process of a namespace", pids)
	}
}

// A hibernated sandbox whose image is not what was saved loses its processes and
// keeps its files.
func TestHostileImageAtWaking(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	e, err := gvisor.New(gvisor.Config{Dir: root})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := e.Create(ctx, sandbox.Spec{ID: "x", Layers: []string{sandboxtest.Rootfs(t)}, Dir: "/workspace"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Destroy(ctx, "x"); err != nil {
			t.Error(err)
		}
	})
	output(t, e, "echo kept > file")
	for name, spoil := range map[string]func([]byte) []byte{
		"cut off": func(image []byte) []byte { return image[:len(image)/2] },
		"a string of 64 TiB": func([]byte) []byte {
			return append(head(t), append(group(t, 1), binary.AppendUvarint([]byte{kindOf(new(wire.String))}, 1<<46)...)...)
		},
	} {
		hibernate(t, e)
		path := filepath.Join(root, "sandboxes", "x", "checkpoint", checkpointfiles.StateFileName)
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, spoil(image), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := e.Restore(ctx, "x", ""); !errors.Is(err, sandbox.ErrCheckpoint) {
			t.Errorf("%s: got %v, want %v", name, err, sandbox.ErrCheckpoint)
		}
		if err := e.Revive(ctx, "x", ""); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := output(t, e, "cat file"); got != "kept\n" {
			t.Errorf("%s: the file has %q", name, got)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// imageOf makes an image's directory around a file of objects.
func imageOf(t *testing.T, content []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, checkpointfiles.StateFileName), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// unchanged looks for an image of this content and for nothing beside it.
func unchanged(t *testing.T, dir string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, checkpointfiles.StateFileName))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the image has other %d bytes: %v", len(got), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left beside the image: %v %v", entries, err)
	}
}

// head is how a file of objects begins.
func head(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := statefile.NewWriter(&out, nil, statefile.CompressionLevelNone.ToMetadata()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// group is how a group of so many objects begins.
func group(t *testing.T, objects uint64) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := state.WriteHeader(&wire.Writer{Writer: &out}, objects, true); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func encoded(object wire.Object) []byte {
	var out bytes.Buffer
	wire.Save(&wire.Writer{Writer: &out}, object)
	return out.Bytes()
}

// kindOf is the number that an object of this kind begins with.
func kindOf(object wire.Object) byte { return encoded(object)[0] }

// adoptable is a file of objects with one task, which a command left behind. The
// last byte is its mark.
func adoptable(t *testing.T) []byte {
	t.Helper()
	node := &wire.Struct{TypeID: 2}
	node.Alloc(1)
	*node.Field(0) = &wire.Ref{Root: 7, Type: wire.TypeID(1)}
	task := &wire.Struct{TypeID: 1}
	task.Alloc(2)
	*task.Field(0) = node
	*task.Field(1) = wire.Int(1)
	file := append(head(t), append(group(t, 0), group(t, 1)...)...)
	for _, object := range []wire.Object{
		&wire.Type{Name: "pkg/sentry/kernel.Task", Fields: []string{"taskNode", "Origin"}},
		&wire.Type{Name: "pkg/sentry/kernel.taskNode", Fields: []string{"parent"}},
		wire.Uint(1), task,
	} {
		file = append(file, encoded(object)...)
	}
	return file
}
