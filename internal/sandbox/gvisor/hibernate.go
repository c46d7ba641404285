package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// What a sandbox is, is decided by what its directory holds, so that a kill at
// any moment leaves one answer:
//
//	checkpoint/  a complete image: the sandbox is hibernated. Whatever processes
//	             it still has stand still or never ran, and are to be killed.
//	step         a transition was begun: the next engine finishes or undoes it.
//
// A checkpoint stops all processes, writes the image under another name, renames
// it (from here on the sandbox is hibernated), and kills. A restore starts gVisor
// on the image and removes the image when the processes go on.
const (
	stepFreezing = "freezing" // processes stand still, or are about to
	stepWaking   = "waking"   // gVisor was told to restore, or is about to be
	stepReviving = "reviving" // gVisor is being started anew
)

func (p place) stepFile() string   { return filepath.Join(p.dir, "step") }
func (p place) checkpoint() string { return filepath.Join(p.dir, "checkpoint") }
func (p place) unfinished() string { return filepath.Join(p.dir, "checkpoint.new") }
func (p place) used() string       { return filepath.Join(p.dir, "checkpoint.used") }

func (p place) hibernated() bool { return exists(p.checkpoint()) }

// step returns the transition under way, or nothing.
func (p place) step() string {
	data, _ := os.ReadFile(p.stepFile())
	return string(data)
}

func (p place) begin(step string) error {
	if err := os.WriteFile(p.stepFile(), []byte(step), 0o600); err != nil {
		return fmt.Errorf("noting the step: %w", err)
	}
	return nil
}

func (p place) end() error {
	if err := os.Remove(p.stepFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("noting the step: %w", err)
	}
	return nil
}

// whyNot says why a sandbox that is there accepts no commands.
func (p place) whyNot() error {
	if p.hibernated() {
		return sandbox.ErrHibernated
	}
	return sandbox.ErrNotRunning
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// hasFiles tells whether the files of a sandbox that was complete once are
// there: the machine was not restarted and its mounts stand.
func (e *Engine) hasFiles(p place) bool {
	if !exists(p.ready()) {
		return false
	}
	m, err := p.readMeta()
	if err != nil || m.Boot != e.boot {
		return false
	}
	var mount unix.Statfs_t
	return unix.Statfs(p.root(), &mount) == nil && mount.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// halt ends a sandbox's processes and removes all that belongs to them: the
// directory and its mounts stay.
func (e *Engine) halt(ctx context.Context, id string) error {
	if err := e.stop(ctx, id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := e.cgroups.remove(ctx, id); err != nil {
		return err
	}
	return os.RemoveAll(e.place(id).run)
}

// prepare makes what gVisor's processes of an existing sandbox need, and returns
// the sandbox's description for the network namespace.
func (e *Engine) prepare(id string, p place, m meta, netns string) (*specs.Spec, error) {
	if (netns != "") != m.Network {
		return nil, errors.New("a sandbox with a network stays one, and one without too")
	}
	if err := e.cgroups.create(id, m.Limits); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.run, 0o700); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(p.spec())
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("reading the sandbox's description: %w", err)
	}
	for i := range spec.Linux.Namespaces {
		if spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = netns
		}
	}
	return &spec, nil
}

// gvisorVersion names what an image depends on: no other version reads it.
func gvisorVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == "gvisor.dev/gvisor" {
			return strings.Join([]string{dep.Version, dep.Sum, info.GoVersion}, " ")
		}
	}
	return ""
}

// users counts what uses a running sandbox through this engine. The zero value
// is a sandbox that nobody uses.
type users struct {
	mu     sync.Mutex
	count  int
	frozen bool
}

// enter adds a user, unless the sandbox is being put aside.
func (u *users) enter() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.frozen {
		return false
	}
	u.count++
	return true
}

func (u *users) leave() {
	u.mu.Lock()
	u.count--
	u.mu.Unlock()
}

// freeze refuses users from now on; it fails while there are some.
func (u *users) freeze() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count > 0 || u.frozen {
		return false
	}
	u.frozen = true
	return true
}

func (u *users) thaw() {
	u.mu.Lock()
	u.frozen = false
	u.mu.Unlock()
}
