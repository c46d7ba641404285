package sandboxtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// NeedRoot skips a test that makes real sandboxes where that is impossible;
// with ATOLL_CI set it fails instead, so that CI cannot skip silently.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// Rootfs returns a small Debian root file system with a shell, coreutils and
// Python: ATOLL_TEST_ROOTFS when set, else one that is made once per user with
// mmdebstrap from the host's own package sources and kept in the cache. It is
// shared: never write to it. Safe for tests of several packages at once.
func Rootfs(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	if dir := os.Getenv("ATOLL_TEST_ROOTFS"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = filepath.Join(os.TempDir(), "cache")
	}
	parent := filepath.Join(cache, "atoll-test")
	dir := filepath.Join(parent, "rootfs-1")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		if os.Getenv("ATOLL_CI") != "" {
			t.Fatal("needs mmdebstrap, or ATOLL_TEST_ROOTFS")
		}
		t.Skip("needs mmdebstrap, or ATOLL_TEST_ROOTFS")
	}
	temp := dir + ".tmp"
	if err := os.RemoveAll(temp); err != nil {
		t.Fatal(err)
	}
	t.Log("making the test root file system, once")
	release, mirrors := hostSources()
	args := append([]string{"--quiet", "--variant=essential", "--include=python3-minimal,procps", release, temp}, mirrors...)
	if out, err := exec.Command("mmdebstrap", args...).CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	if err := os.Rename(temp, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// hostSources is the host's own release and the distribution's package sources
// as mmdebstrap takes them; other vendors' sources need not fit.
func hostSources() (release string, sources []string) {
	release = "stable"
	if out, err := exec.Command("sh", "-c", `. /etc/os-release; printf %s "$VERSION_CODENAME"`).Output(); err == nil && len(out) > 0 {
		release = string(out)
	}
	for _, path := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list.d/ubuntu.sources"} {
		if info, err := os.Stat(path); err == nil && info.Size() > 0 {
			sources = append(sources, path)
		}
	}
	return release, sources
}
