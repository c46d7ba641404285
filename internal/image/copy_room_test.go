package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk mounts an ext4 file system of its own of so many MiB.
func smallDisk(t *testing.T, mib int64, options ...string) string {
	t.Helper()
	needRoot(t)
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, mib<<20))
	args := append([]string{"-q", "-F", "-m", "0", "-b", "4096", "-O", "^has_journal"}, options...)
	for _, cmd := range []*exec.Cmd{exec.Command("mkfs.ext4", append(args, image)...), exec.Command("mount", "-o", "loop", image, dir)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sparse writes a file of the size with something at the places.
func sparse(t *testing.T, path string, size int64, at ...int64) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	for _, o := range at {
		_, err := f.WriteAt([]byte("data"), o)
		must(t, err)
	}
	must(t, f.Close())
}

func freeOn(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int64(st.Bavail) * st.Bsize
}

func madeLayer() *Layer {
	return &Layer{Key: strings.Repeat("a", 64), Family: "f", Versions: []PackageVersion{{Name: "a", Version: "1"}}, CreatedAt: time.Now()}
}

// A file of terabytes that stores a few blocks becomes one in the layer, at
// once, and counts as what it stores. A neighbour on the same disk keeps its room.
func TestHolesAreKept(t *testing.T) {
	host, box := smallDisk(t, 64), smallDisk(t, 32)
	const size = 8 << 40
	sparse(t, filepath.Join(box, "upper/usr/big"), size, 0, 1<<40+5, size-4)
	sparse(t, filepath.Join(box, "upper/usr/empty"), size)
	s, err := OpenStore(filepath.Join(host, "layers"))
	must(t, err)
	before := freeOn(t, host)
	l := madeLayer()
	must(t, s.commit(t.Context(), l, filepath.Join(box, "upper"), nil, nil))
	if took := before - freeOn(t, host); took > 1<<20 {
		t.Errorf("the layer takes %d bytes of the host's disk", took)
	}
	if l.SizeBytes > 3*diskBlock || l.AllocatedBytes > 16*diskBlock || l.AllocatedBytes < 3*diskBlock || l.Inodes != 4 || l.Files != 2 {
		t.Errorf("the layer counts as %+v", l)
	}
	f, err := os.Open(filepath.Join(l.Dir, "usr/big"))
	must(t, err)
	defer f.Close()
	for _, at := range []int64{0, 1<<40 + 5, size - 4} {
		got := make([]byte, 4)
		if _, err := f.ReadAt(got, at); err != nil || string(got) != "data" {
			t.Errorf("at %d: %q, %v", at, got, err)
		}
	}
	if info, err := f.Stat(); err != nil || info.Size() != size {
		t.Errorf("%v, %v", info, err)
	}
	checked, err := VerifyLayers(t.Context(), s.dir)
	if err != nil || checked.Layers != 1 || len(checked.Damaged) > 0 {
		t.Errorf("verified: %+v, %v", checked, err)
	}
}

// The digest tells the contents, not where a file system put holes.
func TestDigestDoesNotDependOnHoles(t *testing.T) {
	needRoot(t)
	of := func(make func(path string)) string {
		dir := t.TempDir()
		make(filepath.Join(dir, "f"))
		must(t, os.Chmod(filepath.Join(dir, "f"), 0o644))
		sum, err := hashTree(t.Context(), dir, contentBlocks)
		must(t, err)
		return sum
	}
	size := int64(3<<20 + 17)
	want := of(func(path string) { sparse(t, path, size, 1<<20, size-4) })
	if got := of(func(path string) {
		text := make([]byte, size)
		copy(text[1<<20:], "data")
		copy(text[size-4:], "data")
		must(t, os.WriteFile(path, text, 0o644))
	}); got != want {
		t.Error("the same contents with and without holes have two digests")
	}
	for i, at := range [][]int64{{1<<20 + 4096, size - 4}, {1 << 20}, {1<<20 + 1, size - 4}} {
		if got := of(func(path string) { sparse(t, path, size, at...) }); got == want {
			t.Errorf("%d: other contents have the same digest", i)
		}
	}
	if got := of(func(path string) { sparse(t, path, size+1, 1<<20, size-4) }); got == want {
		t.Error("another size has the same digest")
	}
}

// What comes out of a sandbox ends at what the sandbox's own disk could hold:
// here the disk is smaller than what lies on it, as when holes cannot be kept.
func TestCopyEndsAtTheSandboxesDisk(t *testing.T) {
	host := smallDisk(t, 64)
	dir, err := os.Open(host)
	must(t, err)
	defer dir.Close()
	for _, tt := range []struct {
		room   copyRoom
		bytes  int64
		inodes int64
	}{{copyRoom{maxBytes: 1 << 20}, 4096, 0}, {copyRoom{maxBytes: 1 << 20}, 1, 1}, {copyRoom{maxInodes: 100}, 0, 1}} {
		tt.room.host = int(dir.Fd())
		n := 0
		for err = nil; err == nil && n < 10_000; n++ {
			err = tt.room.take(tt.bytes, tt.inodes)
		}
		if !errors.Is(err, errSandboxRoom) || n > 257 {
			t.Errorf("%+v: %v after %d", tt.room, err, n)
		}
	}
	box := smallDisk(t, 16)
	opened, err := os.Open(box)
	must(t, err)
	defer opened.Close()
	room := copyRoom{host: int(dir.Fd())}
	must(t, room.sandboxLimits(int(opened.Fd())))
	if room.maxBytes < 8<<20 || room.maxBytes > 16<<20 || room.maxInodes < 100 || room.maxInodes > 16<<10 {
		t.Errorf("limits %+v", room)
	}
}

// A copy stops before the host's file system is full, in bytes and in inodes,
// and leaves nothing: a neighbour can still write what was kept free for it.
func TestCopyEndsAtTheHostsReserve(t *testing.T) {
	tests := map[string]struct {
		options []string
		fill    func(t *testing.T, upper string)
	}{
		"one large file": {nil, func(t *testing.T, upper string) {
			write(t, filepath.Join(upper, "big"), strings.Repeat("x", 40<<20), 0o644)
		}},
		"large files": {nil, func(t *testing.T, upper string) {
			for i := range 40 {
				write(t, filepath.Join(upper, fmt.Sprint(i)), strings.Repeat("x", 1<<20), 0o644)
			}
		}},
		"empty files": {[]string{"-N", "2048"}, func(t *testing.T, upper string) {
			for i := range 3000 {
				write(t, filepath.Join(upper, fmt.Sprint(i)), "", 0o644)
			}
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host := smallDisk(t, 32, tt.options...)
			upper := filepath.Join(smallDisk(t, 64, "-N", "8192"), "upper")
			tt.fill(t, upper)
			s, err := OpenStore(filepath.Join(host, "layers"))
			must(t, err)
			before := freeOn(t, host)
			err = s.commit(t.Context(), madeLayer(), upper, nil, nil)
			if !errors.Is(err, errHostReserve) || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("got %v", err)
			}
			if after := freeOn(t, host); after != before {
				t.Errorf("%d bytes were free, now %d", before, after)
			}
			write(t, filepath.Join(host, "neighbour"), strings.Repeat("n", 1<<20), 0o600)
		})
	}
}

// A copy ends with its context also within a file.
func TestCopyEndsWithinAFile(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	write(t, filepath.Join(upper, "big"), strings.Repeat("x", 8<<20), 0o644)
	ctx := &countedContext{Context: t.Context(), left: 4}
	if _, err := copyTree(ctx, upper, filepath.Join(t.TempDir(), "out"), nil, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// countedContext is cancelled after it was asked so many times.
type countedContext struct {
	context.Context
	left int
}

// Err counts.
func (c *countedContext) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// deepTree makes directories of the name inside each other, with a file in the
// last, and returns its path.
func deepTree(t *testing.T, root, name string, levels int) string {
	t.Helper()
	at, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err, unix.Close(at))
		at = next
	}
	f, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	must(t, err)
	must(t, unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", f), "user.deep", []byte("x"), 0))
	must(t, unix.Close(f), unix.Close(at))
	return strings.Repeat(name+"/", levels) + "f"
}

// A path that is as long as one can be inside is copied, however long the names
// of the host's directories are, with few descriptors. A longer one is refused
// by its name.
func TestDeepTree(t *testing.T) {
	needRoot(t)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	fits, low, s := t.TempDir(), t.TempDir(), (*Store)(nil)
	rel := deepTree(t, fits, "d", 2046) // "/d/d…/f" has 4,094 bytes
	deepTree(t, low, "d", 2046)
	s, err := OpenStore(t.TempDir())
	must(t, err)
	few := unix.Rlimit{Cur: 256, Max: limit.Max}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	l := madeLayer()
	must(t, s.commit(t.Context(), l, fits, []string{low}, nil))
	root, err := unix.Open(l.Dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	attrs, err := xattrsAt(root, rel)
	if err != nil || attrs["user.deep"] != "x" {
		t.Errorf("the deepest file: %v, %v", attrs, err)
	}
	if checked, err := VerifyLayers(t.Context(), s.dir); err != nil || checked.Layers != 1 {
		t.Errorf("verified: %+v, %v", checked, err)
	}

	deeper := t.TempDir()
	deepTree(t, deeper, "directory", 600)
	l = madeLayer()
	l.Key = strings.Repeat("b", 64)
	err = s.commit(t.Context(), l, deeper, nil, nil)
	var tree *treeError
	if !errors.As(err, &tree) || !strings.HasPrefix(tree.Path, "/directory/directory/") {
		t.Fatalf("got %v", err)
	}
	j := &job{step: Step{Manager: "npm"}}
	if f := j.internal(err); f.Kind != KindInstallError || !strings.Contains(f.Message, "/directory/directory/") || len(f.Message) > 400 {
		t.Errorf("told as %+v", f)
	}
}

// Many empty files count, in the quota of layers.
func TestQuotaCountsInodes(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	for i := range 2000 {
		write(t, filepath.Join(upper, fmt.Sprint(i)), "", 0o644)
	}
	s, err := OpenStore(t.TempDir())
	must(t, err)
	l := madeLayer()
	must(t, s.commit(t.Context(), l, upper, nil, nil))
	if l.SizeBytes != 0 || l.Inodes != 2001 {
		t.Errorf("counted as %+v", l)
	}
	nobody := func() (map[string]bool, error) { return nil, nil }
	if gone, err := s.Prune(t.Context(), nobody, 2001*bytesPerInode); err != nil || len(gone.Keys) != 0 {
		t.Errorf("within the quota: %+v, %v", gone, err)
	}
	if gone, err := s.Prune(t.Context(), nobody, 2000*bytesPerInode); err != nil || len(gone.Keys) != 1 {
		t.Errorf("beyond the quota: %+v, %v", gone, err)
	}
}

// A layer of an old version has no such counts and another digest: it is
// measured once, counts, and is whole.
func TestOldLayerIsMeasured(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	sparse(t, filepath.Join(upper, "usr/f"), 1<<20, 100)
	s, err := OpenStore(t.TempDir())
	must(t, err)
	l := madeLayer()
	must(t, s.commit(t.Context(), l, upper, nil, nil))
	name := filepath.Join(s.dir, l.Key, "manifest.json")
	text, err := os.ReadFile(name)
	must(t, err)
	plain, err := hashTree(t.Context(), l.Dir, contentPlain)
	must(t, err)
	old := strings.Replace(string(text), l.Digest, plain, 1)
	for _, field := range []string{`"digest_format": 2,`, fmt.Sprintf(`"allocated_bytes": %d,`, l.AllocatedBytes), fmt.Sprintf(`"inodes": %d,`, l.Inodes)} {
		if !strings.Contains(old, field) {
			t.Fatalf("%s is not in %s", field, old)
		}
		old = strings.Replace(old, field, "", 1)
	}
	must(t, os.WriteFile(name, []byte(old), 0o600))
	for range 2 {
		s, err = OpenStore(s.dir)
		must(t, err)
		u, err := s.Usage()
		if err != nil || len(u) != 1 || u[0].Inodes != 3 || u[0].AllocatedBytes < 2*diskBlock || u[0].AllocatedBytes > 8*diskBlock {
			t.Errorf("usage %+v, %v", u, err)
		}
	}
	if checked, err := VerifyLayers(t.Context(), s.dir); err != nil || checked.Layers != 1 {
		t.Errorf("verified: %+v, %v", checked, err)
	}
}
