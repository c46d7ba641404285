package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// cached returns the path of a thing in the cache directory, making it first
// if it is not there. make gets a path beside it to make it at; only when that
// succeeds does the thing get its name. Other processes wait meanwhile.
func cached(t *testing.T, name string, make func(path string) error) (string, error) {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	base = filepath.Join(base, "atoll-test")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(base, name)
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	making := path + ".making"
	if err := os.RemoveAll(making); err != nil {
		t.Fatal(err)
	}
	if err := make(making); err != nil {
		return "", err
	}
	return path, os.Rename(making, path)
}

// tool is a command of a client's own tooling, without this machine's settings
// for the real service.
func tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	for _, v := range os.Environ() {
		if len(v) < 10 || v[:10] != "ANTHROPIC_" {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}
