package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/state/statefile"
	gvsandbox "gvisor.dev/gvisor/runsc/sandbox"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// Checkpoint saves a running sandbox to disk and frees its memory and processes.
func (e *Engine) Checkpoint(ctx context.Context, id string) error {
	if checkID(id) != nil {
		return sandbox.ErrNotFound
	}
	unlock, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := e.open(id)
	if errors.Is(err, sandbox.ErrHibernated) {
		return nil
	}
	if err != nil {
		return err
	}
	if !b.users.freeze() {
		return sandbox.ErrBusy
	}
	if err := e.checkpoint(context.WithoutCancel(ctx), id, b); err != nil {
		b.users.thaw()
		if gone := e.gone(id); gone != nil {
			return gone
		}
		return fmt.Errorf("saving sandbox: %w", err)
	}
	return nil
}

// checkpoint saves a sandbox that nobody uses. On an error it goes on, if it can.
func (e *Engine) checkpoint(ctx context.Context, id string, b *box) error {
	p := e.place(id)
	if err := e.roomForImage(id); err != nil {
		return err
	}
	if err := p.newImage(); err != nil {
		return err
	}
	if err := p.begin(stepFreezing); err != nil {
		return err
	}
	if err := b.sandbox.Pause(containerID); err != nil {
		return errors.Join(err, p.end())
	}
	// Resume: when the image is written gVisor stays there with its processes
	// stopped once, by the call above. It ends when the image has its name, and
	// not by itself: then nobody could tell a complete image from half of one.
	err := b.sandbox.Checkpoint(b.conf, containerID, p.unfinished(), gvsandbox.CheckpointOpts{
		Compression: statefile.CompressionLevelNone, Resume: true, ExcludeCommittedZeroPages: true,
	})
	if err == nil {
		err = adopt(ctx, p.unfinished())
	}
	if err == nil {
		err = os.Rename(p.unfinished(), p.checkpoint())
	}
	if err != nil {
		return errors.Join(err, b.sandbox.Resume(containerID), p.end(), os.RemoveAll(p.unfinished()))
	}
	// It is hibernated. What cannot be freed now is freed by the next to come.
	if err := e.halt(ctx, id); err != nil {
		e.log.ErrorContext(ctx, "ending a saved sandbox", "sandbox", id, "error", err)
		return nil
	}
	return p.end()
}

// newImage makes an empty directory for an image.
func (p place) newImage() error {
	if err := os.RemoveAll(p.unfinished()); err != nil {
		return err
	}
	if err := os.Mkdir(p.unfinished(), 0o700); err != nil {
		return err
	}
	// An image of another gVisor is not even tried.
	return os.WriteFile(filepath.Join(p.unfinished(), "version"), []byte(gvisorVersion()), 0o600)
}

// roomForImage answers ErrCapacity when the disk cannot take a sandbox's memory.
func (e *Engine) roomForImage(id string) error {
	memory, _, err := e.cgroups.usage(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(e.config.Dir, &disk); err != nil {
		return err
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < e.config.MinFreeBytes+memory {
		return fmt.Errorf("%d MiB of disk left for %d MiB of memory: %w", free>>20, memory>>20, sandbox.ErrCapacity)
	}
	return nil
}
