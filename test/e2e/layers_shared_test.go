package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/image"
)

// censusScript tells everything of the paths on its standard input.
const censusScript = `
import hashlib, os, stat, sys
for path in sys.stdin.read().split("\n"):
    if not path: continue
    st = os.lstat(path)
    what = ""
    if stat.S_ISREG(st.st_mode): what = hashlib.sha256(open(path, "rb").read()).hexdigest()
    if stat.S_ISLNK(st.st_mode): what = os.readlink(path)
    if stat.S_ISDIR(st.st_mode): what = " ".join(sorted(os.listdir(path)))
    print(path, oct(st.st_mode), st.st_uid, st.st_gid, what, "" if stat.S_ISDIR(st.st_mode) else int(st.st_mtime))
`

// attackScript tries each way of changing a file on each path, and says how
// many attempts of each kind went through: inside, they should.
const attackScript = `
import collections, mmap, os, shutil, stat, sys
done = collections.Counter()
def attempt(name, f):
    try:
        f()
        done[name] += 1
    except OSError as e:
        done[name + " refused"] += 1
def through_link(path, i):
    os.link(path, f"/tmp/link{i}")
    with open(f"/tmp/link{i}", "ab") as f: f.write(b"linked")
def mapped(path):
    with open(path, "r+b") as f:
        m = mmap.mmap(f.fileno(), 0)
        m[0:1] = b"!"
        m.flush()
        m.close()
def node(path):
    os.unlink(path)
    os.mknod(path, stat.S_IFIFO | 0o666)
def device(path):
    os.rename(path, path + ".moved")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(0, 0))
paths = [p for p in sys.stdin.read().split("\n") if p]
keep = ("/usr/bin", "/usr/lib", "/lib", "/bin")
for i, path in enumerate(paths):
    st = os.lstat(path)
    attempt("chown", lambda: os.chown(path, 1234, 1234, follow_symlinks=False))
    attempt("time", lambda: os.utime(path, (1, 1), follow_symlinks=False))
    if stat.S_ISREG(st.st_mode):
        attempt("link", lambda: through_link(path, i))
        attempt("chmod", lambda: os.chmod(path, 0o4777))
        attempt("attribute", lambda: os.setxattr(path, "user.x", b"x"))
        if st.st_size: attempt("map", lambda: mapped(path))
        attempt("write", lambda: open(path, "ab").write(b"x"))
        attempt("truncate", lambda: os.truncate(path, 0))
        attempt(*[("fifo", lambda: node(path)), ("device", lambda: device(path)), ("remove", lambda: os.unlink(path))][i % 3])
    elif stat.S_ISLNK(st.st_mode):
        attempt("relink", lambda: (os.unlink(path), os.symlink("/nowhere", path)))
for path in sorted(paths, reverse=True):
    if os.path.isdir(path) and not os.path.islink(path) and not path.startswith(keep):
        attempt("chmod directory", lambda: os.chmod(path, 0o777))
        attempt("new file", lambda: open(path + "/new", "w").write("x"))
        attempt("rename directory", lambda: os.rename(path, path + ".gone"))
        attempt("remove directory", lambda: shutil.rmtree(path if os.path.isdir(path) else path + ".gone"))
print(dict(done))
`

// TestLayersShared has sessions write through every path of every layer, and
// holds the layers, a sibling and a later session against what was before.
func TestLayersShared(t *testing.T) {
	m := newMirror(t)
	m.addSources(t)
	s := newServer(t, m.config(""))
	agent := s.agent()
	env := s.environment(mirrored(object{"apt": []string{"figlet"}, "npm": []string{"left-pad@1.3.0"}, "pip": []string{"six==1.17.0", "atoll-e2e-big"}}))
	b := s.builtAtLast(agent, env)
	first, second, sibling := s.session(agent, env), s.session(agent, env), s.session(agent, env)

	t.Run("page cache", func(t *testing.T) { checkPageCache(t, s, b, first, second) })

	var paths []string
	before := map[string]string{}
	for _, l := range b.Layers {
		before[l.Key] = fmt.Sprint(tree(t, s, l.Key), manifest(t, s, l.Key).Digest)
		paths = append(paths, layerPaths(t, s, l.Key)...)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	want := s.census(sibling, paths)
	if n := strings.Count(want, "\n"); n < len(paths)-1 || n < 100 {
		t.Fatalf("the census of %d paths has %d lines", len(paths), n)
	}
	for _, id := range []string{first, second} {
		said := s.python(id, attackScript, paths)
		t.Logf("%d paths: %s", len(paths), said)
		// A device 0:0 is how an overlay notes a deletion: nobody inside may make one.
		if !strings.Contains(said, "'device refused':") || strings.Contains(said, "'device':") {
			t.Errorf("a session made a device: %s", said)
		}
		for _, kind := range []string{"chown", "time", "link", "chmod", "map", "write", "truncate", "fifo", "remove", "remove directory"} {
			if !strings.Contains(said, "'"+kind+"':") {
				t.Errorf("no attempt to %s went through inside the session: %s", kind, said)
			}
		}
	}
	if got := s.census(sibling, paths); got != want {
		t.Errorf("a sibling sees changes:\n%s", firstDifference(want, got))
	}
	later := s.session(agent, env)
	if got := s.census(later, paths); got != want {
		t.Errorf("a later session sees changes:\n%s", firstDifference(want, got))
	}
	for _, l := range b.Layers {
		if now := fmt.Sprint(tree(t, s, l.Key), manifest(t, s, l.Key).Digest); now != before[l.Key] {
			t.Errorf("the %s layer has changed on the host", l.Manager)
		}
	}
	out, _ := exec.CommandContext(t.Context(), binary, "doctor", "--deep", "--data", s.Dir, "--cache", s.Cache).CombinedOutput() // what it thinks of the host is not the matter
	if want := fmt.Sprintf("%d layers, ", len(b.Layers)); !strings.Contains(string(out), want) {
		t.Errorf("doctor --deep does not say %q:\n%s", want, out)
	}
	verified, err := image.VerifyLayers(t.Context(), filepath.Join(s.Dir, "layers"))
	if err != nil || verified.Layers != len(b.Layers) || len(verified.Damaged) > 0 {
		t.Errorf("the store's own digests: %+v, %v", verified, err)
	}
}

// census describes the paths as a session sees them.
func (s *server) census(session string, paths []string) string {
	s.t.Helper()
	return s.python(session, censusScript, paths)
}

// python runs a script in a session with the paths on its standard input.
func (s *server) python(session, script string, paths []string) string {
	s.t.Helper()
	for name, text := range map[string]string{"script.py": script, "paths": strings.Join(paths, "\n")} {
		for i := 0; i < len(text); i += 60_000 {
			end := min(len(text), i+60_000)
			redirect := ">>"
			if i == 0 {
				redirect = ">"
			}
			s.must(session, "cat "+redirect+" /tmp/"+name+" <<'END_OF_TEXT'\n"+text[i:end]+"\nEND_OF_TEXT\ntruncate -s -1 /tmp/"+name)
		}
	}
	return s.must(session, "python3 /tmp/script.py < /tmp/paths")
}

// layerPaths lists what a layer has, as paths in a session, deletions aside.
func layerPaths(t *testing.T, s *server, key string) (paths []string) {
	t.Helper()
	dir := filepath.Join(s.Dir, "layers", key, "tree")
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != dir && e.Type()&fs.ModeCharDevice == 0 {
			paths = append(paths, strings.TrimPrefix(path, dir))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func manifest(t *testing.T, s *server, key string) (m struct{ Digest string }) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.Dir, "layers", key, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return "- " + a[i] + "\n+ " + b[i]
		}
	}
	return fmt.Sprintf("%d and %d lines", len(a), len(b))
}

// checkPageCache shows that what each of two sessions reads of a layer is in
// the page cache of the one file of the layer: it is emptied, a session reads,
// and it is full again. So the second one to read finds what the first one
// left, and both hold the memory once.
func checkPageCache(t *testing.T, s *server, b build, sessions ...string) {
	var file string
	for _, l := range b.Layers {
		found, _ := filepath.Glob(filepath.Join(s.Dir, "layers", l.Key, "tree/usr/local/lib/python3*/dist-packages/atoll_e2e_big/data"))
		if len(found) == 1 {
			file = found[0]
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	pages := int(info.Size()) / os.Getpagesize()
	for _, id := range sessions {
		waitFor(t, time.Minute, "the page cache to let go of the file", func() bool {
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
			return resident(t, f, int(info.Size())) == 0
		})
		s.must(id, "cat /usr/local/lib/python3*/dist-packages/atoll_e2e_big/data > /dev/null")
		if n := resident(t, f, int(info.Size())); n < pages*9/10 {
			t.Errorf("session %s read %d pages, the layer's file has %d in memory", id, pages, n)
		}
	}
}

// resident counts the pages of a file that are in the page cache.
func resident(t *testing.T, f *os.File, size int) (n int) {
	t.Helper()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	pages := make([]byte, (size+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(size), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}
