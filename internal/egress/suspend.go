package egress

import (
	"context"
	"errors"
	"fmt"
)

// Suspend takes a network's namespaces and connections away and keeps its
// policy, its table of names and its records, for a sandbox that hibernates:
// nothing may run in the namespaces any more. Suspending a suspended network is
// no error, nor is one that an earlier server left or that an earlier Suspend
// left half done. ErrNotFound if there is no network with this id.
func (g *Gateway) Suspend(ctx context.Context, id string) error {
	unlock, err := g.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	home, err := g.dir.open(id)
	if err != nil {
		return err
	}
	if s := g.live(id); s != nil {
		s.close()
		g.settle(home, s.state.Load().journal)
		g.mu.Lock()
		delete(g.slots, id)
		if len(g.clients[id]) > 0 { // their records are still to be completed
			asleep := *s.state.Load()
			asleep.names = nil
			g.idle[id] = &asleep
		}
		g.mu.Unlock()
	}
	return stepError("releasing network namespaces", home.release())
}

// Resume gives a suspended network new namespaces with the same addresses, its
// kept policy and table of names, and returns the path of the one for the
// sandbox to run in. A network that this Gateway serves already is left as it
// is. What an earlier server left of the namespaces is removed, so nothing may
// run in them. After an error the network stays suspended. ErrNotFound if there
// is no network with this id.
func (g *Gateway) Resume(ctx context.Context, id string) (netnsPath string, err error) {
	unlock, err := g.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	home, err := g.dir.open(id)
	if err != nil {
		return "", err
	}
	if g.live(id) != nil {
		return home.runtime(), nil
	}
	if err := home.release(); err != nil {
		return "", stepError("releasing network namespaces", err)
	}
	s, err := g.restore(home, func() (*slot, error) { return g.freshSlot(home) })
	if err != nil {
		return "", errors.Join(fmt.Errorf("network %s stays closed: %w", id, err), home.release())
	}
	if err := g.keep(id, s); err != nil {
		s.close()
		return "", errors.Join(err, home.release())
	}
	return home.runtime(), nil
}

// freshSlot serves new namespaces.
func (g *Gateway) freshSlot(home home) (*slot, error) {
	sp, err := g.take()
	if err != nil {
		return nil, err
	}
	defer sp.pair.close() // from here on the mounts hold the namespaces
	if err := home.hold(sp.pair); err != nil {
		sp.slot.close()
		return nil, err
	}
	return sp.slot, nil
}

// inherit gives a state the records that were made about its network before.
func (g *Gateway) inherit(home home, st *state) {
	g.mu.Lock()
	old := g.idle[st.id]
	g.mu.Unlock()
	if old != nil {
		st.journal = old.journal
		return
	}
	st.journal = g.recall(home)
}

// current is the state of a network of this process, served or idle, or nil.
func (g *Gateway) current(id string) *state {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stateOf(id)
}

// stateOf is current for who holds mu.
func (g *Gateway) stateOf(id string) *state {
	if s := g.slots[id]; s != nil {
		return s.state.Load()
	}
	return g.idle[id]
}
