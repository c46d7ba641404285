package durable_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/durable"
)

// TestWriteFile: content and mode are those asked for, whatever the umask and
// the file before, and nothing else is left in the directory.
func TestWriteFile(t *testing.T) {
	for name, crash := range map[string]durable.Crash{"process": durable.Process, "machine": durable.Machine} {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		for _, content := range []string{"a longer content", "short", ""} {
			if err := durable.WriteFile(path, []byte(content), 0o642, crash); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			info, statErr := os.Stat(path)
			if err != nil || statErr != nil || string(got) != content || info.Mode() != 0o642 {
				t.Errorf("%s: %q, mode %v: %v %v", name, got, info.Mode(), err, statErr)
			}
		}
		onlyFile(t, dir)
	}
}

func onlyFile(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "file" {
		t.Errorf("in the directory: %v %v", entries, err)
	}
}

// TestCreateFails: whatever fails, the old content stays and no other file does.
func TestCreateFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := durable.WriteFile(path, []byte("old"), 0o600, durable.Machine); err != nil {
		t.Fatal(err)
	}
	own := errors.New("own")
	for what, fill := range map[string]func(*os.File) error{
		"own error":     func(f *os.File) error { _, _ = f.WriteString("new"); return own },
		"closed by use": func(f *os.File) error { _, _ = f.WriteString("new"); return f.Close() },
	} {
		err := durable.Create(path, 0o600, durable.Machine, fill)
		if err == nil || what == "own error" && err != own {
			t.Errorf("%s: %v", what, err)
		}
		if got, err := os.ReadFile(path); string(got) != "old" {
			t.Errorf("%s: %q %v", what, got, err)
		}
		onlyFile(t, dir)
	}
	if err := durable.WriteFile(filepath.Join(dir, "none", "file"), nil, 0o600, durable.Process); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestKilledWriter kills a process that writes a file again and again: a reader
// finds one of the two contents, whole, at every moment.
func TestKilledWriter(t *testing.T) {
	if path := os.Getenv("DURABLE_WRITE"); path != "" {
		for i := 0; ; i++ {
			if err := durable.WriteFile(path, contents[i%2], 0o600, durable.Process); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "[a]*")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "file")
	for range 5 {
		writer := exec.Command(os.Args[0], "-test.run=TestKilledWriter")
		writer.Env = append(os.Environ(), "DURABLE_WRITE="+path)
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		for seen := map[int]bool{}; len(seen) < 2; {
			got, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil || string(got) != string(contents[0]) && string(got) != string(contents[1]) {
				t.Errorf("read %d bytes that nobody wrote whole: %v", len(got), err)
				break
			}
			seen[len(got)] = true
		}
		_ = writer.Process.Kill()
		_ = writer.Wait()
	}
	if err := durable.Sweep(dir); err != nil {
		t.Error(err)
	}
	onlyFile(t, dir)
	if err := durable.Sweep(filepath.Join(dir, "none")); err != nil {
		t.Errorf("no directory: %v", err)
	}
}

var contents = [2][]byte{[]byte(strings.Repeat("a", 1<<20)), []byte(strings.Repeat("b", 2<<20))}

// TestLock: one holder at a time, also among the opens of one process; who waits
// is told once, and gets it when it is free or its context's cause.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := durable.Lock(t.Context(), path, func() { t.Error("nobody has it") })
	if err != nil {
		t.Fatal(err)
	}
	waits, got := make(chan struct{}, 2), make(chan error, 1)
	go func() {
		f, err := durable.Lock(context.Background(), path, func() { waits <- struct{}{} })
		if err == nil {
			err = f.Close()
		}
		got <- err
	}()
	<-waits
	own := errors.New("own cause")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, own)
	defer cancel()
	if _, err := durable.Lock(ctx, path, nil); !errors.Is(err, own) {
		t.Errorf("an impatient one: %v", err)
	}
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if ok, err := durable.TryLock(other); ok || err != nil {
		t.Errorf("a second holder: %t %v", ok, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if len(waits) > 0 {
		t.Error("told twice")
	}
	if ok, err := durable.TryLock(other); !ok || err != nil {
		t.Errorf("a free lock: %t %v", ok, err)
	}
}
