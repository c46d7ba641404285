package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
)

// Client is a user of a session's policy on the server's side.
type Client struct {
	// ID is the network's. If there is one, served or suspended, its policy of the
	// moment and its Meta count, and the Client's do not.
	ID string
	// Source says who connects: SourceWebTool or SourceMCP.
	Source string
	// Meta is that of a network that is not open yet.
	Meta Meta
	// Policy is that of a network that is not open yet. Nil: until there is a
	// network, nothing is decided and [ErrNotFound] returned.
	Policy *Policy
}

// What a record's Source may be.
const (
	// SourceSandbox is a program in a session's sandbox.
	SourceSandbox = "sandbox"
	// SourceBuild is a program in a builder's sandbox.
	SourceBuild = "build"
	// SourceWebTool is a tool of the agent that fetches on the server.
	SourceWebTool = "web_tool"
	// SourceMCP is a connection of the server to an MCP server.
	SourceMCP = "mcp"
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
	if err := conn.open(ctx, c); err != nil {
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
	_, v := conn.decide(conn.st)
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
	conn := &clientConn{id: c.ID, connection: connection{gateway: g, protocol: "tcp", source: c.Source, start: g.now()}}
	conn.cut = conn.reset
	addr, err := netip.ParseAddr(name)
	if err != nil {
		if conn.host, err = Canonical(name); err != nil {
			conn.claimed = InvalidHost
		}
	}
	conn.dest = netip.AddrPortFrom(addr, uint16(port))
	return conn, nil
}

// clientConn is a connection of a client.
type clientConn struct {
	net.Conn // the bare interface, so that nothing goes round the counters; guarded by mu until open has returned
	connection
	id       string // of the network
	up, down atomic.Int64
}

// open decides, connects and records.
func (c *clientConn) open(ctx context.Context, client Client) (err error) {
	c.ctx, c.cancel = context.WithCancel(ctx)
	if c.st, err = c.gateway.clientState(client); err != nil {
		return err
	}
	if reason := c.gateway.addClient(c); reason == ReasonConnectionLimit {
		return c.refused(reason, errors.New("too many connections of the server for this session"))
	} else if reason != ReasonOK {
		return c.refused(reason, fmt.Errorf("%s is not allowed by the network policy of this environment", c.target()))
	}
	conn, err := c.dial()
	if err != nil {
		return c.refused(dialReason(err), err)
	}
	c.mu.Lock()
	c.Conn = conn
	c.mu.Unlock()
	if err := c.connected(conn); err != nil {
		c.reset()
		return c.refused(dialReason(err), err)
	}
	c.passes(conn, Record{})
	return nil
}

// target names what was dialled, in canonical form.
func (c *clientConn) target() string {
	switch {
	case !c.host.IsZero():
		return c.host.name
	case c.dest.IsValid():
		return c.dest.Addr().String()
	}
	return "an invalid host"
}

// refused ends a connection that was not made, and says why.
func (c *clientConn) refused(reason Reason, err error) error {
	c.gateway.dropClient(c)
	c.cancel()
	c.record(Record{Reason: reason, Rule: c.choice.rule})
	var d *DialError
	if errors.As(err, &d) {
		return d
	}
	return &DialError{reason, err}
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
	c.finish(c.up.Load(), c.down.Load())
	return c.Conn.Close()
}

// reset closes the connection, if it was made, without ceremony.
func (c *clientConn) reset() {
	c.mu.Lock()
	conn := c.Conn
	c.mu.Unlock()
	if conn != nil {
		reset(conn.(*net.TCPConn))
	}
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

// addClient decides on a client's connection and, if it is allowed, registers it,
// within the limit. The decision is made under the lock: enforceClients either
// finds the connection or came before it.
func (g *Gateway) addClient(c *clientConn) Reason {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.clients[c.id]
	if g.closed || len(all) >= maxClients {
		return ReasonConnectionLimit
	}
	if now := g.stateOf(c.id); now != nil {
		c.st = now
	}
	if c.host, c.choice = c.decide(c.st); c.choice.reason != ReasonOK {
		return c.choice.reason
	}
	if !g.config.Descriptors.Take(c.id, clientDescriptors) {
		return ReasonConnectionLimit
	}
	if all == nil {
		all = map[*clientConn]bool{}
		g.clients[c.id] = all
	}
	all[c] = true
	return ReasonOK
}

// dropClient takes a client's connection out of the register; it may not be in it.
func (g *Gateway) dropClient(c *clientConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.clients[c.id][c] {
		return
	}
	g.config.Descriptors.Give(c.id, clientDescriptors)
	delete(g.clients[c.id], c)
	if len(g.clients[c.id]) == 0 {
		delete(g.clients, c.id)
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
		if !c.allowed(cmp.Or(g.current(id), c.st)) {
			c.end(ReasonPolicyChanged)
		}
	}
}
