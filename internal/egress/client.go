package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Client is a user of a session's policy on the server's side.
type Client struct {
	// ID is the network. If there is one, served or suspended, its policy of the
	// moment counts, and what follows does not.
	ID string
	// Source says who connects: SourceWebTool or SourceMCP.
	Source string
	// Meta and Policy of a network that is not open yet.
	Meta   Meta
	Policy *Policy
}

// What a record's Source may be.
const (
	SourceSandbox = "sandbox"
	SourceBuild   = "build"
	SourceWebTool = "web_tool" // a tool of the agent that fetches on the server
	SourceMCP     = "mcp"      // a connection of the server to an MCP server
)

const (
	maxClients = 64   // connections of one network's clients at a time
	maxEarly   = 4096 // networks that are not open yet and have records
)

// Dialer returns a function for http.Transport.DialContext that connects as
// [Gateway.DialContext] does. The transport must have no proxy.
func (g *Gateway) Dialer(c Client) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return g.DialContext(ctx, c, network, address)
	}
}

// DialContext connects to address ("host:port", over TCP) for a user of the
// policy on the server's side, through the dial guard, and records the decision
// with the client's source. Under mode limited a web tool reaches the allowed
// hosts only, and a connection to an MCP server those and the MCP endpoints;
// under unrestricted both reach every public address. A refusal is a
// *[DialError], whose text may be shown. When the policy is tightened so that it
// does not allow the connection any more, or the network is closed, the
// connection is closed.
//
// Without a network of this id and without a policy it returns ErrNotFound.
func (g *Gateway) DialContext(ctx context.Context, c Client, network, address string) (net.Conn, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, fmt.Errorf("dialling over %q: tcp only", network)
	}
	conn, err := g.newClientConn(c, address)
	if err != nil {
		return nil, err
	}
	if err := conn.open(ctx); err != nil {
		return nil, err
	}
	return conn, nil
}

// Refuse records that a user of the policy did not connect to address
// ("host:port") because a rule of its own forbids it. Nothing is resolved and
// nothing is dialled. If the session's policy refuses the address too, the
// record has the policy's reason; otherwise the reason is name_not_allowed, and
// rule says whose it was. Errors are those of [Gateway.DialContext] that are no
// refusals.
func (g *Gateway) Refuse(c Client, address, rule string) error {
	conn, err := g.newClientConn(c, address)
	if err != nil {
		return err
	}
	if conn.st, err = g.clientState(c); err != nil {
		return err
	}
	v := conn.decide(conn.st)
	if v.reason == ReasonOK {
		v = verdict{reason: ReasonNameNotAllowed, rule: rule}
	}
	conn.record(Record{Reason: v.reason, Rule: v.rule})
	return nil
}

// newClientConn reads where a client wants to go.
func (g *Gateway) newClientConn(c Client, address string) (*clientConn, error) {
	if c.Source != SourceWebTool && c.Source != SourceMCP {
		return nil, fmt.Errorf("dialling for %q: no such source", c.Source)
	}
	name, digits, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("dialling %q: no such port", address)
	}
	conn := &clientConn{gateway: g, client: c, port: uint16(port), start: g.now()}
	if addr, err := netip.ParseAddr(name); err == nil {
		conn.addr = addr
	} else if conn.host, err = Canonical(name); err != nil {
		conn.claimed = InvalidHost
	}
	return conn, nil
}

// clientConn is a connection of a client.
type clientConn struct {
	net.Conn // set by connected; the bare interface, so that nothing goes round the counters
	gateway  *Gateway
	client   Client
	host     Host       // or zero
	addr     netip.Addr // where the client named an address
	claimed  string
	port     uint16
	start    time.Time
	cancel   context.CancelFunc
	st       *state // that it was decided under
	up, down atomic.Int64

	mu     sync.Mutex // guards what follows
	kept   *Record
	ended  Reason // why it was closed from outside, or empty
	dialed netip.Addr
	done   bool
}

// open decides, connects and records.
func (c *clientConn) open(ctx context.Context) error {
	g := c.gateway
	ctx, c.cancel = context.WithCancel(ctx)
	st, err := g.clientState(c.client)
	if err != nil {
		return err
	}
	c.st = st
	// Registered before the policy is read: who replaces it either finds this
	// connection or came before it.
	if !g.addClient(c) {
		return c.refused(verdict{reason: ReasonConnectionLimit}, errors.New("too many connections of the server for this session"))
	}
	if now := g.current(c.client.ID); now != nil {
		c.st = now
	}
	v := c.decide(c.st)
	if v.reason != ReasonOK {
		g.dropClient(c)
		return c.refused(v, fmt.Errorf("%s is not allowed by the network policy of this environment", c.target()))
	}
	conn, err := c.dial(ctx)
	if err != nil {
		g.dropClient(c)
		v.reason = dialReason(err)
		return c.refused(v, err)
	}
	return c.connected(conn, v)
}

// dial connects through the guard.
func (c *clientConn) dial(ctx context.Context) (*net.TCPConn, error) {
	g := c.gateway.guard
	if !c.host.IsZero() {
		return g.dial(ctx, c.st.answers, c.host, c.port)
	}
	if _, err := g.withoutUnknown(ctx, Host{}, []netip.Addr{c.addr}, c.port); err != nil {
		return nil, &DialError{ReasonResolveFailed, err}
	}
	if err := g.check(Host{}, c.addr, c.port); err != nil {
		return nil, err
	}
	return g.dialAny(ctx, Host{}, []netip.Addr{c.addr}, c.port)
}

// connected records the open connection, unless it was ended meanwhile.
func (c *clientConn) connected(conn *net.TCPConn, v verdict) error {
	c.mu.Lock()
	c.Conn, c.dialed = conn, remoteIP(conn)
	ended := c.ended
	c.mu.Unlock()
	if err := c.gateway.guard.check(c.host, c.dialed, c.port); ended == "" && err != nil {
		ended = dialReason(err)
	}
	if ended != "" {
		reset(conn)
		c.gateway.dropClient(c)
		return c.refused(verdict{reason: ended}, errors.New("the network policy changed"))
	}
	kept := c.record(Record{Reason: ReasonOK, Rule: v.rule, DialedAddress: conn.RemoteAddr().String()})
	c.mu.Lock()
	c.kept = kept
	c.mu.Unlock()
	return nil
}

// decide says what a state's policy makes of the connection. The flags of an
// environment open nothing to a web tool.
func (c *clientConn) decide(st *state) verdict {
	r := c.gateway.guard.rules.Load()
	switch {
	case c.claimed != "":
		return verdict{reason: ReasonNameNotAllowed}
	case c.host.IsZero():
		return r.decideAddress(st.policy, c.port)
	}
	return r.decide(st.policy, c.host, c.port, c.client.Source)
}

// target names what was dialled, in canonical form.
func (c *clientConn) target() string {
	switch {
	case !c.host.IsZero():
		return c.host.name
	case c.addr.IsValid():
		return c.addr.String()
	}
	return "an invalid host"
}

func (c *clientConn) refused(v verdict, err error) error {
	c.cancel()
	c.record(Record{Reason: v.reason, Rule: v.rule})
	var d *DialError
	if errors.As(err, &d) {
		return d
	}
	return &DialError{v.reason, err}
}

func (c *clientConn) record(r Record) *Record {
	r.Time, r.Host, r.ClaimedHost, r.Protocol, r.DestPort = c.start, c.host.name, c.claimed, "tcp", int(c.port)
	if c.addr.IsValid() {
		r.DestAddress = c.addr.String()
	}
	r.Source = c.client.Source
	return c.gateway.record(c.st, r)
}

// Read counts.
func (c *clientConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.down.Add(int64(n))
	return n, err
}

// Write counts.
func (c *clientConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.up.Add(int64(n))
	return n, err
}

// Close closes the connection and completes its record.
func (c *clientConn) Close() error {
	c.gateway.dropClient(c)
	c.cancel()
	c.mu.Lock()
	kept, done := c.kept, c.done
	c.done = true
	c.mu.Unlock()
	if kept != nil && !done {
		c.st.journal.finish(kept, c.up.Load(), c.down.Load())
	}
	return c.Conn.Close()
}

// end closes the connection from outside.
func (c *clientConn) end(reason Reason) {
	c.mu.Lock()
	first, open, conn := c.ended == "", c.kept != nil, c.Conn
	c.ended = reason
	c.mu.Unlock()
	c.cancel()
	if conn == nil {
		return
	}
	if first && open {
		c.record(Record{Reason: reason})
	}
	reset(conn.(*net.TCPConn))
}

func remoteIP(c *net.TCPConn) netip.Addr {
	at, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // the kernel's own words
	return at.Addr().Unmap()
}

// clientState is the state that a client's connection is decided under: the
// network's, or one of its own until there is a network.
func (g *Gateway) clientState(c Client) (*state, error) {
	if st := g.current(c.ID); st != nil {
		return st, nil
	}
	st := &state{id: c.ID, meta: c.Meta, policy: c.Policy, journal: &journal{}, answers: &answers{}}
	home, err := g.dir.open(c.ID)
	switch {
	case err == nil: // suspended by an earlier server, or kept closed
		kept, err := home.read()
		if err != nil {
			return nil, fmt.Errorf("network %s stays closed: %w", c.ID, err)
		}
		st.meta, st.policy, st.generation, st.journal = kept.meta, kept.policy, kept.generation, g.recall(home)
	case !errors.Is(err, ErrNotFound):
		return nil, err
	case c.Policy == nil:
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch s, idle := g.slots[c.ID], g.idle[c.ID]; {
	case s != nil:
		return s.state.Load(), nil
	case idle != nil:
		return idle, nil
	case len(g.idle) < maxEarly:
		g.idle[c.ID] = st
	}
	return st, nil
}

// addClient notes a client's connection, within the limit.
func (g *Gateway) addClient(c *clientConn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.clients[c.client.ID]
	if g.closed || len(all) >= maxClients || !g.config.Descriptors.Take(c.client.ID, clientDescriptors) {
		return false
	}
	if all == nil {
		all = map[*clientConn]bool{}
		g.clients[c.client.ID] = all
	}
	all[c] = true
	return true
}

func (g *Gateway) dropClient(c *clientConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.clients[c.client.ID][c] {
		return // it was dropped before
	}
	g.config.Descriptors.Give(c.client.ID, clientDescriptors)
	delete(g.clients[c.client.ID], c)
	if len(g.clients[c.client.ID]) == 0 {
		delete(g.clients, c.client.ID)
	}
}

func (g *Gateway) clientsOf(id string) []*clientConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*clientConn, 0, len(g.clients[id]))
	for c := range g.clients[id] {
		out = append(out, c)
	}
	return out
}

// enforceClients ends the connections of clients that the policy of the moment
// does not allow.
func (g *Gateway) enforceClients(id string) {
	for _, c := range g.clientsOf(id) {
		st := g.current(id)
		if st == nil {
			st = c.st
		}
		c.mu.Lock()
		dialed := c.dialed
		c.mu.Unlock()
		if c.decide(st).reason != ReasonOK || dialed.IsValid() && g.guard.check(c.host, dialed, c.port) != nil {
			c.end(ReasonPolicyChanged)
		}
	}
}
