package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/store"
)

// killedFirstStart names the data directory in which this process makes the
// first key, until it kills itself.
const killedFirstStart = "ATOLL_TEST_KILLED_FIRST_START"

// TestFirstKeySurvivesKill kills the first start between the key's file and the
// key itself. The next start makes it whole: the file has a key that works.
func TestFirstKeySurvivesKill(t *testing.T) {
	if dir := os.Getenv(killedFirstStart); dir != "" {
		db, service := openService(t, dir)
		defer db.Close()
		_, err := service.EnsureDefault(t.Context(), "", func(secret string) error {
			if err := leaveKey(filepath.Join(dir, defaultKeyFile), secret); err != nil {
				return err
			}
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		})
		t.Fatalf("not killed: %v", err)
	}
	dir := t.TempDir()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFirstKeySurvivesKill$")
	child.Env = append(os.Environ(), killedFirstStart+"="+dir)
	if out, err := child.CombinedOutput(); err == nil || child.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the first start was not killed: %v\n%s", err, out)
	}
	file := filepath.Join(dir, defaultKeyFile)
	orphan, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	db, service := openService(t, dir)
	defer db.Close()
	w := &wiring{cfg: Config{Data: dir}, log: slog.New(slog.DiscardHandler), service: service}
	for start := range 2 {
		if err := w.firstKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		secret, err := os.ReadFile(file)
		if err != nil || string(secret) == string(orphan) {
			t.Fatalf("start %d left %q, the killed one %q (%v)", start, secret, orphan, err)
		}
		if _, err := service.Authenticate(t.Context(), strings.TrimSpace(string(secret))); err != nil {
			t.Errorf("after start %d the key in the file is refused: %v", start, err)
		}
	}
	if _, err := service.Authenticate(t.Context(), strings.TrimSpace(string(orphan))); err == nil {
		t.Error("the key of the killed start works")
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".default*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func openService(t *testing.T, dir string) (*store.Store, *control.Service) {
	t.Helper()
	db, err := store.Open(context.Background(), store.Config{Path: filepath.Join(dir, databaseFile)})
	if err != nil {
		t.Fatal(err)
	}
	return db, control.New(control.Config{Store: db})
}
