package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// Restore lets a hibernated sandbox go on.
func (e *Engine) Restore(ctx context.Context, id, netns string) error {
	return e.bringBack(ctx, id, func(ctx context.Context, p place, m meta) error {
		if !p.hibernated() {
			return sandbox.ErrNotRunning
		}
		return e.restore(ctx, id, p, m, netns)
	})
}

// Revive starts a stopped sandbox anew on its files.
func (e *Engine) Revive(ctx context.Context, id, netns string) error {
	return e.bringBack(ctx, id, func(ctx context.Context, p place, m meta) error {
		return e.revive(ctx, id, p, m, netns)
	})
}

// bringBack runs do for a sandbox that does not run and that has its files, and
// leaves nothing of it running when do fails.
func (e *Engine) bringBack(ctx context.Context, id string, do func(context.Context, place, meta) error) error {
	if checkID(id) != nil {
		return sandbox.ErrNotFound
	}
	unlock, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	p := e.place(id)
	switch {
	case !exists(p.dir):
		return sandbox.ErrNotFound
	case p.alive():
		return sandbox.ErrRunning
	case !e.hasFiles(p):
		return sandbox.ErrFilesLost
	}
	m, err := p.readMeta()
	if err != nil {
		return fmt.Errorf("opening sandbox: %w", err)
	}
	settled, err := e.admit(ctx, id, claim{tasks: HostTasks(m.Limits.Processes)})
	if err != nil {
		return err
	}
	defer settled()
	ctx = context.WithoutCancel(ctx)
	if err := e.halt(ctx, id); err != nil { // what a killed or dead one left
		return fmt.Errorf("clearing up for sandbox: %w", err)
	}
	if err := os.RemoveAll(p.panicLog()); err != nil { // of its former processes
		return fmt.Errorf("clearing up for sandbox: %w", err)
	}
	if err := do(ctx, p, m); err != nil {
		return errors.Join(withLastWords(err, p), e.halt(ctx, id), p.end())
	}
	return nil
}

// restore starts gVisor on the image and gives the image up once its processes
// go on: it must never be used twice, for the files change from there on.
func (e *Engine) restore(ctx context.Context, id string, p place, m meta, netns string) error {
	clock := newStopwatch()
	if version, err := os.ReadFile(filepath.Join(p.checkpoint(), "version")); err != nil || string(version) != gvisorVersion() {
		return fmt.Errorf("it was saved by another version: %w", sandbox.ErrCheckpoint)
	}
	spec, err := e.prepare(id, p, m, netns)
	if err != nil {
		return fmt.Errorf("restoring sandbox: %w", err)
	}
	c, conf, err := e.launch(p, spec, m, nil)
	if err != nil {
		return fmt.Errorf("restoring sandbox: %w", err)
	}
	clock.lap("gvisor_new")
	if err := p.begin(stepWaking); err != nil {
		return fmt.Errorf("restoring sandbox: %w", err)
	}
	if err := c.Restore(conf, p.checkpoint(), false, true, nil); err != nil {
		return fmt.Errorf("%w: %w", sandbox.ErrCheckpoint, err)
	}
	clock.lap("gvisor_restore")
	if err := os.Rename(p.checkpoint(), p.used()); err != nil {
		return fmt.Errorf("restoring sandbox: %w", err)
	}
	e.keep(id, &box{meta: m, conf: conf, sandbox: c.Sandbox})
	if err := errors.Join(p.end(), os.RemoveAll(p.used())); err != nil {
		e.log.ErrorContext(ctx, "clearing up after a restore", "sandbox", id, "error", err)
	}
	clock.lap("rest")
	e.log.DebugContext(ctx, "sandbox restored", "sandbox", id, clock.attr())
	return nil
}

// revive starts gVisor as Create does, on the mounts that are there.
func (e *Engine) revive(ctx context.Context, id string, p place, m meta, netns string) error {
	clock := newStopwatch()
	if err := p.begin(stepReviving); err != nil {
		return fmt.Errorf("reviving sandbox: %w", err)
	}
	err := errors.Join(os.RemoveAll(p.checkpoint()), os.RemoveAll(p.unfinished()), os.RemoveAll(p.used()))
	if err != nil {
		return fmt.Errorf("reviving sandbox: %w", err)
	}
	spec, err := e.prepare(id, p, m, netns)
	if err == nil {
		useGuest(spec, e.guest.Name())
		err = markTmp(p.root())
	}
	if err == nil {
		err = e.start(id, p, spec, m, clock)
	}
	if err == nil {
		err = p.end()
	}
	if err != nil {
		return fmt.Errorf("reviving sandbox: %w", err)
	}
	e.log.DebugContext(ctx, "sandbox revived", "sandbox", id, clock.attr())
	return nil
}

// markTmp puts the mark into /tmp that a start needs. The sandbox's programs may
// have made something else of /tmp; then it is theirs, whatever it is.
func markTmp(root string) error {
	place, err := openPlacer(root)
	if err != nil {
		return err
	}
	defer place.close()
	_ = place.write(tmpMark, nil, 0o600)
	return nil
}
