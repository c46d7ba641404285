package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prunedAt names the store that this process cleans up, and after how many
// layers it kills itself.
const prunedAt = "ATOLL_TEST_KILLED_PRUNE"

// TestPruneSurvivesKill kills a process in the middle of a clean-up, between
// making a layer vanish and deleting it. The next process finds every layer
// whole with all that it stands on, and cleans up the rest.
func TestPruneSurvivesKill(t *testing.T) {
	if env := os.Getenv(prunedAt); env != "" {
		dir, number, _ := strings.Cut(env, "\x1f")
		n, err := strconv.Atoi(number)
		must(t, err)
		pruneAndDie(t, dir, n)
		return
	}
	t.Parallel()
	// Two chains of three layers with one root.
	parents := map[string]string{"root": "", "a1": "root", "a2": "a1", "a3": "a2", "b1": "root", "b2": "b1", "b3": "b2"}
	for killed := 1; killed <= len(parents); killed++ {
		dir := t.TempDir()
		s, err := OpenStore(dir)
		must(t, err)
		upper := t.TempDir()
		write(t, filepath.Join(upper, "usr/x"), "x", 0o644)
		for _, name := range []string{"root", "a1", "a2", "a3", "b1", "b2", "b3"} {
			l := &Layer{Key: hashFields(name), Family: name, CreatedAt: time.Now()}
			if parents[name] != "" {
				l.Parent = hashFields(parents[name])
			}
			must(t, s.commit(t.Context(), l, upper, nil, nil))
		}
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPruneSurvivesKill$")
		child.Env = append(os.Environ(), fmt.Sprintf("%s=%s\x1f%d", prunedAt, dir, killed))
		out, err := child.CombinedOutput()
		if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("the process was not killed: %v\n%s", err, out)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, trashName)); len(left) != 1 {
			t.Errorf("%d: the kill left %v in the trash, want the layer that was being deleted", killed, left)
		}
		s, err = OpenStore(dir)
		must(t, err)
		if left, _ := os.ReadDir(filepath.Join(dir, trashName)); len(left) > 0 {
			t.Errorf("%d: the trash still has %v", killed, left)
		}
		there := 0
		for name, parent := range parents {
			if _, err := s.Layer(hashFields(name)); errors.Is(err, ErrNoLayer) {
				continue
			}
			there++
			if parent == "" {
				continue
			}
			if _, err := s.Layer(hashFields(parent)); err != nil {
				t.Errorf("%d: %s is there and what it stands on is not: %v", killed, name, err)
			}
		}
		if there != len(parents)-killed {
			t.Errorf("killed after %d of %d layers: %d are there", killed, len(parents), there)
		}
		if checked, err := VerifyLayers(t.Context(), dir); err != nil || checked.Layers != there || len(checked.Damaged) > 0 {
			t.Errorf("%d: verified %+v, %v", killed, checked, err)
		}
		if gone, err := s.Prune(t.Context(), unused, 0); err != nil || len(gone.Keys) != there {
			t.Errorf("%d: the next clean-up removed %d of %d, %v", killed, len(gone.Keys), there, err)
		}
	}
}

func unused() (map[string]bool, error) { return nil, nil }

// pruneAndDie is the process that is killed.
func pruneAndDie(t *testing.T, dir string, after int) {
	s, err := OpenStore(dir)
	must(t, err)
	s.atStep = func(at string) {
		if at == stepTrashed {
			if after--; after == 0 {
				must(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
				select {}
			}
		}
	}
	_, err = s.Prune(context.Background(), unused, 0)
	t.Fatalf("the clean-up went on: %v", err)
}
