package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// SandboxEvent is what happened to a session's sandbox by itself.
type SandboxEvent string

// What can happen to a sandbox.
const (
	// SandboxRemade: its processes ended (out of memory, say, or they could not be
	// brought back from hibernation) and it was started anew on its files.
	SandboxRemade SandboxEvent = "remade"
	// SandboxLost: its files are lost, mostly with a restart of the machine, and a
	// fresh sandbox takes its place.
	SandboxLost SandboxEvent = "lost"
	// SandboxCutOff: its network is broken, and is not mended while it runs.
	SandboxCutOff SandboxEvent = "cut off"
	// SandboxUnbuildable: there is none, because the environment's packages could
	// not be installed.
	SandboxUnbuildable SandboxEvent = "unbuildable"
)

// words of the events that carry none of their own, for the session's log.
var sandboxWords = map[SandboxEvent]string{
	SandboxCutOff: "The session's sandbox has no network any more, because it was taken apart or damaged on the server's machine: it reaches nothing. Its files and processes are there.",
}

// entry is one session's sandbox as far as this server knows it, and the newest
// attempt to make it or bring it back.
type entry struct {
	attempt attempt
	cancel  context.CancelFunc // ends the attempt
	done    chan struct{}      // closed when the attempt ended
	err     error              // why it failed; read after done

	// The rest is guarded by Sandboxes.mu; condition holds once done is closed
	// and err is nil.
	condition condition
	ending    ending        // why, with conditionLost
	over      error         // what users are told once the session has ended; nil before
	asleep    chan struct{} // closed when the hibernation under way has ended; nil without one
	life      *life
}

// attempt is a way to get a running sandbox.
type attempt int

const (
	attemptMake   attempt = iota // a new one, in place of what is left of another
	attemptWake                  // from hibernation
	attemptRevive                // a dead one, on its files
)

// condition is what a session's sandbox is in, between attempts.
type condition int

const (
	conditionRunning    condition = iota
	conditionHibernated           // wakes for the next use
	conditionEnded                // died, its files are there: revived for the next use
	conditionLost                 // gone with its files, and nobody was told yet
)

// isOver tells whether the attempt has ended.
func (e *entry) isOver() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// life counts who uses a session's sandbox, across attempts. Its methods may be
// called at the same time.
type life struct {
	mu    sync.Mutex
	users int
	since time.Time // since when nobody uses it
}

func newLife() *life { return &life{since: time.Now()} }

// enter adds a user; release may be called more than once.
func (l *life) enter() (release func()) {
	l.mu.Lock()
	l.users++
	l.mu.Unlock()
	return sync.OnceFunc(l.leave)
}

func (l *life) leave() {
	l.mu.Lock()
	l.users--
	l.since = time.Now()
	l.mu.Unlock()
}

// touch begins the idle time anew.
func (l *life) touch() {
	l.mu.Lock()
	l.since = time.Now()
	l.mu.Unlock()
}

// idle tells since when nobody uses the sandbox; the zero time while somebody does.
func (l *life) idle() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users > 0 {
		return time.Time{}
	}
	return l.since
}

// enter returns the session's sandbox running and in use, until life.leave. It
// wakes a hibernated one and revives a dead one; all who wait share that. An
// attempt that fails is made again by the next to come, not by those who waited,
// unless the environment's packages could not be installed: that is tried by the
// next session or update.
func (s *Sandboxes) enter(ctx context.Context, rec SessionRecord) (*entry, error) {
	for {
		s.mu.Lock()
		e := s.current(rec)
		wait := e.done
		if e.isOver() {
			switch {
			case e.over != nil, e.err != nil:
				s.mu.Unlock()
				return nil, s.failure(ctx, e)
			case e.asleep != nil:
				wait = e.asleep
			case e.condition == conditionLost:
				s.mu.Unlock()
				return nil, s.ended(ctx, rec, e)
			default:
				e.life.enter()
				s.mu.Unlock()
				return e, nil
			}
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if wait == e.done && e.err != nil {
			return nil, s.failure(ctx, e)
		}
	}
}

// current returns the session's entry and begins the attempt that it calls for.
// The caller holds mu.
func (s *Sandboxes) current(rec SessionRecord) *entry {
	e := s.entries[rec.ID]
	switch {
	case e == nil:
		return s.begin(rec, attemptMake)
	case !e.isOver() || e.asleep != nil || e.over != nil:
		return e
	case e.err != nil && !s.stillFailing(rec, e.err):
		return s.begin(rec, e.attempt)
	case e.err == nil && e.condition == conditionHibernated:
		return s.begin(rec, attemptWake)
	case e.err == nil && e.condition == conditionEnded:
		return s.begin(rec, attemptRevive)
	}
	return e
}

// begin makes an attempt at a session's sandbox, in place of the former entry.
// The caller holds mu.
func (s *Sandboxes) begin(rec SessionRecord, how attempt) *entry {
	former := s.entries[rec.ID]
	ctx, cancel := context.WithCancel(s.ctx)
	e := &entry{attempt: how, cancel: cancel, done: make(chan struct{}), life: newLife()}
	if former != nil {
		e.life = former.life
	}
	s.entries[rec.ID] = e
	s.work.Go(func() {
		defer close(e.done)
		defer cancel()
		switch {
		case how != attemptMake:
			e.err = s.bringBack(ctx, rec, how)
		case former != nil:
			if e.err = s.remove(ctx, rec.ID); e.err == nil {
				e.err = s.prepare(ctx, rec)
			}
		default:
			e.err = s.prepare(ctx, rec)
		}
		e.life.touch()
		switch {
		case errors.Is(e.err, errSessionGone):
			s.forget(rec.ID, e)
		case errors.Is(e.err, sandbox.ErrFilesLost):
			ending := endingRestart
			if errors.Is(e.err, sandbox.ErrNotFound) {
				ending = endingRemoved
			}
			e.err, e.condition, e.ending = nil, conditionLost, ending // before done: nobody reads it yet
		case e.err != nil && ctx.Err() == nil:
			s.log.ErrorContext(ctx, "session has no sandbox", "session_id", rec.ID, "error", e.err)
			if fault, ok := AsFault(sandboxFault(ctx, e.err)); ok && fault.Code == CodeBuildFailed {
				s.notify(rec, SandboxUnbuildable, fault.Message)
			}
		}
	})
	return e
}

// bringBack wakes a hibernated sandbox or revives a dead one, in new namespaces:
// gVisor takes a namespace's addresses over and does not give them back.
// Processes that cannot be brought back are given up, files are not.
func (s *Sandboxes) bringBack(ctx context.Context, rec SessionRecord, how attempt) error {
	leave, err := s.slot(ctx)
	if err != nil {
		return err
	}
	defer leave()
	start := time.Now()
	why := endingImage
	if how == attemptRevive {
		why = s.died(ctx, rec.ID)
	}
	if info, err := s.engine.Inspect(ctx, rec.ID); err == nil && info.State == sandbox.StateRunning {
		return nil // it only seemed to be gone; its network is in use
	}
	if how == attemptWake {
		err = s.connected(ctx, rec, s.engine.Restore)
		if errors.Is(err, sandbox.ErrCheckpoint) {
			s.log.WarnContext(ctx, "waking a sandbox failed, trying once more", "session_id", rec.ID, "error", err)
			err = s.connected(ctx, rec, s.engine.Restore)
		}
		if err == nil {
			s.log.DebugContext(ctx, "sandbox woken", "session_id", rec.ID, "took", time.Since(start))
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
	s.log.InfoContext(ctx, "sandbox started anew on its files", "session_id", rec.ID, "took", time.Since(start))
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

// runs tells whether a sandbox that should run does, and notes it if not.
func (s *Sandboxes) runs(ctx context.Context, rec SessionRecord, e *entry) bool {
	info, err := s.engine.Inspect(ctx, rec.ID)
	if err == nil && info.State == sandbox.StateRunning {
		return true
	}
	s.note(rec, e, info, err)
	return false
}

// notice looks what became of a sandbox that does not answer.
func (s *Sandboxes) notice(ctx context.Context, rec SessionRecord, e *entry) condition {
	info, err := s.engine.Inspect(ctx, rec.ID)
	return s.note(rec, e, info, err)
}

// note sets an entry's condition to what the engine says of its sandbox.
func (s *Sandboxes) note(rec SessionRecord, e *entry, info sandbox.Info, err error) condition {
	now := conditionLost
	switch {
	case err != nil:
	case info.State == sandbox.StateHibernated:
		now = conditionHibernated
	case info.State == sandbox.StateRunning:
		now = conditionRunning // another was quicker to bring it back
	case info.Files:
		now = conditionEnded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[rec.ID] == e && e.asleep == nil {
		if now == conditionLost && e.condition != conditionLost {
			e.ending = lostBy(info, err)
		}
		e.condition = now
	}
	return now
}

// ended handles a sandbox that is not there any more. If its session has ended,
// that is why. Otherwise whoever waits for a command in it is told what became of
// it: if its files are there it is revived at once; else the loss is told, and the
// next command gets a fresh one.
func (s *Sandboxes) ended(ctx context.Context, rec SessionRecord, e *entry) error {
	if over := s.sessionEnd(e); over != nil {
		return over
	}
	now := s.notice(context.WithoutCancel(ctx), rec, e)
	why := s.died(ctx, rec.ID)
	s.mu.Lock()
	if e.over != nil { // meanwhile
		s.mu.Unlock()
		return e.over
	}
	lost := s.entries[rec.ID] == e && now == conditionLost
	if now == conditionLost {
		why = e.ending
	}
	switch {
	case lost:
		s.begin(rec, attemptMake)
	case s.entries[rec.ID] == e:
		s.current(rec)
	}
	s.mu.Unlock()
	if lost {
		s.notify(rec, SandboxLost, lostWords(why))
	}
	switch now {
	case conditionLost:
		return Faultf(Conflict, "The sandbox of session %s ended %s. "+
			"Its files are lost; the next command runs in a fresh sandbox.", rec.ID, why.reason())
	case conditionEnded:
		return Faultf(Conflict, "The sandbox of session %s ended %s. "+
			"Its processes are gone and its files are kept; the next command finds them.", rec.ID, why.reason())
	}
	// It hibernates, or another command has brought it back already.
	return Faultf(Conflict, "The sandbox of session %s ended while the command ran, and was started anew or put aside. "+
		"Its processes are gone and its files are kept; the next command finds them.", rec.ID)
}
