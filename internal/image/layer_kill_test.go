package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// killedAt names the step of a commit at which this process kills itself, and
// the directories of the store and of what it commits.
const killedAt = "ATOLL_TEST_KILLED_COMMIT"

// stepCopying is told by the test itself, in the middle of the copy.
const stepCopying = "copying"

var commitSteps = [...]string{stepBegun, stepCopying, stepCopied, stepLog, stepManifest, stepFlushed, stepRenamed, stepSynced}

// TestCommitSurvivesKill kills a process at each step of a commit. What the next
// process finds is the whole layer or none, and then it makes the same.
func TestCommitSurvivesKill(t *testing.T) {
	needRoot(t)
	if env := os.Getenv(killedAt); env != "" {
		f := strings.Split(env, "\x1f")
		commitAndDie(t, f[0], f[1], f[2], f[3])
		return
	}
	upper, lower := upperTree(t)
	whole, err := OpenStore(t.TempDir())
	must(t, err)
	undisturbed := killedLayer()
	must(t, whole.commit(t.Context(), undisturbed, upper, []string{lower}, []byte("log")))
	want := describe(t, undisturbed.Dir)
	for _, step := range commitSteps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCommitSurvivesKill$")
			child.Env = append(os.Environ(), killedAt+"="+strings.Join([]string{step, dir, upper, lower}, "\x1f"))
			out, err := child.CombinedOutput()
			if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the process was not killed: %v\n%s", err, out)
			}
			s, err := OpenStore(dir)
			must(t, err)
			for _, name := range []string{scratchName, trashName} {
				if left, _ := os.ReadDir(filepath.Join(dir, name)); len(left) > 0 {
					t.Errorf("%s still has %v", name, left)
				}
			}
			l, err := s.Layer(undisturbed.Key)
			renamed := step == stepRenamed || step == stepSynced
			if renamed != (err == nil) || err != nil && !errors.Is(err, ErrNoLayer) {
				t.Fatalf("the layer after the kill: %v", err)
			}
			if err != nil {
				if found := s.newest("f"); found != nil {
					t.Errorf("something counts as a layer: %+v", found)
				}
				l = killedLayer()
				must(t, s.commit(t.Context(), l, upper, []string{lower}, []byte("log")))
			}
			if l.Digest != undisturbed.Digest || l.LogDigest != undisturbed.LogDigest || l.Files != undisturbed.Files {
				t.Errorf("the layer is %+v, undisturbed %+v", l, undisturbed)
			}
			if diff := cmp.Diff(want, describe(t, l.Dir)); diff != "" {
				t.Errorf("the layer differs from an undisturbed one (-undisturbed +killed):\n%s", diff)
			}
			checked, err := VerifyLayers(t.Context(), dir)
			if err != nil || checked.Layers != 1 || len(checked.Damaged) > 0 {
				t.Errorf("verified: %+v, %v", checked, err)
			}
		})
	}
}

func killedLayer() *Layer {
	return &Layer{Key: strings.Repeat("d", 64), Family: "f", Manager: "pip", CreatedAt: time.Unix(1_700_000_000, 0).UTC(),
		Versions: []PackageVersion{{Name: "tool", Version: "1"}}}
}

// commitAndDie is the process that is killed.
func commitAndDie(t *testing.T, step, dir, upper, lower string) {
	s, err := OpenStore(dir)
	must(t, err)
	s.atStep = func(at string) {
		if at == step {
			must(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
			select {}
		}
	}
	if step == stepCopying {
		files := 0
		err = s.commit(dying{context.Background(), func() {
			if files++; files == 6 {
				s.atStep(stepCopying)
			}
		}}, killedLayer(), upper, []string{lower}, []byte("log"))
	} else {
		err = s.commit(t.Context(), killedLayer(), upper, []string{lower}, []byte("log"))
	}
	t.Fatalf("the commit went on: %v", err)
}

// dying is a context that notes each time it is asked whether it has ended.
type dying struct {
	context.Context
	asked func()
}

func (d dying) Err() error { d.asked(); return d.Context.Err() }

// describe tells all of a tree but times.
func describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		attrs, err := xattrs(path)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%o %d:%d %d %d %q", st.Mode, st.Uid, st.Gid, st.Rdev, st.Nlink, attrs)
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		} else if e.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %x", sha256.Sum256(content))
		}
		rel, err := filepath.Rel(dir, path)
		out[rel] = text
		return err
	}))
	return out
}
