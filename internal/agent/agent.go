// Package agent thinks: it runs the agents of sessions. For each session with
// something to do there is one goroutine that reads the session's log, asks the
// model, runs the tools that it may, and writes what happened back, until the
// turn ends or waits for somebody.
//
// The log is the only memory. Every step is one durable change of it, made only
// if the log is as it was when the step was decided on; so a server that was
// killed at any moment goes on where the log ends. What may happen twice is a
// model request whose reply was not written down yet, which the log shows as a
// second span. A call of a built-in tool is known to the sandbox by its id and
// never runs twice.
//
// Failure model: what the model, a tool or the client does wrong becomes an
// event of the session. What the server itself cannot do (the store fails) is
// logged and tried again; nothing is lost by it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// Tools are the tools of one session; *toolset.Session is.
type Tools interface {
	Tools(ctx context.Context) ([]toolset.Tool, []*toolset.ServerError)
	Run(ctx context.Context, call toolset.Call) (toolset.Result, error)
	Cancel(ctx context.Context, call toolset.Call) error
	Close() error
}

// Config says what a Runner works with. Turns and OpenTools must be set.
type Config struct {
	// Turns are the sessions' logs.
	Turns *control.Turns
	// OpenTools opens the tools of a session.
	OpenTools func(rec control.SessionRecord) (Tools, error)
	// Model makes the model requests. Nil: none is configured, and every turn
	// ends with an error that says so.
	Model *Client
	// MaxRequests bounds the model requests of one turn. Zero means 200.
	MaxRequests int
	// MaxRetries bounds how often a failed request is made again. Zero means 5,
	// negative none.
	MaxRetries int
	// RetryBase is the wait before the first further try; it doubles. Zero means
	// one second.
	RetryBase time.Duration
	// Logger gets what is nobody's event. Nil discards.
	Logger *slog.Logger
}

// Runner runs the agents of all sessions. It implements [control.Loop]. Its
// methods may be called at the same time.
type Runner struct {
	config Config
	log    *slog.Logger
	ctx    context.Context // the runner's own life; ends in Shutdown
	cancel context.CancelFunc
	work   sync.WaitGroup
	begun  time.Time

	mu   sync.Mutex
	runs map[string]*run // session id → what runs for it; under mu
}

// New makes a Runner. Call Recover once when requests may be answered.
func New(cfg Config) *Runner {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.MaxRequests = orDefault(cfg.MaxRequests, 200)
	cfg.MaxRetries = orDefault(cfg.MaxRetries, 5)
	cfg.RetryBase = orDefault(cfg.RetryBase, time.Second)
	ctx, cancel := context.WithCancel(context.Background())
	return &Runner{config: cfg, log: cfg.Logger, ctx: ctx, cancel: cancel, begun: time.Now(), runs: map[string]*run{}}
}

// Recover takes up the sessions that an earlier server left with something to do.
func (r *Runner) Recover(ctx context.Context) error {
	err := r.config.Turns.Active(ctx, func(rec control.SessionRecord) error {
		r.Wake(rec)
		return nil
	})
	if err != nil {
		return fmt.Errorf("taking up sessions: %w", err)
	}
	return nil
}

// Shutdown stops all runs and waits for them. What runs in sandboxes goes on;
// the next server takes the sessions up.
func (r *Runner) Shutdown(ctx context.Context) error {
	r.cancel()
	done := make(chan struct{})
	go func() {
		r.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wake implements [control.Loop].
func (r *Runner) Wake(rec control.SessionRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return // the next server finds it
	}
	now := r.runs[rec.ID]
	if now == nil {
		now = &run{runner: r, turns: r.config.Turns, workspace: rec.Workspace, id: rec.ID, wake: make(chan struct{}, 1), done: make(chan struct{})}
		now.ctx, now.cancel = context.WithCancel(r.ctx)
		r.runs[rec.ID] = now
		r.work.Go(now.loop)
	}
	select {
	case now.wake <- struct{}{}:
	default:
	}
}

// Ended implements [control.Loop].
func (r *Runner) Ended(ctx context.Context, session string) error {
	r.mu.Lock()
	now := r.runs[session]
	r.mu.Unlock()
	if now == nil {
		return nil
	}
	now.cancel()
	select {
	case <-now.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Running counts the sessions that have a goroutine, for metrics.
func (r *Runner) Running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.runs)
}

// finish ends a run unless it was woken meanwhile.
func (r *Runner) finish(ended *run) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(ended.wake) > 0 && ended.ctx.Err() == nil {
		return false
	}
	delete(r.runs, ended.id)
	return true
}

// errGone: the session was deleted or archived.
var errGone = errors.New("the session has ended")
