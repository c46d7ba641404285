package control

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/control/lifecycle"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// SandboxesConfig says what Sandboxes works with. Nothing in it may be nil but
// Logger.
type SandboxesConfig struct {
	// Store says which sessions there are.
	Store Store
	// Engine runs the sandboxes.
	Engine Engine
	// Network gives them what they may reach.
	Network Network
	// Builds makes what they start from.
	Builds *Builds
	// Limits of one session's sandbox; zero fields are the engine's defaults.
	Limits sandbox.Limits
	// Parallel bounds how many sandboxes are made or brought back at the same
	// time; zero means twice the processors.
	Parallel int
	// HibernateAfter is how long nothing may use a sandbox before it hibernates:
	// no command, shell, file operation or Hold. Zero means
	// DefaultHibernateAfter, negative never.
	HibernateAfter time.Duration
	// Notify, when set, is told what happened to a session's sandbox that its
	// agent does not know, each time once, in words for the session's log. It is
	// called from several goroutines and returns soon.
	Notify func(rec SessionRecord, what SandboxEvent, words string)
	// Logger is told of sandboxes and failures; nil discards.
	Logger *slog.Logger
}

// Sandboxes gives each session its own sandbox and network, made when the
// session is created, and takes them away when it ends. A sandbox that nothing
// uses hibernates and wakes for the next use; one that died is started anew on
// its files. It implements Runtime. Its methods may be called at the same time.
type Sandboxes struct {
	store   Store
	engine  Engine        // counts and measures what goes to the engine
	tools   sandbox.Tools // the engine's; nil without
	network Network
	builds  *Builds
	limits  sandbox.Limits
	log     *slog.Logger
	slots   chan struct{} // one per sandbox being made or brought back
	aside   chan struct{} // one per sandbox being put aside
	after   time.Duration // HibernateAfter
	notify  func(SessionRecord, SandboxEvent, string)

	ctx        context.Context // the service's own life; ends in Shutdown
	cancel     context.CancelFunc
	background backgroundWork

	policies sync.RWMutex // held for reading between compiling a policy and installing it

	mu       sync.Mutex                    // is locked before a machine's own lock, never after
	machines map[string]*lifecycle.Machine // session id → the state of its sandbox; under mu
}

// NewSandboxes makes a Sandboxes. Call Reconcile before the first request; from
// then on sandboxes hibernate.
func NewSandboxes(cfg SandboxesConfig) *Sandboxes {
	if cfg.Parallel == 0 {
		cfg.Parallel = 2 * runtime.NumCPU()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HibernateAfter == 0 {
		cfg.HibernateAfter = DefaultHibernateAfter
	}
	if cfg.Notify == nil {
		cfg.Notify = func(SessionRecord, SandboxEvent, string) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	tools, _ := cfg.Engine.(sandbox.Tools)
	s := &Sandboxes{
		store: cfg.Store, tools: tools, network: cfg.Network, builds: cfg.Builds,
		limits: cfg.Limits, log: cfg.Logger, slots: make(chan struct{}, cfg.Parallel), aside: make(chan struct{}, runtime.NumCPU()),
		after: cfg.HibernateAfter, notify: cfg.Notify, ctx: ctx, cancel: cancel, machines: map[string]*lifecycle.Machine{},
	}
	s.engine = heldEngine{timedEngine{cfg.Engine, cfg.Logger}, s}
	return s
}

// Shutdown stops preparing sandboxes and waits for what is under way to be
// undone. Running sandboxes go on.
func (s *Sandboxes) Shutdown(ctx context.Context) error {
	s.cancel()
	return s.background.shutdown(ctx)
}

// backgroundWork is a group of goroutines that can be waited for while others
// begin. Its methods may be called at the same time.
type backgroundWork struct {
	mu    sync.Mutex // guards over, and over against the beginning of group's wait
	over  bool       // shutdown was called
	group sync.WaitGroup
}

// Go runs work in a goroutine. After shutdown nobody waits for it: it is to find
// that its context has ended.
func (b *backgroundWork) Go(work func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		go work()
		return
	}
	b.group.Go(work)
}

// shutdown waits for what is under way.
func (b *backgroundWork) shutdown(ctx context.Context) error {
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	return wait(ctx, &b.group)
}

// wait waits for a group of goroutines, or for ctx to end.
func wait(ctx context.Context, work *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// EnvironmentChanged implements Runtime.
func (s *Sandboxes) EnvironmentChanged(rec EnvironmentRecord) { s.builds.Changed(rec) }

// EnvironmentDeleted implements Runtime.
func (s *Sandboxes) EnvironmentDeleted(id string) { s.builds.Deleted(id) }

// SessionCreated implements Runtime.
func (s *Sandboxes) SessionCreated(rec SessionRecord) { s.Hold(rec)() }

// SessionEnded implements Runtime.
func (s *Sandboxes) SessionEnded(ctx context.Context, rec SessionRecord) error {
	m, release := s.hold(rec)
	defer release()
	return m.End(ctx, sessionOver(rec))
}

// errSessionGone: the session was archived or deleted meanwhile.
var errSessionGone = errors.New("the session has ended")

// hold finds the machine of a session's sandbox, or makes it, in use until release.
func (s *Sandboxes) hold(rec SessionRecord) (m *lifecycle.Machine, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m = s.machines[rec.ID]
	if m == nil {
		m = s.newMachine(rec)
		s.machines[rec.ID] = m
	}
	return m, s.held(rec.ID, m)
}

// held keeps a machine in use until release. The caller holds mu.
func (s *Sandboxes) held(id string, m *lifecycle.Machine) (release func()) {
	leave := m.Hold()
	return func() {
		leave()
		s.retire(id, m)
	}
}

// newMachine makes the machine of a session's sandbox.
func (s *Sandboxes) newMachine(rec SessionRecord) (m *lifecycle.Machine) {
	m = lifecycle.New(lifecycle.Config{
		Context: s.ctx,
		Work: func(ctx context.Context, was, now *lifecycle.Status) (lifecycle.Event, error) {
			return s.work(ctx, rec, was, now)
		},
		Go: func(work func()) {
			s.background.Go(func() {
				work()
				s.retire(rec.ID, m)
			})
		},
		Retry:     func(failure error) bool { return !s.stillFailing(rec, failure) },
		IdleAfter: s.after,
		OnIdle:    func() { s.putAside(m) },
	})
	return m
}

// retire drops a machine whose session has ended, once nobody uses it.
func (s *Sandboxes) retire(id string, m *lifecycle.Machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := m.Now()
	if s.machines[id] == m && m.Unused() && now.State == lifecycle.Absent && (now.Cause == nil || errors.Is(now.Cause, errSessionGone)) {
		delete(s.machines, id)
	}
}

// Counts reports how many sessions' sandboxes are in which state, for metrics.
// One that is being brought back counts as preparing, one that is being put aside
// as running, one that died and was not used since as failed; one that is being
// removed does not count.
func (s *Sandboxes) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{"preparing": 0, "running": 0, "hibernated": 0, "failed": 0}
	for _, m := range s.machines {
		now := m.Now()
		switch {
		case now.Failure() != nil:
			n["failed"]++
		case now.State != lifecycle.Absent && now.State != lifecycle.Ending:
			n[countedAs[now.State]]++
		}
	}
	return n
}

// countedAs are the states as metrics name them.
var countedAs = map[lifecycle.State]string{
	lifecycle.Starting: "preparing", lifecycle.Waking: "preparing",
	lifecycle.Awake: "running", lifecycle.GoingToSleep: "running",
	lifecycle.Asleep: "hibernated",
	lifecycle.Dead:   "failed", lifecycle.Lost: "failed",
}
