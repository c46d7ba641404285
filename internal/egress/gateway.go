package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Gateway makes the networks of sandboxes and serves them. It is safe for
// concurrent use; calls about the same id wait for each other.
type Gateway struct {
	config Config
	log    *slog.Logger
	guard  *guard // holds the operator's rules, which a reload replaces
	dir    directory
	host   *hostNets

	buffers datagrams
	pool    chan *spare
	stop    context.CancelFunc
	filling sync.WaitGroup

	mu      sync.Mutex        // guards what follows
	slots   map[string]*slot  // id → the network that this process serves
	idle    map[string]*state // id → one without namespaces: suspended, or not open yet
	clients map[string]map[*clientConn]bool
	busy    map[string]chan struct{}
	closed  bool
}

// spare is a slot that nobody has claimed. Only descriptors of this process
// hold its namespaces: if the process dies, the kernel removes them.
type spare struct {
	slot *slot
	pair *pair
}

func (s *spare) close() {
	s.slot.close()
	s.pair.close()
}

// New makes a Gateway on Config.Dir. Networks of an earlier server that are
// there stay closed until Reopen or Close is called for them.
func New(c Config) (*Gateway, error) {
	c.Limits = c.Limits.withDefaults()
	if c.Descriptors == nil {
		c.Descriptors = plenty{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{config: c, log: c.Logger, slots: map[string]*slot{}, idle: map[string]*state{},
		clients: map[string]map[*clientConn]bool{}, busy: map[string]chan struct{}{}}
	var err error
	if g.host, err = newHostNets(); err != nil {
		return nil, err
	}
	if g.guard, err = newGuard(c, g.host); err != nil {
		g.host.close()
		return nil, err
	}
	if g.dir, err = openDirectory(c.Dir); err != nil {
		g.host.close()
		return nil, fmt.Errorf("preparing %s: %w", c.Dir, err)
	}
	g.warn(g.guard.rules.Load())
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.pool = make(chan *spare, max(0, c.PoolSize))
	if c.PoolSize > 0 {
		g.filling.Go(func() { g.fill(ctx) })
	}
	return g, nil
}

// now is when a decision is made. It is not in UTC yet: that would take from it
// what a step of the wall clock leaves alone.
func (g *Gateway) now() time.Time {
	if g.config.Now != nil {
		return g.config.Now()
	}
	return time.Now()
}

// fill keeps the pool full.
func (g *Gateway) fill(ctx context.Context) {
	for ctx.Err() == nil {
		s, err := g.make()
		if err != nil {
			g.log.Error("making a network ahead", "error", err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		select {
		case g.pool <- s:
		case <-ctx.Done():
			s.close()
		}
	}
}

func (g *Gateway) make() (*spare, error) {
	p, err := makePair(g.config.Limits)
	if err != nil {
		return nil, err
	}
	s, err := g.newSlot(p)
	if err != nil {
		p.close()
		return nil, err
	}
	return &spare{s, p}, nil
}

// take returns a slot of the pool, or a new one.
func (g *Gateway) take() (*spare, error) {
	select {
	case s := <-g.pool:
		return s, nil
	default:
		return g.make()
	}
}

// lock waits until nobody works on id and returns what ends the work.
func (g *Gateway) lock(ctx context.Context, id string) (unlock func(), err error) {
	if !validID(id) {
		return nil, fmt.Errorf("network id %q is not 1 to 64 of A-Z, a-z, 0-9, _ and -", id)
	}
	for {
		g.mu.Lock()
		wait, taken := g.busy[id]
		if !taken {
			done := make(chan struct{})
			g.busy[id] = done
			g.mu.Unlock()
			return func() {
				g.mu.Lock()
				delete(g.busy, id)
				g.mu.Unlock()
				close(done)
			}, nil
		}
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *Gateway) live(id string) *slot {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.slots[id]
}

// keep makes s the network of id, unless the gateway was shut down meanwhile or
// there are no descriptors for it.
func (g *Gateway) keep(id string, s *slot) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	if !g.config.Descriptors.Take(id, slotDescriptors) {
		return fmt.Errorf("network %s: %w", id, ErrDescriptors)
	}
	s.holder = id
	g.slots[id] = s
	delete(g.idle, id)
	return nil
}

// Open makes a network under a policy and returns the path of the namespace
// for the sandbox to run in. The network outlives this process. ErrExists if
// there is one with this id; after any other error nothing of it is left.
func (g *Gateway) Open(ctx context.Context, id string, meta Meta, p *Policy) (netnsPath string, err error) {
	if p == nil {
		return "", errors.New("a network needs a policy")
	}
	unlock, err := g.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	home, err := g.dir.create(id)
	if err != nil {
		return "", err
	}
	var sp *spare
	defer func() {
		if err != nil {
			if sp != nil {
				sp.slot.close()
			}
			err = errors.Join(err, home.remove())
		}
		if sp != nil {
			sp.pair.close() // from here on the mounts hold the namespaces
		}
	}()
	if sp, err = g.take(); err != nil {
		return "", err
	}
	if err := home.hold(sp.pair); err != nil {
		return "", err
	}
	st, err := home.begin(meta, p)
	if err != nil {
		return "", err
	}
	g.inherit(home, st)
	if err := sp.slot.install(st); err != nil {
		return "", err
	}
	return home.runtime(), g.keep(id, sp.slot)
}

// Reopen serves a network that an earlier server made: the same namespaces, the
// persisted policy, the same addresses for the same names. If any of it cannot
// be read the network stays closed and the error says so; it is ErrSuspended if
// there are no namespaces because the network is suspended. A network that this
// Gateway serves already is left as it is.
func (g *Gateway) Reopen(ctx context.Context, id string) (netnsPath string, err error) {
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
	if suspended, err := home.suspended(); err != nil || suspended {
		return "", fmt.Errorf("network %s: %w", id, cmp.Or(err, ErrSuspended))
	}
	s, err := g.restore(home, func() (*slot, error) { return g.oldSlot(home) })
	if err != nil {
		return "", fmt.Errorf("network %s stays closed: %w", id, err)
	}
	if err := g.keep(id, s); err != nil {
		s.close()
		return "", err
	}
	return home.runtime(), nil
}

// restore loads what was kept of a network and serves it on the slot that make
// gives. After an error nothing of it is held.
func (g *Gateway) restore(home home, make func() (*slot, error)) (*slot, error) {
	st, err := home.load()
	if err != nil {
		return nil, err
	}
	g.inherit(home, st)
	s, err := make()
	if err != nil {
		st.names.close()
		return nil, err
	}
	if err := s.install(st); err != nil {
		s.close() // of a state that is not its own it knows nothing
		st.names.close()
		return nil, err
	}
	return s, nil
}

// oldSlot serves the namespaces that an earlier server made.
func (g *Gateway) oldSlot(home home) (*slot, error) {
	p, err := home.namespaces()
	if err != nil {
		return nil, err
	}
	defer p.close()
	// The rules were there all the time. Installing them again, in one step,
	// makes sure that they are this version's.
	err = inNamespace(p.gateway, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return stepError("opening netlink in gateway namespace", err)
		}
		defer h.Close()
		if err := errors.Join(setSysctls(gatewaySysctls()), routeToRelay(h)); err != nil {
			return stepError("setting up gateway namespace", err)
		}
		return stepError("installing nf_tables rules", installRules(g.config.Limits, true))
	})
	if err != nil {
		return nil, err
	}
	return g.newSlot(p)
}

// Update puts a network, suspended or not, under another policy, at once:
// connections that the new policy does not allow are closed. After an error the
// old policy stands.
func (g *Gateway) Update(ctx context.Context, id string, p *Policy) error {
	if p == nil {
		return errors.New("a network needs a policy")
	}
	unlock, err := g.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	home, err := g.dir.open(id)
	if err != nil {
		return err
	}
	s := g.live(id)
	if s == nil {
		return g.updateIdle(home, p)
	}
	next := *s.state.Load()
	next.policy, next.generation = p, next.generation+1
	if err := next.names.list(p.exact); err != nil {
		return err
	}
	if err := home.save(&next); err != nil {
		return err
	}
	if err := s.install(&next); err != nil {
		return err
	}
	g.enforceClients(id)
	return nil
}

// updateIdle puts a network without a slot under another policy.
func (g *Gateway) updateIdle(home home, p *Policy) error {
	next, err := home.read()
	if err != nil {
		return err
	}
	g.inherit(home, next)
	next.policy, next.generation = p, next.generation+1
	if err := home.save(next); err != nil {
		return err
	}
	g.mu.Lock()
	g.idle[home.id] = next
	g.mu.Unlock()
	g.enforceClients(home.id)
	return nil
}

// Describe returns on whose behalf a network exists and the policy that it is
// under, whether it is served, suspended or kept closed.
func (g *Gateway) Describe(id string) (Meta, *Policy, error) {
	st := g.current(id)
	if st == nil {
		home, err := g.dir.open(id)
		if err != nil {
			return Meta{}, nil, err
		}
		if st, err = home.read(); err != nil {
			return Meta{}, nil, err
		}
	}
	return st.meta, st.policy, nil
}

// Close removes a network and everything of it, its connections included, also
// one that an earlier server left half made. Closing what is not there is no
// error. The kernel removes the namespaces themselves when the last process in
// them has ended.
func (g *Gateway) Close(ctx context.Context, id string) error {
	unlock, err := g.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	g.mu.Lock()
	s := g.slots[id]
	delete(g.slots, id)
	delete(g.idle, id)
	g.mu.Unlock()
	if s != nil {
		s.close()
	}
	for _, c := range g.clientsOf(id) {
		c.end(ReasonSessionEnded)
	}
	home, err := g.dir.open(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return home.remove()
}

// List returns the ids of all networks on this machine below Config.Dir, those
// of an earlier server and half-made ones too, in order.
func (g *Gateway) List(context.Context) ([]string, error) { return g.dir.list() }

// Records returns the decisions about a network, newest first: the last 1,000
// and, apart from those, the last 500 refusals. Those of a network that is
// suspended, or whose server was shut down, are kept; a crash loses those since
// the network was opened, resumed or reopened.
func (g *Gateway) Records(id string, f Filter) ([]Record, error) {
	if st := g.current(id); st != nil {
		return st.journal.list(f), nil
	}
	home, err := g.dir.open(id)
	if err != nil {
		return nil, err
	}
	return g.recall(home).list(f), nil
}

// Shutdown closes all connections and stops serving. Claimed networks stay,
// closed, for the next server to Reopen; unclaimed ones are removed. Only Close
// and List work afterwards.
func (g *Gateway) Shutdown(context.Context) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	slots := g.slots
	idle := g.idle
	g.slots, g.idle = map[string]*slot{}, map[string]*state{}
	clients := slices.Collect(maps.Keys(g.clients))
	g.mu.Unlock()
	for _, id := range clients {
		for _, c := range g.clientsOf(id) {
			c.end(ReasonSessionEnded)
		}
	}
	g.stop()
	g.filling.Wait()
	for {
		select {
		case s := <-g.pool:
			s.close()
			continue
		default:
		}
		break
	}
	var ending sync.WaitGroup
	for id, s := range slots {
		ending.Go(func() {
			s.close()
			if home, err := g.dir.open(id); err == nil {
				g.settle(home, s.state.Load().journal)
			}
		})
	}
	ending.Wait()
	for id, st := range idle {
		if home, err := g.dir.open(id); err == nil {
			g.settle(home, st.journal)
		}
	}
	g.host.close()
	return g.dir.release()
}
