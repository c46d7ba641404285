package image

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Owner says for whom a build is made. Builds of different owners do not wait
// for each other; see queue.
type Owner struct {
	// Workspace is the id of the workspace. Empty is a workspace as any other.
	Workspace string
	// Environment is the id of the environment. Empty is one as any other.
	Environment string
}

// queue decides which installs run. An install counts as a processor's worth of
// work for its first turn only: one that goes on for longer mostly waits (for
// the network, or because it hangs), and its sandbox shares the processors with
// the others by its own limit. So no install holds the others up for longer than
// a turn:
//
//   - a workspace in which nothing runs starts its next install at once;
//   - otherwise an install starts when fewer than max are in their first turn,
//     and fewer than most run in its workspace, whose memory they take;
//   - next is the workspace, and in it the environment, with the fewest running
//     installs, and there the install that came first.
type queue struct {
	max  int           // installs in their first turn, of all workspaces
	most int           // installs of one workspace
	turn time.Duration // after which an install does not count any more

	mu      sync.Mutex // guards what follows, and the fields of places
	waiting []*place   // in the order in which they came
	running []*place
}

// place is one install in the queue.
type place struct {
	owners  []Owner // who wants it; any of them may let it start
	charged Owner   // for whom it runs
	start   chan struct{}
	started bool
	late    bool // its first turn is over
	timer   *time.Timer
}

func newQueue(most int, turn time.Duration) *queue {
	return &queue{max: most, most: max(8, 4*most), turn: turn}
}

// enter waits until the place may start, or ctx ends. The caller calls leave
// after it, whatever it answers.
func (q *queue) enter(ctx context.Context, p *place) error {
	q.mu.Lock()
	p.start, p.started, p.late = make(chan struct{}), false, false
	q.waiting = append(q.waiting, p)
	q.fill()
	start := p.start
	q.mu.Unlock()
	select {
	case <-start:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave takes the place out of the queue, where it waits or runs.
func (q *queue) leave(p *place) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	is := func(other *place) bool { return other == p }
	q.waiting, q.running = slices.DeleteFunc(q.waiting, is), slices.DeleteFunc(q.running, is)
	q.fill()
}

// join adds an owner to a place: one who comes later and wants the same layer.
func (q *queue) join(p *place, o Owner) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(p.owners, o) {
		p.owners = append(p.owners, o)
		q.fill()
	}
}

// fill starts what may start. The caller holds mu.
func (q *queue) fill() {
	for {
		p, owner := q.next()
		if p == nil {
			return
		}
		q.waiting = slices.DeleteFunc(q.waiting, func(other *place) bool { return other == p })
		q.running = append(q.running, p)
		p.charged, p.started = owner, true
		close(p.start)
		start := p.start
		p.timer = time.AfterFunc(q.turn, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			if p.start == start { // else it has left and come again
				p.late = true
				q.fill()
			}
		})
	}
}

// next is the waiting place that starts next and for whom, or nil. The caller
// holds mu.
func (q *queue) next() (next *place, owner Owner) {
	inWorkspace, inEnvironment, counted := map[string]int{}, map[Owner]int{}, 0
	for _, p := range q.running {
		inWorkspace[p.charged.Workspace]++
		inEnvironment[p.charged]++
		if !p.late {
			counted++
		}
	}
	for _, p := range q.waiting {
		for _, o := range p.owners {
			n := inWorkspace[o.Workspace]
			switch {
			case n > 0 && (counted >= q.max || n >= q.most):
				continue
			case next == nil, n < inWorkspace[owner.Workspace],
				n == inWorkspace[owner.Workspace] && inEnvironment[o] < inEnvironment[owner]:
				next, owner = p, o
			}
		}
	}
	return next, owner
}
