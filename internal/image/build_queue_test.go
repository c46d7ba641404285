package image

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// hanging makes installs whose first package begins with "hang" wait for the
// gate, and records in which order installs began.
func hanging(f *fakeBoxes) (release func(), began func() string) {
	gate := make(chan struct{})
	var mu sync.Mutex
	var order []string
	f.set(func(ctx context.Context, specs []string) (int, string, error) {
		mu.Lock()
		order = append(order, specs[0])
		mu.Unlock()
		if strings.HasPrefix(specs[0], "hang") {
			select {
			case <-gate:
			case <-ctx.Done():
				return 0, "", ctx.Err()
			}
		}
		return 0, "", nil
	})
	return sync.OnceFunc(func() { close(gate) }), func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(order, " ")
	}
}

func begin(t *testing.T, b *Builder, f *fakeBoxes, workspace, environment, spec string) *Run {
	t.Helper()
	req := f.request(spec)
	req.Owner = Owner{Workspace: workspace, Environment: environment}
	r, err := b.Start(req)
	must(t, err)
	return r
}

// Two installs that hang, in two environments of one workspace, cost a
// neighbour's build nothing and a third environment of their own a turn.
func TestInstallsThatHang(t *testing.T) {
	b, f := newFake(t, BuilderConfig{MaxParallel: 1, Turn: 10 * time.Millisecond})
	release, began := hanging(f)
	defer release()
	one, two := begin(t, b, f, "a", "one", "hang1"), begin(t, b, f, "a", "two", "hang2")
	waitFor(t, "both to hang", func() bool { return f.running.Load() == 2 })
	neighbour, third := begin(t, b, f, "b", "other", "quick"), begin(t, b, f, "a", "three", "third")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, r := range map[string]*Run{"the neighbour": neighbour, "the third environment": third} {
		if _, err := r.Wait(ctx); err != nil {
			t.Fatalf("%s waits: %v; began: %s", name, err, began())
		}
	}
	release()
	for _, r := range []*Run{one, two} {
		_, err := r.Wait(ctx)
		must(t, err)
	}
}

// Without the end of any turn a neighbour's build starts at once, and in one
// workspace each environment is served before another is served twice.
func TestTurnsAreFair(t *testing.T) {
	b, f := newFake(t, BuilderConfig{MaxParallel: 1, Turn: time.Hour})
	release, began := hanging(f)
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	all := []*Run{begin(t, b, f, "a", "one", "hang1")}
	waitFor(t, "the first", func() bool { return f.running.Load() == 1 })
	for i := range 3 {
		all = append(all, begin(t, b, f, "a", "one", fmt.Sprint("more", i)))
	}
	all = append(all, begin(t, b, f, "a", "two", "two"))
	waitFor(t, "the queue", func() bool { b.queue.mu.Lock(); defer b.queue.mu.Unlock(); return len(b.queue.waiting) == 4 })
	_, err := begin(t, b, f, "b", "other", "quick").Wait(ctx)
	must(t, err)
	if got := began(); got != "hang1 quick" {
		t.Errorf("began: %s", got)
	}
	// A neighbour that wants what waits there starts it, in its own name.
	_, err = begin(t, b, f, "b", "other", "more1").Wait(ctx)
	must(t, err)
	if got := began(); got != "hang1 quick more1" {
		t.Errorf("began: %s", got)
	}
	release()
	for _, r := range all {
		_, err := r.Wait(ctx)
		must(t, err)
	}
}

// Among those that wait, the workspace and then the environment with the fewest
// running installs is next.
func TestNextInQueue(t *testing.T) {
	t.Parallel()
	q := newQueue(1, time.Hour)
	add := func(list *[]*place, workspace, environment string, late bool) *place {
		o := Owner{workspace, environment}
		p := &place{owners: []Owner{o}, charged: o, late: late}
		*list = append(*list, p)
		return p
	}
	add(&q.running, "a", "one", true)
	add(&q.running, "a", "one", true)
	add(&q.running, "b", "x", true)
	add(&q.waiting, "a", "one", false)
	two := add(&q.waiting, "a", "two", false)
	if p, _ := q.next(); p != two {
		t.Errorf("in one workspace %+v is next", p)
	}
	b := add(&q.waiting, "b", "x", false)
	if p, _ := q.next(); p != b {
		t.Errorf("of two workspaces %+v is next", p)
	}
	add(&q.running, "b", "y", false)
	if p, _ := q.next(); p != nil {
		t.Errorf("with one in its turn %+v is next", p)
	}
	c := add(&q.waiting, "c", "z", false)
	if p, o := q.next(); p != c || o.Workspace != "c" {
		t.Errorf("a workspace without installs: %+v is next", p)
	}
	// One workspace does not take the memory of all.
	q = newQueue(1, time.Hour)
	for range q.most {
		add(&q.running, "a", "one", true)
	}
	add(&q.waiting, "a", "two", false)
	if p, _ := q.next(); p != nil {
		t.Errorf("beyond the bound of a workspace %+v is next", p)
	}
}

// Between attempts an install holds nobody up.
func TestPauseHoldsNoPlace(t *testing.T) {
	b, f := newFake(t, BuilderConfig{MaxParallel: 1, Turn: time.Hour, Backoff: []time.Duration{time.Hour}})
	f.set(func(_ context.Context, specs []string) (int, string, error) {
		if specs[0] == "slow" {
			return 1, "Could not fetch URL x: Connection refused\n", nil
		}
		return 0, "", nil
	})
	slow := begin(t, b, f, "a", "one", "slow")
	waitFor(t, "the pause", func() bool { return strings.Contains(string(slow.Log().Text()), "trying again") })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := begin(t, b, f, "a", "two", "quick").Wait(ctx); err != nil {
		t.Errorf("while another pauses: %v", err)
	}
	slow.Cancel()
	<-slow.Done()
}
