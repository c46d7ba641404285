package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Config says what a Machine works with. Only what says so may be left empty.
type Config struct {
	// Context is the owner's life: when it ends, work is to end, and nothing is
	// idle any more.
	Context context.Context
	// Work does what the working state now is for, and returns the event that ends
	// it and why. It was in status was before. ctx ends when the session ends
	// meanwhile, or with Context. Work of one Machine is never under way twice.
	Work func(ctx context.Context, was, now *Status) (Event, error)
	// Go runs work in a goroutine of its own.
	Go func(work func())
	// Retry tells whether an attempt that failed for this reason is made again for
	// the next who wants the sandbox. It is called with the machine locked.
	Retry func(failure error) bool
	// IdleAfter is how long nobody may use an awake sandbox until OnIdle is called,
	// in a goroutine of its own; zero or less means never.
	IdleAfter time.Duration
	// OnIdle is to call Sleep, at once or when there is room for it; nil only if
	// IdleAfter says never.
	OnIdle func()
}

// Status is one stay in a state. It does not change but for having passed: so
// whoever read one can tell later whether it still holds, and what followed.
type Status struct {
	// State is the state.
	State State
	// Cause is why: in Absent, Asleep and Dead the failure of the work that led
	// there; in Dead, Lost and Ending what the event's reporter said. Nil means that
	// there is nothing to say.
	Cause error

	failed bool               // Cause is the failure of work
	passed chan struct{}      // closed when another status has taken its place
	next   *Status            // that one; written before passed is closed
	cancel context.CancelFunc // of a working state: ends the work
	done   chan struct{}      // of a working state: closed when the work has returned
}

// Next is the status that followed, or nil while this one holds.
func (s *Status) Next() *Status {
	select {
	case <-s.passed:
		return s.next
	default:
		return nil
	}
}

// Failure is why the work failed that led to this status; nil if none did.
func (s *Status) Failure() error {
	if s.failed {
		return s.Cause
	}
	return nil
}

// Wait waits until the status has passed and returns the next one.
func (s *Status) Wait(ctx context.Context) (*Status, error) {
	select {
	case <-s.passed:
		return s.next, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Machine is the state of one session's sandbox. Its methods may be called at
// the same time.
type Machine struct {
	cfg Config

	mu    sync.Mutex  // guards what follows
	now   *Status     // never nil; replaced in move only
	users int         // who uses the sandbox, or waits for it to be awake
	since time.Time   // since when it is awake and nobody uses it, if that is so
	timer *time.Timer // runs while it is awake and nobody uses it; nil before the first time
}

// New makes the machine of a sandbox that is absent.
func New(cfg Config) *Machine {
	return &Machine{cfg: cfg, now: &Status{State: Absent, passed: make(chan struct{})}}
}

// Now is the status that holds.
func (m *Machine) Now() *Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// Hold adds a user, until release, which may be called more than once. A sandbox
// in use is not put aside.
func (m *Machine) Hold() (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users++
	m.watchIdle()
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.users--
		m.watchIdle()
	})
}

// Unused tells whether nobody uses the sandbox or waits for it.
func (m *Machine) Unused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.users == 0
}

// Want begins what makes the sandbox awake, without waiting, unless that has
// failed and is not to be tried again. It returns the status that holds then.
func (m *Machine) Want() *Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	if failure := m.now.Failure(); failure == nil || m.cfg.Retry(failure) {
		m.move(Wanted, nil)
	}
	return m.now
}

// Await wants the sandbox and waits until it is awake; the caller holds it. All
// who wait share one attempt, and its failure; the next who comes has it made
// again. When the sandbox is lost or its session ends, the status is returned
// with its cause.
func (m *Machine) Await(ctx context.Context) (*Status, error) {
	st, err := m.Want(), error(nil)
	for {
		switch {
		case st.State == Awake:
			return st, nil
		case st.State == Lost, st.State == Ending, st.failed:
			return st, st.Cause
		case st.State.Working():
			if st, err = st.Wait(ctx); err != nil {
				return nil, err
			}
		default:
			st = m.Want()
		}
	}
}

// Report moves the sandbox by an event, for a reason that may be nil, if the
// status still holds, and tells whether it did. Idle and End have their own
// methods; what ends work is returned by the work.
func (m *Machine) Report(status *Status, e Event, cause error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now == status && m.move(e, cause)
}

// Sleep begins to put the sandbox aside if nobody has used it for long enough.
// It returns the status that this began, or nil.
func (m *Machine) Sleep() *Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users > 0 || m.cfg.IdleAfter <= 0 || time.Since(m.since) < m.cfg.IdleAfter || !m.move(Idle, nil) {
		return nil
	}
	return m.now
}

// End has all removed that the sandbox had and waits for it; work that is under
// way is ended first. Whoever wants the sandbox meanwhile gets the cause, which
// stays with the absent one. When the removal fails, its error is returned and
// the sandbox is what is left of it.
func (m *Machine) End(ctx context.Context, cause error) error {
	m.mu.Lock()
	m.move(End, cause) // refused where another ends it already: that one's outcome is shared
	st := m.now
	m.mu.Unlock()
	then, err := st.Wait(ctx)
	if err != nil {
		return err
	}
	if then.State == Absent && !then.failed {
		return nil
	}
	return then.Cause
}

// move is the only place where the state changes. It tells whether the move is
// legal. The caller holds mu.
func (m *Machine) move(e Event, cause error) bool {
	to, legal := Next(m.now.State, e)
	if !legal {
		return false
	}
	was := m.now
	if e == Removed {
		cause = was.Cause
	}
	m.now = &Status{State: to, Cause: cause, passed: make(chan struct{}),
		failed: cause != nil && was.State.Working() && e != Removed && (to == Absent || to == Asleep || to == Dead)}
	was.next = m.now
	close(was.passed)
	if was.cancel != nil {
		was.cancel()
	}
	if to.Working() {
		m.work(was)
	}
	if was.State == GoingToSleep && m.users > 0 {
		m.move(Wanted, nil) // who came meanwhile has it back
	}
	m.watchIdle()
	return true
}

// work has the owner work in the state that holds, which followed was. The
// caller holds mu.
func (m *Machine) work(was *Status) {
	now := m.now
	ctx, cancel := context.WithCancel(m.cfg.Context)
	now.cancel, now.done = cancel, make(chan struct{})
	m.cfg.Go(func() {
		defer close(now.done)
		defer cancel()
		if was.done != nil {
			<-was.done // it was told to end: only Ending follows a state whose work is under way
		}
		e, cause := m.cfg.Work(ctx, was, now)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.now == now && !m.move(e, cause) {
			panic(fmt.Sprintf("lifecycle: a sandbox that is %s cannot be moved by %q", now.State, e))
		}
	})
}

// watchIdle has the timer run while the sandbox is awake and nobody uses it, from
// the beginning whenever that begins. The caller holds mu.
func (m *Machine) watchIdle() {
	if m.cfg.IdleAfter <= 0 {
		return
	}
	if m.timer != nil {
		m.timer.Stop()
	}
	if m.now.State != Awake || m.users > 0 || m.cfg.Context.Err() != nil {
		return
	}
	m.since = time.Now()
	if m.timer == nil {
		m.timer = time.AfterFunc(m.cfg.IdleAfter, m.cfg.OnIdle)
	} else {
		m.timer.Reset(m.cfg.IdleAfter)
	}
}
