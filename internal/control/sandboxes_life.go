package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/atoll-run/atoll/internal/control/lifecycle"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// work does what a working state of a session's sandbox is for; it was in status
// was before.
func (s *Sandboxes) work(ctx context.Context, rec SessionRecord, was, now *lifecycle.Status) (lifecycle.Event, error) {
	switch now.State {
	case lifecycle.Starting:
		return s.start(ctx, rec, was)
	case lifecycle.Waking:
		return s.wake(ctx, rec, was)
	case lifecycle.GoingToSleep:
		return s.hibernate(ctx, rec.ID), nil
	}
	return s.end(ctx, rec.ID, was)
}

// start makes a sandbox in place of what may be left of another.
func (s *Sandboxes) start(ctx context.Context, rec SessionRecord, was *lifecycle.Status) (_ lifecycle.Event, err error) {
	if was.State == lifecycle.Lost || was.Cause != nil {
		err = s.remove(ctx, rec.ID)
	}
	if err == nil {
		err = s.prepare(ctx, rec)
	}
	if err == nil {
		return lifecycle.Runs, nil
	}
	s.logFailure(ctx, rec.ID, err)
	if fault, ok := AsFault(sandboxFault(ctx, err)); ok && fault.Code == CodeBuildFailed && ctx.Err() == nil {
		s.notify(rec, SandboxUnbuildable, fault.Message)
	}
	return lifecycle.Failed, err
}

func (s *Sandboxes) logFailure(ctx context.Context, session string, err error) {
	if ctx.Err() == nil && !errors.Is(err, errSessionGone) {
		s.log.ErrorContext(ctx, "session has no sandbox", "session_id", session, "error", err)
	}
}

// prepare makes the sandbox of a session, or nothing. The session's record is
// read again, because a command that read it before the session was deleted may
// get here afterwards; whoever deletes a record calls SessionEnded after it, so
// that a preparation which still saw the record is ended.
func (s *Sandboxes) prepare(ctx context.Context, rec SessionRecord) error {
	rec, err := s.store.Session(ctx, rec.Workspace, rec.ID)
	switch {
	case errors.Is(err, ErrNoRecord) || err == nil && !rec.ArchivedAt.IsZero():
		return errSessionGone
	case err != nil:
		return fmt.Errorf("reading the session: %w", err)
	}
	env, err := SessionConfig(rec)
	if err != nil {
		return err
	}
	root, release, err := s.builds.Root(ctx, rec.Environment, &env.CloudConfig)
	if err != nil {
		return err
	}
	defer release() // a mounted layer needs nobody to keep it
	leave, err := s.slot(ctx)
	if err != nil {
		return err
	}
	defer leave()
	netns, err := s.openNetwork(ctx, rec, env, root.Base)
	if err != nil {
		return err
	}
	err = s.engine.Create(ctx, s.spec(rec, root, netns))
	if err != nil {
		return errors.Join(
			fmt.Errorf("making the sandbox: %w", err),
			s.network.Close(context.WithoutCancel(ctx), rec.ID))
	}
	return nil
}

// slot waits until few enough sandboxes are being made at the same time.
func (s *Sandboxes) slot(ctx context.Context) (leave func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// spec is what a session's sandbox is made of.
func (s *Sandboxes) spec(rec SessionRecord, root Root, netns string) sandbox.Spec {
	return sandbox.Spec{
		ID: rec.ID, Hostname: "atoll", Layers: root.Dirs, Env: root.Base.Env,
		Dir:   "/workspace",
		Dirs:  []string{"/workspace", "/mnt/session/uploads", "/mnt/session/outputs"},
		Files: sandboxFiles("atoll"), Limits: s.limits, NetNS: netns,
		Labels: map[string]string{labelKind: kindSession, labelWorkspace: rec.Workspace},
	}
}

// wake brings a sandbox that hibernates or died back. Where that fails it is as
// it was, unless its files are lost.
func (s *Sandboxes) wake(ctx context.Context, rec SessionRecord, was *lifecycle.Status) (lifecycle.Event, error) {
	err := s.bringBack(ctx, rec, was)
	switch {
	case err == nil:
		return lifecycle.Runs, nil
	case errors.Is(err, sandbox.ErrFilesLost) && errors.Is(err, sandbox.ErrNotFound):
		return lifecycle.Vanished, endingRemoved
	case errors.Is(err, sandbox.ErrFilesLost):
		return lifecycle.Vanished, endingRestart
	}
	s.logFailure(ctx, rec.ID, err)
	if was.State == lifecycle.Asleep {
		return lifecycle.Sleeps, err
	}
	return lifecycle.Died, err
}

// bringBack wakes a hibernated sandbox or revives a dead one, in new namespaces:
// gVisor takes a namespace's addresses over and does not give them back.
// Processes that cannot be brought back are given up, files are not.
func (s *Sandboxes) bringBack(ctx context.Context, rec SessionRecord, was *lifecycle.Status) error {
	leave, err := s.slot(ctx)
	if err != nil {
		return err
	}
	defer leave()
	why := endingImage
	if was.State == lifecycle.Dead && !errors.As(was.Cause, &why) {
		why = s.died(ctx, rec.ID)
	}
	if info, err := s.engine.Inspect(ctx, rec.ID); err == nil && info.State == sandbox.StateRunning {
		return nil // it only seemed to be gone; its network is in use
	}
	if was.State == lifecycle.Asleep {
		err = s.connected(ctx, rec, s.engine.Restore)
		if errors.Is(err, sandbox.ErrCheckpoint) {
			s.log.WarnContext(ctx, "waking a sandbox failed, trying once more", "session_id", rec.ID, "error", err)
			err = s.connected(ctx, rec, s.engine.Restore)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, sandbox.ErrCheckpoint) && !errors.Is(err, sandbox.ErrNotRunning) {
			return fmt.Errorf("waking the sandbox: %w", err)
		}
		s.log.ErrorContext(ctx, "the processes of a hibernated sandbox cannot be brought back", "session_id", rec.ID, "error", err)
	}
	if err := s.connected(ctx, rec, s.engine.Revive); err != nil {
		return fmt.Errorf("starting the sandbox anew: %w", err)
	}
	s.log.InfoContext(ctx, "sandbox started anew on its files", "session_id", rec.ID)
	s.notify(rec, SandboxRemade, remadeWords(why))
	return nil
}

// connected runs start with fresh namespaces of the session's network.
func (s *Sandboxes) connected(ctx context.Context, rec SessionRecord, start func(ctx context.Context, id, netns string) error) error {
	if err := s.network.Suspend(ctx, rec.ID); err != nil && !errors.Is(err, egress.ErrNotFound) {
		return fmt.Errorf("taking the session's network down: %w", err)
	}
	netns, err := s.network.Resume(ctx, rec.ID)
	if err != nil {
		return fmt.Errorf("bringing the session's network back: %w", err)
	}
	err = start(ctx, rec.ID, netns)
	if errors.Is(err, sandbox.ErrNotFound) {
		return fmt.Errorf("%w: %w", sandbox.ErrFilesLost, err)
	}
	return err
}

// hibernate puts a sandbox aside, unless the engine finds it busy.
func (s *Sandboxes) hibernate(ctx context.Context, id string) lifecycle.Event {
	err := s.engine.Checkpoint(ctx, id)
	switch {
	case err == nil:
		// The network's connections end here; the sandbox's ends of them when it
		// is restored. Should this fail, waking makes up for it.
		if err := s.network.Suspend(context.WithoutCancel(ctx), id); err != nil && !errors.Is(err, egress.ErrNotFound) {
			s.log.ErrorContext(ctx, "taking a session's network down", "session_id", id, "error", err)
		}
		return lifecycle.Sleeps
	case errors.Is(err, sandbox.ErrNotRunning):
		return lifecycle.Died
	case errors.Is(err, sandbox.ErrNotFound), errors.Is(err, sandbox.ErrBusy):
		s.log.DebugContext(ctx, "sandbox does not hibernate", "session_id", id, "error", err)
	default:
		s.log.WarnContext(ctx, "sandbox does not hibernate", "session_id", id, "error", err)
	}
	return lifecycle.Runs // one that is gone is missed by its next use
}

// end removes all that the sandbox of an ended session had, or says what is left.
func (s *Sandboxes) end(ctx context.Context, id string, was *lifecycle.Status) (lifecycle.Event, error) {
	err := s.remove(ctx, id)
	if err == nil {
		return lifecycle.Removed, nil
	}
	fact, why := s.look(ctx, id)
	if fact == lifecycle.Vanished && (was.State == lifecycle.Absent || was.State == lifecycle.Starting) {
		return lifecycle.Failed, err // there was none to lose
	}
	return fact, errors.Join(err, why)
}

// remove frees all that a sandbox had: its processes first, so that nothing
// uses the network that goes with it.
func (s *Sandboxes) remove(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx)
	if err := s.engine.Destroy(ctx, id); err != nil {
		return fmt.Errorf("removing sandbox %s: %w", id, err)
	}
	if err := s.network.Close(ctx, id); err != nil {
		return fmt.Errorf("removing the network of %s: %w", id, err)
	}
	return nil
}

// look finds out what became of a sandbox, and why. One that the engine cannot
// tell anything of counts as running.
func (s *Sandboxes) look(ctx context.Context, id string) (fact lifecycle.Event, why error) {
	info, err := s.engine.Inspect(context.WithoutCancel(ctx), id)
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		return lifecycle.Vanished, endingRemoved
	case err != nil:
		s.log.ErrorContext(ctx, "looking for a sandbox", "session_id", id, "error", err)
		return lifecycle.Runs, nil
	case info.State == sandbox.StateRunning:
		return lifecycle.Runs, nil
	case info.State == sandbox.StateHibernated:
		return lifecycle.Sleeps, nil
	case info.Files:
		return lifecycle.Died, s.died(ctx, id)
	}
	return lifecycle.Vanished, endingRestart
}

// runs tells whether a sandbox that was awake runs. If not, what became of it is
// noted, unless its status has passed already.
func (s *Sandboxes) runs(ctx context.Context, rec SessionRecord, awake *lifecycle.Status) bool {
	fact, why := s.look(ctx, rec.ID)
	if fact == lifecycle.Runs {
		return true
	}
	m, release := s.hold(rec)
	defer release()
	m.Report(awake, fact, why)
	return false
}
