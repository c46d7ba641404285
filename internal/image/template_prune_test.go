package image

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPruneTemplates: versions stay while they are current, used by this server
// or another that shares the cache, or mounted; then the oldest goes first.
func TestPruneTemplates(t *testing.T) {
	needRoot(t)
	t.Parallel()
	cache, ours, theirs := t.TempDir(), t.TempDir(), t.TempDir()
	content := archive(t, dir("etc"), file("etc/x", "y"))
	writeFiles(t, cache, map[string][]byte{"a.tar": content})
	open := func(holder, version string) *Templates {
		t.Helper()
		ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Holder: holder, Declarations: []Declaration{
			{Name: "x", Tarball: &Tarball{Path: filepath.Join(cache, "a.tar"), SHA256: sumOf(content)}, Env: map[string]string{"V": version}}}})
		if err != nil {
			t.Fatal(err)
		}
		return ts
	}
	digests := map[string]string{}
	for i, v := range []struct{ holder, version string }{{ours, "recorded"}, {theirs, "theirs"}, {ours, "mounted"}, {ours, "old"}, {"", "nobody's"}, {ours, "current"}} {
		ts := open(v.holder, v.version)
		b, err := ts.Ensure(t.Context(), "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		digests[v.version] = b.Digest
		if v.holder != "" { // all were asked for a while ago, one after the other
			at := time.Now().Add(time.Duration(i-100) * time.Minute)
			must(t, os.Chtimes(ts.holdFile(b.Digest), at, at))
		}
	}
	lower := filepath.Join(cache, "bases", digests["mounted"], "rootfs")
	target, work := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(work, "u"), 0o755), os.Mkdir(filepath.Join(work, "w"), 0o755),
		unix.Mount("overlay", target, "overlay", 0, "lowerdir="+lower+",upperdir="+work+"/u,workdir="+work+"/w"))
	mounted := true
	unmount := func() {
		if mounted {
			must(t, unix.Unmount(target, 0))
		}
		mounted = false
	}
	defer unmount()

	ts := open(ours, "current")
	size := int64(0)
	versions, err := ts.Versions()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		if v.Digest == digests["current"] != v.Current || v.Digest == digests["mounted"] != v.Mounted || v.Digest != digests["nobody's"] && v.Servers != 1 {
			t.Errorf("%+v", v)
		}
		size = v.SizeBytes
	}
	check := func(what string, quota int64, want ...string) {
		t.Helper()
		gone, err := ts.Prune(t.Context(), func() (map[string]bool, error) { return map[string]bool{digests["recorded"]: true}, nil }, quota)
		var names []string
		for _, d := range gone.Digests {
			for name, digest := range digests {
				if digest == d {
					names = append(names, name)
				}
			}
			if _, err := os.Stat(filepath.Join(cache, "bases", d)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", d, err)
			}
		}
		if err != nil || !slices.Equal(names, want) || gone.Bytes != size*int64(len(want)) {
			t.Errorf("%s: removed %q, %d bytes (%v), want %q", what, names, gone.Bytes, err, want)
		}
	}
	must(t, os.MkdirAll(filepath.Join(cache, "scratch", "trash", "rootfs"), 0o755)) // of a clean-up that was killed
	check("within the quota", 5*size)
	if _, err := os.Stat(ts.holdFile(digests["old"])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a version that no environment uses is still held: %v", err)
	}
	check("everything", 0, "old")
	unmount()
	// A process that was just started holds its parent's mounts for a moment.
	eventually(t, "nothing has it mounted", func() error {
		versions, err := ts.Versions()
		for _, v := range versions {
			if v.Mounted {
				return errors.New("it is mounted")
			}
		}
		return err
	})
	check("unmounted", 0, "mounted")
	must(t, os.RemoveAll(theirs))
	check("the other server was removed with its data", 0, "theirs")
	manifest := filepath.Join(cache, "bases", digests["nobody's"], "manifest.json")
	text, err := os.ReadFile(manifest)
	must(t, err, os.WriteFile(manifest, regexp.MustCompile(`"created_at": "[^"]*"`).ReplaceAll(text, []byte(`"created_at": "2020-01-01T00:00:00Z"`)), 0o644))
	ts = open(ours, "current")
	check("built long ago, and nobody has asked for it", 0, "nobody's")
	// One that was asked for a moment ago stays, until a record names it or time has gone.
	if _, err := open(ours, "theirs").Ensure(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	check("asked for", 0)
	if names := globDirs(filepath.Join(cache, "bases", "*", versionUsers, "*")); len(names) != 3 {
		t.Errorf("names of servers: %v, want ours in what is recorded, current and asked for", names)
	}
	if left := globDirs(filepath.Join(cache, "scratch", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := ts.Prune(t.Context(), func() (map[string]bool, error) { return nil, os.ErrInvalid }, 0); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
