package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// SandboxesConfig says what Sandboxes works with. Nothing in it may be nil but
// Logger.
type SandboxesConfig struct {
	Store   Store
	Engine  Engine
	Network Network
	Builds  *Builds
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
	Logger *slog.Logger
}

// Sandboxes gives each session its own sandbox and network, made when the
// session is created, and takes them away when it ends. A sandbox that nothing
// uses hibernates and wakes for the next use; one that died is started anew on
// its files. It implements Runtime. Its methods may be called at the same time.
type Sandboxes struct {
	store   Store
	engine  Engine
	network Network
	builds  *Builds
	limits  sandbox.Limits
	log     *slog.Logger
	slots   chan struct{} // one per sandbox being made or brought back
	aside   chan struct{} // one per sandbox being put aside
	after   time.Duration // HibernateAfter
	notify  func(SessionRecord, SandboxEvent, string)

	ctx    context.Context // the service's own life; ends in Shutdown
	cancel context.CancelFunc
	work   sync.WaitGroup

	policies sync.RWMutex // held for reading between compiling a policy and installing it

	mu      sync.Mutex
	entries map[string]*entry // session id → its sandbox, under mu
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
	return &Sandboxes{
		store: cfg.Store, engine: cfg.Engine, network: cfg.Network, builds: cfg.Builds,
		limits: cfg.Limits, log: cfg.Logger, slots: make(chan struct{}, cfg.Parallel), aside: make(chan struct{}, runtime.NumCPU()),
		after: cfg.HibernateAfter, notify: cfg.Notify, ctx: ctx, cancel: cancel, entries: map[string]*entry{},
	}
}

// Shutdown stops preparing sandboxes and waits for what is under way to be
// undone. Running sandboxes go on.
func (s *Sandboxes) Shutdown(ctx context.Context) error {
	s.cancel()
	return wait(ctx, &s.work)
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
func (s *Sandboxes) SessionCreated(rec SessionRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[rec.ID] == nil {
		s.begin(rec, attemptMake)
	}
}

// errSessionGone: the session was archived or deleted meanwhile.
var errSessionGone = errors.New("the session has ended")

// forget drops an entry unless another has taken its place.
func (s *Sandboxes) forget(id string, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[id] == e {
		delete(s.entries, id)
	}
}

// prepare makes the sandbox of a session, or nothing. The session's record is
// read again, because a command that read it before the session was deleted may
// get here afterwards; whoever deletes a record calls SessionEnded after it, so
// that a preparation which still saw the record is ended.
func (s *Sandboxes) prepare(ctx context.Context, rec SessionRecord) error {
	now, err := s.store.Session(ctx, rec.Workspace, rec.ID)
	switch {
	case errors.Is(err, ErrNoRecord) || err == nil && !now.ArchivedAt.IsZero():
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
	s.log.DebugContext(ctx, "sandbox ready", "session_id", rec.ID)
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

// SessionEnded implements Runtime. A command that came at the same moment may
// have begun another preparation: it is ended too.
func (s *Sandboxes) SessionEnded(ctx context.Context, rec SessionRecord) error {
	for {
		s.mu.Lock()
		e := s.entries[rec.ID]
		s.mu.Unlock()
		if e != nil {
			s.endSession(e, rec)
			e.cancel()
			select {
			case <-e.done:
			case <-ctx.Done():
				s.unendSession(e)
				return ctx.Err()
			}
		}
		if err := s.remove(ctx, rec.ID); err != nil {
			s.unendSession(e)
			return err
		}
		s.mu.Lock()
		same := s.entries[rec.ID] == e
		if same {
			delete(s.entries, rec.ID)
		}
		s.mu.Unlock()
		if same {
			return nil
		}
	}
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

// Counts reports how many sessions' sandboxes are in which state, for metrics.
// One that is being brought back counts as preparing, one that died and was not
// used since as failed.
func (s *Sandboxes) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{"preparing": 0, "running": 0, "hibernated": 0, "failed": 0}
	for _, e := range s.entries {
		switch {
		case !e.isOver():
			n["preparing"]++
		case e.err != nil || e.condition == conditionEnded || e.condition == conditionLost:
			n["failed"]++
		case e.condition == conditionHibernated:
			n["hibernated"]++
		default:
			n["running"]++
		}
	}
	return n
}
