package control

import (
	"context"
	"log/slog"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// timedEngine is an Engine that logs how long it took to make a sandbox, put it
// aside or bring it back.
type timedEngine struct {
	Engine
	log *slog.Logger
}

func (e timedEngine) timed(ctx context.Context, id, done string, call func() error) error {
	start := time.Now()
	err := call()
	if err == nil {
		e.log.DebugContext(ctx, done, "session_id", id, "took", time.Since(start))
	}
	return err
}

// Create implements sandbox.Engine.
func (e timedEngine) Create(ctx context.Context, spec sandbox.Spec) error {
	return e.timed(ctx, spec.ID, "sandbox ready", func() error { return e.Engine.Create(ctx, spec) })
}

// Checkpoint implements sandbox.Checkpointer.
func (e timedEngine) Checkpoint(ctx context.Context, id string) error {
	return e.timed(ctx, id, "sandbox hibernates", func() error { return e.Engine.Checkpoint(ctx, id) })
}

// Restore implements sandbox.Checkpointer.
func (e timedEngine) Restore(ctx context.Context, id, netns string) error {
	return e.timed(ctx, id, "sandbox woken", func() error { return e.Engine.Restore(ctx, id, netns) })
}

// Revive implements sandbox.Checkpointer.
func (e timedEngine) Revive(ctx context.Context, id, netns string) error {
	return e.timed(ctx, id, "sandbox revived", func() error { return e.Engine.Revive(ctx, id, netns) })
}
