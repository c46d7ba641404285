package sandboxtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/atoll-run/atoll/internal/sandbox"
)

func testFiles(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	s.write(t, id, "a/b/c.txt", "hello\n") // relative to the working directory; parents appear
	if got := s.sh(t, id, "cat /workspace/a/b/c.txt; stat -c '%a %u' /workspace/a/b/c.txt /workspace/a"); got != "hello\n644 0\n755 0\n" {
		t.Errorf("written file: %q", got)
	}
	s.sh(t, id, "chmod 751 /workspace/a/b/c.txt; chown 33 /workspace/a/b/c.txt; ln -s c.txt /workspace/a/b/link")
	big := strings.Repeat("0123456789abcdef", 1<<18)
	s.write(t, id, "/workspace/a/b/link", big)
	if got := s.sh(t, id, "stat -c '%a %u %s' /workspace/a/b/c.txt; test -L /workspace/a/b/link; ls -A /workspace/a/b"); got != "751 33 4194304\nc.txt\nlink\n" {
		t.Errorf("replaced file: %q", got)
	}
	info, r, err := s.engine.ReadFile(ctx, id, "a/b/link")
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil || string(content) != big {
		t.Errorf("read %d bytes, %v", len(content), err)
	}
	_ = r.Close()
	if info.Dir || info.Size != int64(len(big)) || info.Mode != 0o751 || time.Since(info.Mtime) > time.Hour {
		t.Errorf("info %+v", info)
	}
	_, r, err = s.engine.ReadFile(ctx, id, "a/b/link") // a reader that gives up leaves nothing behind
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	eventually(t, "the helper ends", func() bool {
		return !strings.Contains(s.sh(t, id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"), "guest read")
	})

	broken := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("broken source")))
	if err := s.engine.WriteFile(ctx, id, "a/b/c.txt", 0o644, broken); err == nil || !strings.Contains(err.Error(), "broken source") {
		t.Errorf("broken source: %v", err)
	}
	if got := s.sh(t, id, "stat -c %s a/b/c.txt; ls -A a/b"); got != "4194304\nc.txt\nlink\n" {
		t.Errorf("after a broken write: %q", got)
	}
	if err := s.engine.Remove(ctx, id, "a"); err != nil {
		t.Error(err)
	}
	if err := s.engine.Remove(ctx, id, "a"); !errors.Is(err, sandbox.ErrNoFile) {
		t.Errorf("removing what is absent: %v", err)
	}
	s.write(t, id, "empty", "")
	if got, err := s.read(t, id, "empty"); got != "" || err != nil {
		t.Errorf("empty file: %q %v", got, err)
	}
}

func testHostilePaths(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	host := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(host, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.sh(t, id, "mkfifo fifo; mkdir dir; ln -s "+host+" out; ln -s / up; ln -s loop loop; ln -s /proc/1/root/../../.. esc; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"")
	for _, path := range []string{host, "out", "../../../../../.." + host, "up/../../.." + host, "esc" + host, "no/such", "/proc/self/root" + host} {
		if _, err := s.read(t, id, path); !errors.Is(err, sandbox.ErrNoFile) {
			t.Errorf("reading %s: %v", path, err)
		}
	}
	for _, path := range []string{"fifo", "sock", "/dev/null", "/dev/zero", "loop", "dir/../loop", "fifo/x"} {
		if _, err := s.read(t, id, path); !errors.Is(err, sandbox.ErrFile) {
			t.Errorf("reading %s: %v", path, err)
		}
	}
	for _, path := range []string{"dir", "fifo", "/dev/null", "loop", "/", "/proc/version", "/sys/x", "dir/../fifo/x"} {
		if err := s.engine.WriteFile(ctx, id, path, 0o644, strings.NewReader("x")); !errors.Is(err, sandbox.ErrFile) {
			t.Errorf("writing %s: %v", path, err)
		}
	}
	s.write(t, id, "out", "inside") // goes to that path inside, not on the host
	if data, err := os.ReadFile(host); err != nil || string(data) != "host" {
		t.Errorf("the host's file is now %q, %v", data, err)
	}
	if err := s.engine.Remove(ctx, id, "/"); !errors.Is(err, sandbox.ErrFile) {
		t.Errorf("removing the root: %v", err)
	}
	if err := s.engine.Remove(ctx, id, "up"); err != nil { // the link, not what it names
		t.Error(err)
	}
	s.sh(t, id, "test -d /usr; test ! -e up")
	for _, name := range []string{"new\nline", "--help", "sp ace", "ünï", strings.Repeat("n", 255)} {
		s.write(t, id, name, name)
		if got, err := s.read(t, id, name); got != name || err != nil {
			t.Errorf("%q: %q %v", name, got, err)
		}
	}
	if err := s.engine.WriteFile(ctx, id, strings.Repeat("n", 256), 0o644, strings.NewReader("x")); !errors.Is(err, sandbox.ErrFile) {
		t.Errorf("too long name: %v", err)
	}
	if _, err := s.read(t, id, "nul\x00byte"); err == nil {
		t.Error("a path with a zero byte worked")
	}
}

// archive makes a tar stream.
func archive(t *testing.T, entries ...*tar.Header) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, head := range entries {
		content := head.PAXRecords["content"]
		head.PAXRecords = nil
		head.Size = int64(len(content))
		if head.Mode == 0 {
			head.Mode = 0o755
		}
		if err := w.WriteHeader(head); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func file(name, content string) *tar.Header {
	return &tar.Header{Name: name, Mode: 0o640, PAXRecords: map[string]string{"content": content}}
}

func link(kind byte, name, target string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Linkname: target}
}

func testTar(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	in := archive(t, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750}, file("d/one", "1"), file("./two/three", "23"),
		link(tar.TypeSymlink, "d/up", "../two/three"), link(tar.TypeLink, "same", "d/one"), file("d/one", "11"))
	if err := s.engine.WriteTar(ctx, id, "into/it", in); err != nil {
		t.Fatal(err)
	}
	if got := s.sh(t, id, "cd into/it; cat d/one d/up same; stat -c %a d d/one"); got != "11231750\n640\n" {
		t.Errorf("unpacked: %q", got)
	}
	s.sh(t, id, "mkfifo into/it/fifo")
	info, r, err := s.engine.ReadFile(ctx, id, "into/it")
	if err != nil || !info.Dir {
		t.Fatal(info, err)
	}
	defer r.Close()
	got := map[string]string{}
	for stream := tar.NewReader(r); ; {
		head, err := stream.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(stream)
		if err != nil {
			t.Fatal(err)
		}
		got[head.Name] = head.Linkname + string(content)
	}
	want := map[string]string{"d/": "", "d/one": "11", "d/up": "../two/three", "same": "1", "two/": "", "two/three": "23"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func testTarHostile(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	for name, in := range map[string]io.Reader{
		"parent":          archive(t, file("../x", "bad")),
		"absolute":        archive(t, file("/tmp/x", "bad")),
		"deep parent":     archive(t, file("a/../../x", "bad")),
		"through its own": archive(t, link(tar.TypeSymlink, "l", "/tmp"), file("l/x", "bad")),
		"through one up":  archive(t, link(tar.TypeSymlink, "a/l", "../../../tmp"), file("a/l/x", "bad")),
		"over its own":    archive(t, link(tar.TypeSymlink, "l", "/tmp/x"), link(tar.TypeLink, "h", "l/x")),
		"not gzip":        strings.NewReader("\x1f\x8b\x08 and no more"),
		"not zstd":        strings.NewReader("\x28\xb5\x2f\xfd and no more"),
		"half of a gzip":  io.LimitReader(compressed(t, "gzip", archive(t, file("x", random(20000)))), 10000),
		"hard link out":   archive(t, link(tar.TypeLink, "l", "../../etc/passwd")),
		"through a link":  archive(t, file("pre/x", "bad")),
		"device":          archive(t, &tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}),
		"not an archive":  strings.NewReader(strings.Repeat("no archive ", 500)),
		"cut off":         io.LimitReader(archive(t, file("x", strings.Repeat("x", 5000))), 2000),
		"directory entry": archive(t, file("x", ""), file("x/y", "bad")),
	} {
		dir := "/workspace/" + strings.ReplaceAll(name, " ", "-")
		s.sh(t, id, "mkdir -p "+dir+"; ln -s /tmp "+dir+"/pre")
		if err := s.engine.WriteTar(ctx, id, dir, in); !errors.Is(err, sandbox.ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := s.sh(t, id, "ls -A /tmp; ls -A /workspace | grep -c ^x || true"); got != "0\n" {
		t.Errorf("something got out: %q", got)
	}
}

// compressed compresses what r has.
func compressed(t *testing.T, how string, r io.Reader) io.Reader {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&out)
	if how == "zstd" {
		encoder, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w = encoder
	}
	if _, err := io.Copy(w, r); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

// random is text that does not get shorter by compression.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(b)
}

// testTarBack: a directory that was read as a tar can be put back, whatever its
// links name, also compressed.
func testTarBack(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	s.sh(t, id, `mkdir -p venv/bin venv/lib; ln -s /usr/bin/python3 venv/bin/python3; ln -s python3 venv/bin/python; ln -s lib venv/lib64; ln -s ../../../.. venv/up
ln -s /no/such/place venv/dangling; echo code > venv/lib/module.py; head -c 200000 /dev/zero > venv/lib/big; chmod 640 venv/lib/big`)
	want := s.sh(t, id, "cd venv; find . -type l -printf '%p %l\\n' | sort; cat lib64/module.py; stat -c '%a %s' lib/big; bin/python -c 'print(1+1)'")
	_, r, err := s.engine.ReadFile(ctx, id, "venv")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tarball, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for how, in := range map[string]io.Reader{
		"plain": bytes.NewReader(tarball), "gzip": compressed(t, "gzip", bytes.NewReader(tarball)), "zstd": compressed(t, "zstd", bytes.NewReader(tarball)),
	} {
		if err := s.engine.WriteTar(ctx, id, "/workspace/back/"+how, in); err != nil {
			t.Errorf("%s: %v", how, err)
			continue
		}
		got := s.sh(t, id, "cd back/"+how+"; find . -type l -printf '%p %l\\n' | sort; cat lib64/module.py; stat -c '%a %s' lib/big; bin/python -c 'print(1+1)'")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", how, diff)
		}
	}
	// Once more over what is there.
	if err := s.engine.WriteTar(ctx, id, "/workspace/back/plain", bytes.NewReader(tarball)); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// testKernelFiles: files of /proc say that they are empty and are not.
func testKernelFiles(t *testing.T, s *suite) {
	id := s.create(t, nil)
	for _, path := range []string{"/proc/version", "/proc/cpuinfo", "/proc/1/cmdline", "/sys/devices/system/cpu/online", "/proc/sys/kernel/hostname"} {
		if got, err := s.read(t, id, path); err != nil || len(got) < 2 {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	info, r, err := s.engine.ReadFile(testContext(t), id, "/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil || info.Size != int64(len(content)) {
		t.Errorf("/proc/version of %d bytes is said to have %d, %v", len(content), info.Size, err)
	}
}

// watchScript is a Perl program that prints the names that appear in a directory
// or are written there, until "end" does.
const watchScript = `
my ($init, $add) = (uname() eq "x86_64") ? (294, 254) : (26, 27);
sub uname { my $m = qx(uname -m); chomp $m; $m }
my $dir = $ARGV[0];
my $fd = syscall($init, 0);
die "inotify: $!" if $fd < 0 || syscall($add, $fd, $dir, 0x3c0) < 0;
open(my $in, "<&=", $fd) or die;
$| = 1; print "watching\n";
while (sysread($in, my $data, 65536)) {
    while (length $data) {
        my $size = (unpack "lLLL", $data)[3];
        my $name = substr $data, 16, $size; $name =~ s/\0.*//s;
        print "$name\n"; exit if $name eq "end";
        $data = substr $data, 16 + $size;
    }
}`

// watch runs write while a program watches a directory, and returns the names
// that it saw.
func (s *suite) watch(t *testing.T, id, dir string, write func()) string {
	t.Helper()
	ctx := testContext(t)
	var out buffer
	process, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"perl", "-e", watchScript, dir}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the directory is watched", func() bool { return strings.HasPrefix(out.String(), "watching\n") })
	write()
	s.sh(t, id, "touch "+dir+"/end; rm "+dir+"/end")
	if _, err := process.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	seen := strings.TrimSuffix(strings.TrimPrefix(out.String(), "watching\n"), "end\n")
	if left := s.sh(t, id, "ls -A /var/lib/atoll/new"); left != "" {
		t.Errorf("left where files are put together: %q", left)
	}
	return seen
}

// testUnwatched: who watches a directory sees the file that is written, complete,
// and no other name.
func testUnwatched(t *testing.T, s *suite) {
	id := s.create(t, nil)
	s.sh(t, id, "mkdir -m 2775 shared; chgrp 33 shared")
	if got := s.watch(t, id, "/workspace/shared", func() { s.write(t, id, "shared/mine", "1"); s.write(t, id, "shared/mine", "2") }); got != "mine\nmine\n" {
		t.Errorf("seen while a file was written twice: %q", got)
	}
	if got := s.sh(t, id, "cat shared/mine; stat -c ' %u %g %a' shared/mine"); got != "2 0 33 644\n" {
		t.Errorf("written: %q", got)
	}
	s.sh(t, id, "chown 12:34 shared/mine; chmod 4750 shared/mine")
	s.write(t, id, "shared/mine", "3")
	s.write(t, id, "/dev/shm/mine", "4") // another file system
	if got := s.sh(t, id, "cat shared/mine /dev/shm/mine; stat -c ' %u %g %a' shared/mine; ls -A shared /dev/shm"); got != "34 12 34 4750\n/dev/shm:\nmine\n\nshared:\nmine\n" {
		t.Errorf("written again: %q", got)
	}
}

func testTree(t *testing.T, s *suite) {
	id := s.create(t, nil)
	ctx := testContext(t)
	s.sh(t, id, "rm /etc/issue || rm /etc/debian_version; rm -rf /usr/share/doc; mkdir -p /usr/share/doc/mine; echo new > /usr/local/new; echo x >> /etc/profile; mkdir /workspace/d; (while :; do echo tick >> /workspace/ticks; done) >/dev/null 2>&1 &")
	// Much written right before the end must be complete.
	s.sh(t, id, "head -c 5000000 /dev/urandom > big; sha256sum big | cut -c1-64 > sum")
	tree, err := s.engine.Tree(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.engine.Tree(ctx, id); err != nil || again != tree {
		t.Errorf("second call: %q %v", again, err)
	}
	if data, err := os.ReadFile(filepath.Join(tree, "usr/local/new")); err != nil || string(data) != "new\n" {
		t.Errorf("new file: %q %v", data, err)
	}
	gone := filepath.Join(tree, "etc/issue")
	var stat syscall.Stat_t
	if err := syscall.Lstat(gone, &stat); err != nil || stat.Mode&syscall.S_IFMT != syscall.S_IFCHR || stat.Rdev != 0 {
		t.Errorf("deleted file is no whiteout: %+v %v", stat, err)
	}
	opaque := make([]byte, 8)
	n, err := syscall.Getxattr(filepath.Join(tree, "usr/share/doc"), "trusted.overlay.opaque", opaque)
	if err != nil || string(opaque[:n]) != "y" {
		t.Errorf("replaced directory is not opaque: %q %v", opaque[:max(n, 0)], err)
	}
	if info, err := os.Stat(filepath.Join(tree, "workspace/big")); err != nil || info.Size() != 5000000 {
		t.Errorf("big file: %v %v", info, err)
	}
	if entries, err := os.ReadDir(filepath.Join(tree, "tmp")); err == nil && len(entries) > 0 {
		t.Errorf("left in /tmp: %v", entries)
	}
	if info, err := s.engine.Inspect(ctx, id); err != nil || info.State != sandbox.StateStopped {
		t.Errorf("after Tree: %+v %v", info, err)
	}
	if _, err := s.engine.Exec(ctx, id, sandbox.Command{Args: []string{"true"}}); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("exec after Tree: %v", err)
	}
	before, err := os.ReadFile(filepath.Join(tree, "workspace/ticks"))
	if err != nil {
		t.Error(err)
	}
	if after, _ := os.ReadFile(filepath.Join(tree, "workspace/ticks")); !bytes.Equal(before, after) {
		t.Error("the tree still changes")
	}
	// The tree works as a layer of another sandbox.
	next := s.create(t, func(spec *sandbox.Spec) { spec.Layers = append(append([]string{}, s.layers...), tree) })
	if got := s.sh(t, next, "cat /usr/local/new; ls /usr/share/doc; test ! -e /etc/issue; cd /workspace; sha256sum big | cut -c1-64 | cmp - sum"); got != "new\nmine\n" {
		t.Errorf("on top of the tree: %q", got)
	}
}
