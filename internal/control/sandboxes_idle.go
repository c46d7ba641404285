package control

import (
	"context"
	"errors"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// DefaultHibernateAfter is how long a sandbox stays awake when nothing uses it
// and the operator says nothing.
const DefaultHibernateAfter = 10 * time.Minute

// Hold keeps the sandbox of a session awake until release, and begins waking it,
// without waiting: for a turn that will need it soon. Release may be called
// more than once.
func (s *Sandboxes) Hold(rec SessionRecord) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current(rec).life.enter()
}

// watchIdle puts sandboxes aside that nothing uses, until Shutdown.
func (s *Sandboxes) watchIdle() {
	tick := time.NewTicker(min(max(s.after/4, 50*time.Millisecond), 15*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range s.idle() {
			select {
			case <-s.ctx.Done():
				return
			case s.aside <- struct{}{}:
			}
			s.work.Go(func() {
				defer func() { <-s.aside }()
				s.hibernate(s.ctx, id)
			})
		}
	}
}

// idle lists the sessions whose sandboxes may be put aside.
func (s *Sandboxes) idle() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, e := range s.entries {
		if s.mayHibernate(e) {
			ids = append(ids, id)
		}
	}
	return ids
}

// mayHibernate tells whether an entry's sandbox runs and nobody has used it for
// long enough. The caller holds mu.
func (s *Sandboxes) mayHibernate(e *entry) bool {
	if !e.isOver() || e.err != nil || e.condition != conditionRunning || e.asleep != nil {
		return false
	}
	since := e.life.idle()
	return !since.IsZero() && time.Since(since) >= s.after
}

// hibernate puts a session's sandbox aside if nobody has come for it meanwhile.
// Whoever comes while it is under way waits for its end, and wakes it again.
func (s *Sandboxes) hibernate(ctx context.Context, id string) {
	s.mu.Lock()
	e := s.entries[id]
	if e == nil || !s.mayHibernate(e) {
		s.mu.Unlock()
		return
	}
	e.asleep = make(chan struct{})
	s.mu.Unlock()
	start := time.Now()
	condition := conditionRunning
	err := s.engine.Checkpoint(ctx, id)
	switch {
	case err == nil:
		condition = conditionHibernated
		// The network's connections end here; the sandbox's ends of them when it
		// is restored. Should this fail, waking makes up for it.
		if err := s.network.Suspend(context.WithoutCancel(ctx), id); err != nil && !errors.Is(err, egress.ErrNotFound) {
			s.log.ErrorContext(ctx, "taking a session's network down", "session_id", id, "error", err)
		}
		s.log.DebugContext(ctx, "sandbox hibernates", "session_id", id, "took", time.Since(start))
	case errors.Is(err, sandbox.ErrNotRunning):
		condition = conditionEnded
	case errors.Is(err, sandbox.ErrNotFound), errors.Is(err, sandbox.ErrBusy):
		s.log.DebugContext(ctx, "sandbox does not hibernate", "session_id", id, "error", err)
	default:
		s.log.WarnContext(ctx, "sandbox does not hibernate", "session_id", id, "error", err)
	}
	s.mu.Lock()
	e.condition = condition
	e.life.touch() // one that stayed is tried again after as long a time
	close(e.asleep)
	e.asleep = nil
	s.mu.Unlock()
}
