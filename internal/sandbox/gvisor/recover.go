package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gvisor.dev/gvisor/runsc/boot"
)

// recoverTimeout bounds how long a sandbox may take to finish what the killed
// engine had asked it for: writing or reading all its memory.
const recoverTimeout = 60 * time.Second

// probeTime is how long a gVisor that was told something may show no sign of it.
const probeTime = 3 * time.Second

// recover finishes or undoes what a killed engine was just doing. A sandbox with
// which that fails is left stopped, and its files are there.
func (e *Engine) recover() error {
	entries, err := os.ReadDir(filepath.Join(e.config.Dir, "sandboxes"))
	if err != nil {
		return fmt.Errorf("listing sandboxes: %w", err)
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, entry := range entries {
		p := e.place(entry.Name())
		step := p.step()
		if step == "" {
			continue
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), recoverTimeout)
			defer cancel()
			err := e.recoverOne(ctx, entry.Name(), p, step)
			e.log.Info("took up a sandbox where the server had ended", "sandbox", entry.Name(), "step", step, "error", err)
			if err != nil {
				err = e.halt(context.WithoutCancel(ctx), entry.Name())
			}
			if err := errors.Join(err, p.end()); err != nil {
				e.log.Error("ending a sandbox", "sandbox", entry.Name(), "error", err)
			}
		})
	}
	return nil
}

func (e *Engine) recoverOne(ctx context.Context, id string, p place, step string) error {
	switch {
	case step == stepReviving:
		// Started or not: nobody has used it, so it stops.
		return e.halt(ctx, id)
	case step == stepFreezing && p.hibernated():
		return e.halt(ctx, id)
	case step == stepFreezing:
		return errors.Join(e.unfreeze(ctx, id, p), os.RemoveAll(p.unfinished()))
	case step == stepWaking && p.hibernated():
		return e.finishWaking(ctx, id, p)
	}
	return os.RemoveAll(p.used()) // it went on before the engine was killed
}

// unfreeze lets a sandbox go on whose checkpoint was not finished. Whether its
// processes were stopped already nobody has noted, and gVisor ends when it is
// told to continue what runs; so a command is tried first.
func (e *Engine) unfreeze(ctx context.Context, id string, p place) error {
	if !p.listens() {
		return nil // it died: stopped
	}
	b, err := e.open(id)
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() { // the call blocks while gVisor still writes the image
		process, err := e.guestCommand(ctx, id, []string{"nothing"}, nil, nil)
		if err == nil {
			_, err = process.Wait(ctx)
		}
		started <- err
	}()
	select {
	case err := <-started:
		return err
	case <-time.After(probeTime):
	}
	if err := b.sandbox.Resume(containerID); err != nil {
		return err
	}
	select {
	case err := <-started:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finishWaking looks what became of a restore. A sandbox that goes on is
// running. One that was never told to restore still is hibernated. One that
// died may have changed its files by then, so its image is worth nothing.
func (e *Engine) finishWaking(ctx context.Context, id string, p place) error {
	if !p.listens() {
		return errors.Join(e.halt(ctx, id), os.RemoveAll(p.checkpoint()))
	}
	c, err := p.load()
	if err != nil {
		return err
	}
	begin := time.Now()
	for {
		state, err := c.ContainerRuntimeState(containerID)
		switch {
		case err != nil:
			return errors.Join(err, e.halt(ctx, id), os.RemoveAll(p.checkpoint()))
		case state == boot.RuntimeStateRunning:
			if err := os.Rename(p.checkpoint(), p.used()); err != nil {
				return err
			}
			return os.RemoveAll(p.used())
		case state == boot.RuntimeStateCreating && time.Since(begin) > probeTime:
			return e.halt(ctx, id)
		case state == boot.RuntimeStateStopped:
			return e.halt(ctx, id)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}
