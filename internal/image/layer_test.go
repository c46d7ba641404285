package image

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func keysOf(steps []Step) []string {
	var keys []string
	for _, s := range steps {
		keys = append(keys, s.Manager+" "+s.Key)
	}
	return keys
}

func TestKeys(t *testing.T) {
	base := &Base{Digest: "base", Arch: "amd64"}
	all := Packages{Apt: []string{"a1"}, Cargo: []string{"c"}, Gem: []string{"g"}, Go: []string{"example.com/x"}, Npm: []string{"n"}, Pip: []string{"p", "q"}}
	want := keysOf(plan(base, all, 0, nil))
	if len(want) != 6 || !slices.IsSorted(want) {
		t.Fatalf("plan is %q", want)
	}

	same := all
	same.Pip = []string{" p", "q ", "p"}
	same.Npm = append(make([]string, 0, 9), "n")
	if got := keysOf(plan(base, same, 0, nil)); !slices.Equal(got, want) {
		t.Error("spaces and duplicates change the key")
	}
	order := all
	order.Pip = []string{"q", "p"}
	if got := keysOf(plan(base, order, 0, nil)); got[5] == want[5] || !slices.Equal(got[:5], want[:5]) {
		t.Error("the order of pip's list must change pip's key and no other")
	}
	apt := all
	apt.Apt = []string{"a2"}
	for i, k := range keysOf(plan(base, apt, 0, nil)) {
		if k == want[i] {
			t.Errorf("another apt list leaves %s", k)
		}
	}
	none := all
	none.Gem = nil
	if got := keysOf(plan(base, none, 0, nil)); len(got) != 5 || got[1] != want[1] || got[2] == want[3] {
		t.Error("an empty list makes no layer, and those above get another parent")
	}
	for name, other := range map[string]*Base{"digest": {Digest: "other", Arch: "amd64"}, "arch": {Digest: "base", Arch: "arm64"}} {
		if keysOf(plan(other, all, 0, nil))[0] == want[0] {
			t.Errorf("another %s leaves the key", name)
		}
	}
	for i, s := range plan(base, all, 1_700_000_000, nil) {
		if key := s.Manager + " " + s.Key; key == want[i] || key == keysOf(plan(base, all, 1_700_000_001, nil))[i] {
			t.Errorf("another generation leaves %s", key)
		}
	}
	// Layers that were made before there were generations stay hits.
	if got := plan(&Base{Digest: "base", Arch: "amd64"}, Packages{Npm: []string{"n"}}, 0, nil)[0].Family; got != hashFields(layerFormat, "2", "base", "amd64", "", "npm", "n") {
		t.Errorf("the family of generation 0 is %s", got)
	}
	fresh := plan(base, all, 0, func(Step) int64 { return 1 })
	if fresh[0].Key == plan(base, all, 0, nil)[0].Key || fresh[0].Family != plan(base, all, 0, nil)[0].Family {
		t.Error("an epoch must change the key and not the family")
	}
}

// No two different lists may have one key, however their parts are joined.
func TestKeysNeverCollide(t *testing.T) {
	base := &Base{Digest: "base", Arch: "amd64"}
	seen := map[string]string{}
	for range 20_000 {
		var list []string
		for range 1 + rand.IntN(4) {
			list = append(list, strings.Repeat("ab", 1+rand.IntN(3))[rand.IntN(2):])
		}
		list = normalList(list)
		step := Step{Manager: "npm", Entries: list}
		step.place(base, 0, "")
		key := step.Key
		text := strings.Join(list, "\x00")
		if old, ok := seen[key]; ok && old != text {
			t.Fatalf("%q and %q have one key", old, text)
		}
		seen[key] = text
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// must ends the test on the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// upperTree is what a build may leave in an overlay's upper directory.
func upperTree(t *testing.T) (upper, lower string) {
	upper, lower = t.TempDir(), t.TempDir()
	must(t, os.Chmod(upper, 0o755))
	for _, f := range []string{"etc/resolv.conf", "etc/hosts", "etc/machine-id", "etc/passwd-", "usr/sbin/policy-rc.d", "var/lib/apt/lists/x", "var/cache/apt/y",
		"var/log/dpkg.log", "var/log/apt/term.log", "tmp/z", "root/.cache/pip/a", ".atoll/b", "run/lock", "var/lib/dpkg/status-old", "var/lib/dpkg/lock", "mnt/session/up"} {
		write(t, filepath.Join(upper, f), "not wanted", 0o644)
		must(t, os.MkdirAll(filepath.Join(lower, filepath.Dir(f)), 0o755))
	}
	write(t, filepath.Join(upper, "usr/bin/tool"), "tool", 0o755)
	write(t, filepath.Join(upper, "var/lib/dpkg/status"), "status", 0o640)
	write(t, filepath.Join(upper, "usr/bin/setuid"), "setuid", 0o755)
	must(t, os.Link(filepath.Join(upper, "usr/bin/tool"), filepath.Join(upper, "usr/bin/same")),
		os.Symlink("/etc/shadow", filepath.Join(upper, "usr/bin/link")),
		os.Lchown(filepath.Join(upper, "usr/bin/link"), 12, 34),
		os.Chown(filepath.Join(upper, "usr/bin/setuid"), 7, 8),
		unix.Chmod(filepath.Join(upper, "usr/bin/setuid"), 0o6755),
		os.Mkdir(filepath.Join(upper, "var/log/service"), 0o750),
		os.Chown(filepath.Join(upper, "var/log/service"), 5, 6),
		os.MkdirAll(filepath.Join(upper, "opt/again"), 0o755),
		unix.Mknod(filepath.Join(upper, "usr/bin/gone"), unix.S_IFCHR, 0),
		unix.Mknod(filepath.Join(upper, "usr/bin/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(filepath.Join(upper, "usr/bin/socket"), unix.S_IFSOCK|0o600, 0),
		unix.Setxattr(filepath.Join(upper, "opt/again"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(filepath.Join(upper, "opt"), "trusted.overlay.origin", []byte("x"), 0),
		// CAP_NET_BIND_SERVICE, effective, revision 2.
		unix.Setxattr(filepath.Join(upper, "usr/bin/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	old := time.Unix(1_000_000_000, 0)
	must(t, os.Chtimes(filepath.Join(upper, "usr/bin/tool"), old, old))
	return upper, lower
}

func TestCommit(t *testing.T) {
	needRoot(t)
	upper, lower := upperTree(t)
	s, err := OpenStore(t.TempDir())
	must(t, err)
	l := &Layer{Key: strings.Repeat("a", 64), Family: "f", Versions: []PackageVersion{{Name: "tool", Version: "1"}}, CreatedAt: time.Now()}
	must(t, s.commit(t.Context(), l, upper, []string{lower}, []byte("log")))

	var got []string
	must(t, filepath.WalkDir(l.Dir, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(l.Dir, path)
		got = append(got, rel)
		return err
	}))
	want := strings.Fields(". opt opt/again usr usr/bin usr/bin/gone usr/bin/link usr/bin/same usr/bin/setuid usr/bin/tool var var/lib var/lib/dpkg var/lib/dpkg/status var/log var/log/service")
	if !slices.Equal(got, want) {
		t.Errorf("the layer has %q,\nwant %q", got, want)
	}
	var tool, same, gone, setuid, link, service unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"usr/bin/tool": &tool, "usr/bin/same": &same, "usr/bin/gone": &gone, "usr/bin/setuid": &setuid, "usr/bin/link": &link, "var/log/service": &service} {
		must(t, unix.Lstat(filepath.Join(l.Dir, name), st))
	}
	if tool.Ino != same.Ino || tool.Mtim.Sec != 1_000_000_000 {
		t.Errorf("hard link or time lost: %+v %+v", tool, same)
	}
	if gone.Mode != unix.S_IFCHR || gone.Rdev != 0 {
		t.Errorf("the whiteout is %o %d", gone.Mode, gone.Rdev)
	}
	if setuid.Mode != unix.S_IFREG|0o6755 || setuid.Uid != 7 || link.Uid != 12 || link.Gid != 34 || service.Mode != unix.S_IFDIR|0o750 || service.Uid != 5 {
		t.Errorf("owners or modes lost: %+v %+v %+v", setuid, link, service)
	}
	for name, attr := range map[string]string{"usr/bin/tool": "security.capability", "opt/again": "trusted.overlay.opaque"} {
		if n, err := unix.Getxattr(filepath.Join(l.Dir, name), attr, make([]byte, 100)); err != nil || n == 0 {
			t.Errorf("%s of %s is lost: %v", attr, name, err)
		}
	}
	if _, err := unix.Getxattr(filepath.Join(l.Dir, "opt"), "trusted.overlay.origin", nil); err == nil {
		t.Error("a reference to another mount's inode was kept")
	}

	again, err := s.Layer(l.Key)
	if err != nil || again.Digest != l.Digest || again.SizeBytes != int64(len("tool")+len("status")+len("setuid")) || again.Dir != l.Dir {
		t.Errorf("read back %+v, %v", again, err)
	}
	if err := s.commit(t.Context(), l, upper, []string{lower}, nil); err == nil {
		t.Error("a layer was replaced")
	}
}

// Every fact but times changes the digest.
func TestDigest(t *testing.T) {
	needRoot(t)
	digest := func(change func(dir string)) string {
		upper, lower := upperTree(t)
		if change != nil {
			change(upper)
		}
		c, err := copyTree(t.Context(), upper, filepath.Join(t.TempDir(), "out"), []string{lower}, 0)
		must(t, err)
		return c.digest
	}
	want := digest(nil)
	if got := digest(func(dir string) {
		now := time.Now()
		must(t, os.Chtimes(filepath.Join(dir, "usr/bin/tool"), now, now))
		write(t, filepath.Join(dir, "var/log/more.log"), "x", 0o600)
	}); got != want {
		t.Error("times or logs change the digest")
	}
	for name, change := range map[string]func(dir string) error{
		"content": func(dir string) error { return os.WriteFile(filepath.Join(dir, "usr/bin/tool"), []byte("fool"), 0) },
		"mode":    func(dir string) error { return os.Chmod(filepath.Join(dir, "usr/bin/setuid"), 0o755) },
		"owner":   func(dir string) error { return os.Lchown(filepath.Join(dir, "usr/bin/link"), 1, 1) },
		"xattr": func(dir string) error {
			return unix.Removexattr(filepath.Join(dir, "usr/bin/tool"), "security.capability")
		},
		"opaque": func(dir string) error {
			return unix.Removexattr(filepath.Join(dir, "opt/again"), "trusted.overlay.opaque")
		},
		"whiteout": func(dir string) error { return os.Remove(filepath.Join(dir, "usr/bin/gone")) },
		"name": func(dir string) error {
			return os.Rename(filepath.Join(dir, "usr/bin/tool"), filepath.Join(dir, "usr/bin/tool2"))
		},
	} {
		if got := digest(func(dir string) { must(t, change(dir)) }); got == want {
			t.Errorf("another %s leaves the digest", name)
		}
	}
}

func TestCommitRefusesForeignReferences(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	must(t, os.Mkdir(filepath.Join(upper, "d"), 0o755), unix.Setxattr(filepath.Join(upper, "d"), "trusted.overlay.redirect", []byte("/e"), 0))
	if _, err := copyTree(t.Context(), upper, filepath.Join(t.TempDir(), "out"), nil, 0); err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("got %v", err)
	}
}

// What a crash leaves before the rename is removed; what it leaves after is a layer.
func TestRecover(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	must(t, err)
	upper := t.TempDir()
	write(t, filepath.Join(upper, "usr/x"), "x", 0o644)
	l := &Layer{Key: strings.Repeat("b", 64), Family: "f", Epoch: 3, CreatedAt: time.Now()}
	must(t, s.commit(t.Context(), l, upper, nil, []byte("log")))
	write(t, filepath.Join(dir, scratchName, "layer-1", "tree/half"), "x", 0o644)
	write(t, filepath.Join(dir, trashName, "layer-1", "layer/tree/half"), "x", 0o644)
	write(t, filepath.Join(dir, strings.Repeat("c", 64), "tree/half"), "x", 0o644) // no manifest

	s, err = OpenStore(dir)
	must(t, err)
	for _, name := range []string{scratchName, trashName} {
		if left, _ := os.ReadDir(filepath.Join(dir, name)); len(left) > 0 {
			t.Errorf("%s still has %v", name, left)
		}
	}
	if got := s.newest("f"); got == nil || got.Epoch != 3 {
		t.Errorf("newest is %+v", got)
	}
	if _, err := s.Layer(strings.Repeat("c", 64)); !errors.Is(err, ErrNoLayer) {
		t.Errorf("a directory without a manifest: %v", err)
	}
	if text, err := s.Log(l.Key); err != nil || string(text) != "log" {
		t.Errorf("log %q, %v", text, err)
	}
	for _, key := range []string{"", "../x", strings.Repeat("A", 64)} {
		if _, err := s.LayerDirs([]string{key}); !errors.Is(err, ErrNoLayer) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

func TestPrune(t *testing.T) {
	needRoot(t)
	s, err := OpenStore(t.TempDir())
	must(t, err)
	upper := t.TempDir()
	write(t, filepath.Join(upper, "usr/x"), strings.Repeat("x", 1000), 0o644)
	now := time.Now()
	add := func(name, parent string, age time.Duration) *Layer {
		l := &Layer{Key: hashFields(name), Family: name, CreatedAt: now.Add(-age)}
		if parent != "" {
			l.Parent = hashFields(parent)
		}
		must(t, s.commit(t.Context(), l, upper, nil, nil))
		return l
	}
	add("root", "", 9*time.Hour)
	add("old", "root", 8*time.Hour)
	add("used", "root", 7*time.Hour)
	add("young", "root", time.Hour)
	mounted := add("mounted", "root", 20*time.Hour)
	target, work := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(work, "u"), 0o755), os.Mkdir(filepath.Join(work, "w"), 0o755),
		unix.Mount("overlay", target, "overlay", 0, "lowerdir="+mounted.Dir+",upperdir="+work+"/u,workdir="+work+"/w"))
	unmount := func() { must(t, unix.Unmount(target, 0)) }
	// A mount that a failure left would be in use for every later run too.
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	s.used(hashFields("young"), now)

	names := func(keys []string) []string {
		var out []string
		for _, k := range keys {
			for _, n := range []string{"root", "old", "used", "young", "mounted"} {
				if hashFields(n) == k {
					out = append(out, n)
				}
			}
		}
		return out
	}
	inUse := func() (map[string]bool, error) { return map[string]bool{hashFields("used"): true}, nil }
	check := func(what string, got Pruned, err error, want ...string) {
		t.Helper()
		if err != nil || !slices.Equal(names(got.Keys), want) {
			t.Errorf("%s: removed %q (%v), want %q", what, names(got.Keys), err, want)
		}
	}
	got, err := s.Prune(t.Context(), inUse, 4*3*bytesPerInode)
	check("quota", got, err, "old")
	if !s.pin(hashFields("young")) {
		t.Fatal("cannot pin")
	}
	got, err = s.Prune(t.Context(), inUse, 0)
	check("pinned", got, err)
	s.unpin(hashFields("young"))
	got, err = s.Prune(t.Context(), inUse, 0)
	check("all unused", got, err, "young")
	usage, err := s.Usage()
	if err != nil || len(usage) != 3 || !usage[0].Mounted {
		t.Errorf("usage is %+v, %v", usage, err)
	}
	unmount()
	got, err = s.Prune(t.Context(), func() (map[string]bool, error) { return nil, nil }, 0)
	check("everything", got, err, "mounted", "used", "root")
	left, _ := os.ReadDir(s.dir)
	if len(left) != 2 {
		t.Errorf("left: %v", left)
	}
	if _, err := s.Prune(t.Context(), func() (map[string]bool, error) { return nil, context.Canceled }, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if len(s.families) > 0 {
		t.Error("families are left")
	}
}
