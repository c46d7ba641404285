package control

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// brief is an engine whose one sandbox uses much while a command runs, and is
// gone as soon as somebody has looked at it afterwards.
type brief struct {
	Engine // what is not written below is not called

	usage sandbox.Usage // of the sandbox now
	gone  bool          // there is nothing to ask any more
}

func (e *brief) Create(context.Context, sandbox.Spec) error { return nil }
func (e *brief) Destroy(context.Context, string) error      { return nil }
func (e *brief) Usage(context.Context, string) (sandbox.Usage, error) {
	if e.gone {
		return sandbox.Usage{}, sandbox.ErrNotFound
	}
	return e.usage, nil
}
func (e *brief) Exec(context.Context, string, sandbox.Command) (sandbox.Process, error) {
	return &briefProcess{engine: e}, nil
}

// briefProcess ends at once.
type briefProcess struct {
	sandbox.Process // what is not written below is not called
	engine          *brief
}

func (p *briefProcess) Wait(context.Context) (sandbox.Exit, error) {
	p.engine.usage = sandbox.Usage{MemoryBytes: 900, Processes: 50, DiskBytes: 995, OOMKills: 2}
	return sandbox.Exit{Code: 1}, nil
}

// closedNetwork opens networks that reach nothing.
type closedNetwork struct {
	Network // what is not written below is not called
}

func (closedNetwork) Open(context.Context, string, egress.Meta, *egress.Policy) (string, error) {
	return "", nil
}
func (closedNetwork) Close(context.Context, string) error { return nil }

// TestBoxUsageAfterRun: what a short command used of its limits is known when it
// has ended, although the sandbox cannot be asked any more. A failed install is
// explained by it.
func TestBoxUsageAfterRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		engine := &brief{}
		boxes := &Boxes{Engine: engine, Network: closedNetwork{}, Limits: sandbox.Limits{DiskBytes: 1000, Processes: 50}}
		box, err := boxes.Open(t.Context(), image.BoxSpec{})
		if err != nil {
			t.Fatal(err)
		}
		exit, err := box.Run(t.Context(), image.BoxCommand{Args: []string{"install"}})
		if err != nil || exit.Code != 1 {
			t.Fatalf("%+v %v", exit, err)
		}
		engine.gone = true
		got, err := box.Usage(t.Context())
		want := image.BoxUsage{MemoryBytes: 900, DiskBytes: 995, OOMKills: 2, DiskFull: true, PidsFull: true}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v, -want +got:\n%s", err, diff)
		}
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// crowded is an engine that has no room for a sandbox for a while.
type crowded struct {
	brief
	refusals int // how many more times it refuses
}

func (e *crowded) Create(context.Context, sandbox.Spec) error {
	if e.refusals == 0 {
		return nil
	}
	e.refusals--
	return sandbox.Shortage("disk", "0 MiB are left")
}

// TestBoxWaitsForRoom: a build does not fail because others have the host's room
// for a moment, and does not wait for ever.
func TestBoxWaitsForRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		engine := &crowded{refusals: 5}
		boxes := &Boxes{Engine: engine, Network: closedNetwork{}}
		box, err := boxes.Open(t.Context(), image.BoxSpec{})
		if err != nil {
			t.Fatalf("a build that has room after a while: %v", err)
		}
		if err := box.Close(t.Context()); err != nil {
			t.Error(err)
		}
		engine.refusals = 1 << 30
		if _, err := boxes.Open(t.Context(), image.BoxSpec{}); !errors.Is(err, sandbox.ErrCapacity) {
			t.Errorf("a build that never has room: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := boxes.Open(ctx, image.BoxSpec{}); !errors.Is(err, context.Canceled) {
			t.Errorf("a build that was given up: %v", err)
		}
	})
}
