package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// needRoot skips tests that make file systems where that cannot be done; in CI it is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("needs root")
}

// logProgress sends stages to the test's log.
type logProgress struct{ t *testing.T }

func (l logProgress) Stage(name string) { l.t.Log(name) }
func (l logProgress) Percent(float64)   {}
func (l logProgress) Log(string)        {}

// TestSlim bootstraps slim for real, in the shared cache: other tests of the repository use it too.
func TestSlim(t *testing.T) {
	needRoot(t)
	ts, err := NewTemplates(TemplatesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), "slim", logProgress{t})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %d MB %v", b.Dir, b.SizeBytes>>20, b.Env)
}

// TestKilledBootstrap kills a process while dpkg installs: nothing of it goes on, and the next bootstrap downloads no
// package again.
func TestKilledBootstrap(t *testing.T) {
	needRoot(t)
	t.Parallel()
	cache := t.TempDir()
	d := Declaration{Name: "tiny", Debian: &Debian{Suite: "trixie", Variant: "essential"}}
	cmd, out := startChild(t, cache, d)
	eventually(t, "the packages are installed", func() error {
		if len(globDirs(filepath.Join(cache, "scratch", "*", "version", "rootfs", "var", "log", "dpkg.log"))) == 0 {
			return errNotYet
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	kept := map[string]os.FileInfo{}
	for _, name := range globDirs(filepath.Join(cache, "debs", "*.deb")) {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = st
	}
	if len(kept) == 0 {
		t.Fatalf("no downloads were kept:\n%s", out)
	}
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: []Declaration{d}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, was := range kept {
		if is, err := os.Stat(name); err != nil || !os.SameFile(was, is) {
			t.Errorf("downloaded again: %s, %v", name, err)
		}
	}
	if left := globDirs(filepath.Join(cache, "scratch", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || strings.Contains(string(mounts), cache) {
		t.Errorf("mounts are left: %v", err)
	}
	for _, gone := range []string{"etc/resolv.conf", "etc/hostname", "dev/null"} {
		if _, err := os.Lstat(filepath.Join(b.Dir, gone)); err == nil {
			t.Errorf("%s of this host is in the template", gone)
		}
	}
}
