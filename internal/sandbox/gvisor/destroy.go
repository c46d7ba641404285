package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// stopTimeout bounds how long killed processes may take to go away.
const stopTimeout = 30 * time.Second

// Tree ends the sandbox's processes and returns its private directory, complete.
func (e *Engine) Tree(ctx context.Context, id string) (string, error) {
	if checkID(id) != nil {
		return "", sandbox.ErrNotFound
	}
	unlock, err := e.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	p := e.place(id)
	if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
		return "", sandbox.ErrNotFound
	}
	if err := e.quiesce(ctx, id); err != nil {
		return "", fmt.Errorf("reading tree: %w", err)
	}
	if err := e.stop(ctx, id); err != nil {
		return "", fmt.Errorf("reading tree: %w", err)
	}
	if err := unmount(p.root()); err != nil {
		return "", err
	}
	// What is not on the disk yet is in the page cache: whoever keeps it syncs the copy.
	return p.upper(), nil
}

// quiesce has the guest end all processes and write back what gVisor still
// holds of them. A sandbox that stopped before has nothing left to write.
func (e *Engine) quiesce(ctx context.Context, id string) error {
	process, err := e.guestCommand(ctx, id, []string{"quiesce"}, nil, nil)
	if err != nil {
		if errors.Is(err, sandbox.ErrNotRunning) {
			return nil
		}
		return err
	}
	exit, err := process.Wait(ctx)
	if err != nil && !errors.Is(err, sandbox.ErrNotRunning) {
		return err
	}
	if err == nil && exit.Code != 0 {
		return fmt.Errorf("writing files back: exit code %d", exit.Code)
	}
	return nil
}

// stop ends all processes of a sandbox.
func (e *Engine) stop(ctx context.Context, id string) error {
	e.forget(id)
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	return e.cgroups.kill(ctx, id)
}

// Destroy ends the sandbox and removes all it had. It goes on when ctx ends.
func (e *Engine) Destroy(ctx context.Context, id string) error {
	if checkID(id) != nil {
		return nil // no sandbox can have this name
	}
	ctx = context.WithoutCancel(ctx)
	unlock, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.destroy(ctx, id); err != nil {
		return fmt.Errorf("destroying sandbox: %w", err)
	}
	return nil
}

// destroy removes whatever there is of a sandbox. The directory goes last: as
// long as something is left, List shows it.
func (e *Engine) destroy(ctx context.Context, id string) error {
	p := e.place(id)
	if err := e.stop(ctx, id); err != nil {
		return err
	}
	if err := errors.Join(unmount(p.root()), unmount(p.disk())); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := e.cgroups.remove(ctx, id); err != nil {
		return err
	}
	// The mounts are gone, so nothing of other file systems is below.
	return errors.Join(os.RemoveAll(p.run), os.RemoveAll(p.dir))
}
