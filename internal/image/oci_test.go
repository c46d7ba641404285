package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// entry is one header of a test archive; regular files have the body.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry { return entry{tar.Header{Name: name, Mode: 0o644}, body} }
func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}
func symlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, ""}
}
func hardlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1e9, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// push makes an image of the layers in the registry at host and returns its reference.
func push(t *testing.T, host string, conf v1.Config, layers ...[]byte) string {
	t.Helper()
	img := empty.Image
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	img, err := mutate.Config(img, conf)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host+"/team/image:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func newRegistry(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return s
}

// listTree tells path → what is there, in words.
func listTree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		if err != nil || rel == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what += " " + string(b)
		case info.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			what = "-> " + to
		}
		out[rel] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOCITemplate(t *testing.T) {
	needRoot(t)
	t.Parallel()
	reg := newRegistry(t)
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	low := archive(t, dir("etc/"), dir("usr/bin/"), symlink("bin", "/usr/bin"), file("usr/bin/tool", "tool"),
		entry{tar.Header{Name: "usr/bin/suid", Mode: 0o4755, Uid: 7, Gid: 8, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.x": "y", "SCHILY.xattr.trusted.overlay.opaque": "y"}}, "s"},
		hardlink("usr/bin/tool2", "bin/tool"), file("etc/gone", "x"), dir("opaque/"), file("opaque/low", "x"), dir("opaque/sub/"), file("opaque/sub/low", "x"),
		file("becomes-dir", "x"), dir("becomes-file/"), file("becomes-file/x", "x"),
		entry{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
		entry{tar.Header{Name: "whiteout", Typeflag: tar.TypeChar}, ""},
		entry{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		symlink("var/run", "/run"), symlink("up", "../../../../etc"))
	high := archive(t, file("etc/.wh.gone", ""), file("opaque/sub/high", "new"), file("opaque/.wh..wh..opq", ""), file("opaque/high", "new"),
		dir("becomes-dir/"), file("becomes-dir/x", "new"), file("becomes-file", "new"), file("bin/through", "link"), file("var/run/pid", "1"), file("up/inside", "x"))
	ref := push(t, reg.Listener.Addr().String(), v1.Config{Env: []string{"PATH=/opt/own/bin:/usr/bin", "A=b", "BAD KEY=x"}, WorkingDir: "/app"}, low, high)
	ts, err := NewTemplates(TemplatesConfig{CacheDir: t.TempDir(), Declarations: []Declaration{
		{Name: "ours", OCI: &OCI{Ref: ref, PlainHTTP: true}, Env: map[string]string{"C": "d"}}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), "ours", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := listTree(t, b.Dir)
	for name := range got {
		if top, _, _ := strings.Cut(name, "/"); slices.Contains([]string{"workspace", "mnt", "proc", "sys", "tmp", "root"}, top) || strings.HasPrefix(name, "usr/local") || strings.HasPrefix(name, "etc/ssl") {
			delete(got, name)
		}
	}
	want := map[string]string{
		"etc": "drwxr-xr-x", "etc/inside": "-rw-r--r-- x", "usr": "drwxr-xr-x", "usr/bin": "drwxr-xr-x", "bin": "-> /usr/bin",
		"usr/bin/tool": "-rw-r--r-- tool", "usr/bin/tool2": "-rw-r--r-- tool", "usr/bin/suid": "urwxr-xr-x s", "usr/bin/through": "-rw-r--r-- link",
		"opaque": "drwxr-xr-x", "opaque/high": "-rw-r--r-- new", "opaque/sub": "drwxr-xr-x", "opaque/sub/high": "-rw-r--r-- new",
		"becomes-dir": "drwxr-xr-x", "becomes-dir/x": "-rw-r--r-- new", "becomes-file": "-rw-r--r-- new", "dev": "drwxr-xr-x",
		"pipe": "prw-------", "var": "drwxr-xr-x", "var/run": "-> /run", "run": "drwxr-xr-x", "run/pid": "-rw-r--r-- 1", "up": "-> ../../../../etc",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	var one, two, suid unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"usr/bin/tool": &one, "usr/bin/tool2": &two, "usr/bin/suid": &suid} {
		if err := unix.Stat(filepath.Join(b.Dir, name), st); err != nil {
			t.Fatal(err)
		}
	}
	if one.Ino != two.Ino || suid.Uid != 7 || suid.Gid != 8 || one.Mtim.Sec != 1e9 {
		t.Errorf("hard link, owner or time are lost: %+v %+v %+v", one, two, suid)
	}
	for attr, want := range map[string]string{"security.capability": capability, "user.x": "y", "trusted.overlay.opaque": ""} {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(b.Dir, "usr/bin/suid"), attr, buf)
		if n = max(n, 0); string(buf[:n]) != want || err != nil && want != "" {
			t.Errorf("attribute %s is %q, %v", attr, buf[:n], err)
		}
	}
	env := strings.Join(b.Env, "\n")
	for _, want := range []string{"A=b", "C=d", "PATH=/opt/own/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"} {
		if !slices.Contains(b.Env, want) {
			t.Errorf("%q is not in the environment:\n%s", want, env)
		}
	}
	m, err := ts.Show("ours")
	if err != nil || m.WorkingDir != "/app" || len(m.Warnings) != 3 || !strings.HasPrefix(m.Source, "oci sha256:") {
		t.Errorf("manifest %+v, %v", m, err)
	}
}

func TestOCIRefusesEscapes(t *testing.T) {
	needRoot(t)
	t.Parallel()
	reg := newRegistry(t)
	for what, c := range map[string]struct {
		want    string
		entries []entry
	}{
		"dots":                   {"leaves the root", []entry{file("../victim", "x")}},
		"dots inside":            {"leaves the root", []entry{file("a/../../victim", "x")}},
		"hard link out":          {"leaves the root", []entry{hardlink("x", "../victim")}},
		"hard link by a link":    {"no such file", []entry{symlink("l", "/.."), hardlink("x", "l/victim")}},
		"absolute hard link":     {"no such file", []entry{hardlink("x", "/etc/passwd")}},
		"white out the parent":   {"leaves the root", []entry{file("a/.wh...", "")}},
		"link loop":              {"too many links", []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}},
		"file as a directory":    {"not a directory", []entry{file("a", "x"), file("a/x", "x")}},
		"root becomes a link":    {"leaves the root", []entry{symlink("./", "/etc")}},
		"owner out of range":     {"out of range", []entry{{tar.Header{Name: "a", Uid: -1, Format: tar.FormatGNU}, "x"}}},
		"a type of its own":      {"unknown type", []entry{{tar.Header{Name: "a", Typeflag: 'Q'}, ""}}},
		"overlong symbolic link": {"without a target", []entry{symlink("a", strings.Repeat("x", 5000))}},
	} {
		t.Run(what, func(t *testing.T) {
			cache := t.TempDir()
			writeFiles(t, cache, map[string][]byte{"victim": []byte("safe")})
			ref := push(t, reg.Listener.Addr().String(), v1.Config{}, archive(t, c.entries...))
			ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: []Declaration{{Name: "x", OCI: &OCI{Ref: ref, PlainHTTP: true}}}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = ts.Ensure(t.Context(), "x", nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if left := globDirs(filepath.Join(cache, "scratch", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if _, ok := ts.Lookup("x"); ok {
				t.Error("a version was kept")
			}
		})
	}
}

// TestUnpackStaysInside: links that point out of the root lead inside, as they would for a process in the sandbox.
func TestUnpackStaysInside(t *testing.T) {
	needRoot(t)
	t.Parallel()
	outer := t.TempDir()
	writeFiles(t, outer, map[string][]byte{"victim": []byte("safe"), "rootfs/x": nil})
	root, err := os.OpenRoot(filepath.Join(outer, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u := &unpacker{root: root, whiteouts: true}
	err = u.apply(t.Context(), bytes.NewReader(archive(t, symlink("a", ".."), file("a/victim", "1"), symlink("b", outer), file("b/victim", "2"),
		symlink("c", "../victim"), file("c", "3"), symlink("d", "../../.."), file("d/.wh.victim", ""), file("/abs", "4"))))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(outer, "victim")); err != nil || string(b) != "safe" {
		t.Errorf("outside was changed: %q, %v", b, err)
	}
	got := listTree(t, filepath.Join(outer, "rootfs"))
	inside := strings.TrimPrefix(filepath.Join(outer, "victim"), "/")
	if got[inside] != "-rw-r--r-- 2" || got["c"] != "-rw-r--r-- 3" || got["abs"] != "-rw-r--r-- 4" {
		t.Errorf("tree is %v", got)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, e := range [][]entry{
		{file("a/b", "x"), symlink("l", "a"), file("l/c", "y"), hardlink("h", "l/c"), file("a/.wh.b", "")},
		{symlink("l", "/../.."), file("l/x", "y"), file(".wh..wh..opq", "")},
		{dir("./"), dir("a"), symlink("a", "."), file("a/a/a", "")},
	} {
		f.Add(archive(f, e...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		if err := os.Mkdir(filepath.Join(outer, "root"), 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(filepath.Join(outer, "root"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u := &unpacker{root: root, whiteouts: true, bytes: maxTreeBytes - 1<<20}
		_ = u.apply(context.Background(), bytes.NewReader(b))
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 1 {
			t.Fatalf("beside the root: %v, %v", entries, err)
		}
	})
}

var errNotYet = errors.New("not yet")

// eventually polls until f says nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(8 * time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("%s: %w", what, err))
		}
		time.Sleep(20 * time.Millisecond)
	}
}
