package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/control"
)

// The test binary runs itself with these set, as a process to be killed.
const (
	childPath = "ATOLL_STORETEST_CHILD_DB"
	childFrom = "ATOLL_STORETEST_CHILD_FROM"
	// childSteps, when set, has it append to logs instead.
	childSteps = "ATOLL_STORETEST_CHILD_STEPS"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		writeForever(path, os.Getenv(childFrom))
		return
	}
	os.Exit(m.Run())
}

// writeForever writes environments from several goroutines and prints the
// number of each after its write was acknowledged.
func writeForever(path, from string) {
	s, err := Open(context.Background(), Config{Path: path})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(3)
	}
	if steps := os.Getenv(childSteps); steps != "" {
		appendForever(s, steps)
	}
	first, err := strconv.Atoi(from)
	if err != nil {
		fmt.Println("from:", err)
		os.Exit(3)
	}
	var out sync.Mutex
	for g := range 8 {
		go func() {
			for n := first + g; ; n += 8 {
				err := s.CreateEnvironment(context.Background(), record(n))
				out.Lock()
				if err != nil {
					fmt.Println("create:", err)
				} else {
					fmt.Println(n)
				}
				out.Unlock()
			}
		}()
	}
	select {}
}

func child(t *testing.T, path string, from int) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childPath+"="+path, childFrom+"="+strconv.Itoa(from))
	return cmd
}

func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/db"
	s := open(t, path)
	seedWorkspace(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var acked []int
	for round := range 4 {
		for _, line := range follow(t, child(t, path, round*1_000_000), 200+300*round) {
			n, err := strconv.Atoi(line)
			if err != nil {
				t.Fatalf("child: %s", line)
			}
			acked = append(acked, n)
		}
	}
	s = open(t, path)
	for _, n := range acked {
		if _, err := s.Environment(t.Context(), "w", record(n).ID); err != nil {
			t.Fatalf("%d of %d acknowledged: %v", n, len(acked), err)
		}
	}
	t.Logf("%d acknowledged writes survived", len(acked))
	check(t, s)
}

// follow runs a child until it has said so much, kills it, and answers all that
// it said.
func follow(t *testing.T, cmd *exec.Cmd, enough int) (said []string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if said = append(said, lines.Text()); len(said) == enough {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed
	return said
}

// check asks the database whether it is whole.
func check(t *testing.T, s *Store) {
	t.Helper()
	verdict, err := one(t.Context(), s.read, func(row scanner) (text string, err error) {
		err = row.Scan(&text)
		return text, err
	}, `PRAGMA integrity_check`)
	if err != nil || verdict != "ok" {
		t.Errorf("integrity: %s, error %v", verdict, err)
	}
}

func TestSecondOpenRefused(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/db"
	s := open(t, path)
	if _, err := Open(t.Context(), Config{Path: path}); !errors.Is(err, ErrLocked) {
		t.Errorf("in the same process: %v", err)
	}
	out, err := child(t, path, 0).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("another process: %v", err)
	}
	if want := fmt.Sprintf("database is in use by process %d", os.Getpid()); !strings.Contains(string(out), want) {
		t.Errorf("another process says %q, want %q in it", out, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestFailingCommit(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()+"/db")
	seedWorkspace(t, s)
	broken := errors.New("broken disk")
	failing := true
	// Held inside a first write, the loop finds the others waiting as one group.
	s.writes.failCommit = func() error {
		if failing {
			return broken
		}
		return nil
	}
	errs := group(t, s, 9, func(n int) error { return s.CreateEnvironment(t.Context(), record(n)) })
	for n, err := range errs {
		if !errors.Is(err, broken) {
			t.Errorf("write %d: %v", n, err)
		}
	}
	all, _, err := s.ListEnvironments(t.Context(), "w", true, control.Page{Limit: 100})
	if err != nil || len(all) != 0 {
		t.Errorf("%d environments after a failed commit, error %v", len(all), err)
	}
	failing = false
	if err := s.CreateEnvironment(t.Context(), record(1)); err != nil {
		t.Errorf("after the failure: %v", err)
	}
}

// group runs do n times so that all of them share a transaction: a first write
// keeps the loop busy until they wait.
func group(t *testing.T, s *Store, n int, do func(n int) error) []error {
	t.Helper()
	inside, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		own := errors.New("nothing to write")
		err := s.writes.write(context.Background(), func(*statements) error {
			close(inside)
			<-leave
			return own
		})
		if !errors.Is(err, own) {
			t.Errorf("the write that holds the loop: %v", err)
		}
	})
	<-inside
	errs := make([]error, n)
	var begun sync.WaitGroup
	begun.Add(n)
	for i := range n {
		wg.Go(func() {
			begun.Done()
			errs[i] = do(i)
		})
	}
	begun.Wait()
	close(leave)
	wg.Wait()
	return errs
}

func TestRefusalLeavesTheGroupAlone(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()+"/db")
	seedWorkspace(t, s)
	own := errors.New("own")
	for round := range 20 { // how the group forms is up to the scheduler
		errs := group(t, s, 12, func(n int) error {
			return s.writes.write(t.Context(), func(tx *statements) error {
				rec := record(round*100 + n)
				_, err := tx.exec(context.Background(), `INSERT INTO environments (id, workspace_id, name, document, created_at, updated_at) VALUES ($1, 'w', $1, '{}', 1, 1)`, rec.ID)
				if n%3 == 0 {
					return own // after it has written
				}
				return err
			})
		})
		for n, err := range errs {
			_, found := s.Environment(t.Context(), "w", record(round*100+n).ID)
			if refused := n%3 == 0; refused != errors.Is(err, own) || refused != errors.Is(found, control.ErrNoRecord) {
				t.Fatalf("round %d write %d: answered %v, found %v", round, n, err, found)
			}
		}
	}
}

func TestPanicFailsItsGroup(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()+"/db")
	seedWorkspace(t, s)
	if err := s.CreateEnvironment(t.Context(), record(0)); err != nil {
		t.Fatal(err)
	}
	_, err := s.UpdateEnvironment(t.Context(), "w", record(0).ID, func(*control.EnvironmentRecord) (bool, error) { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("panic: %v", err)
	}
	_, err = s.UpdateEnvironment(t.Context(), "w", record(0).ID, func(*control.EnvironmentRecord) (bool, error) {
		return true, s.CreateEnvironment(t.Context(), record(1))
	})
	if err == nil || !strings.Contains(err.Error(), "a write inside a write") {
		t.Errorf("nested write: %v", err)
	}
	if err := s.CreateEnvironment(t.Context(), record(2)); err != nil {
		t.Errorf("after the panics: %v", err)
	}
}

func TestReadersCannotWrite(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir()+"/db")
	if _, err := s.reads.ExecContext(t.Context(), `DELETE FROM environments`); err == nil {
		t.Error("a reader wrote")
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("ATOLL_CI") != "" {
			t.Fatal("needs root to mount a small file system")
		}
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, filepath.Join(dir, "db"))
	seedWorkspace(t, s)
	var mu sync.Mutex
	var acked []int
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := g; n < 100_000; n += 8 {
				err := s.CreateEnvironment(t.Context(), record(n))
				if err != nil {
					if fault, ok := control.AsFault(err); !ok || fault.Kind != control.Unavailable || fault.Cause == nil {
						t.Errorf("writer %d at %d is refused with %v, which says nothing of the disk", g, n, err)
					}
					return
				}
				mu.Lock()
				acked = append(acked, n)
				mu.Unlock()
			}
			t.Errorf("writer %d never met the full disk", g)
		})
	}
	wg.Wait()
	kept := func() {
		t.Helper()
		for _, n := range acked {
			if _, err := s.Environment(t.Context(), "w", record(n).ID); err != nil {
				t.Fatalf("%d of %d acknowledged: %v", n, len(acked), err)
			}
		}
	}
	kept()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	for n := 200_000; n < 200_050; n++ {
		if err := s.CreateEnvironment(t.Context(), record(n)); err != nil {
			t.Fatalf("with room again: %v", err)
		}
		acked = append(acked, n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, filepath.Join(dir, "db"))
	kept()
	check(t, s)
	if err := s.Close(); err != nil { // before the unmount
		t.Error(err)
	}
}
