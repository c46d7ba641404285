package egress

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// connection is a connection under a policy, whoever asks for it: a TCP
// connection of a sandbox ([flow]), the datagrams between a port of a sandbox
// and one destination ([udpFlow]), or a connection of the server on a session's
// behalf ([clientConn]). They differ in how bytes are moved and in what a refused
// program is told, and have everything else from here:
//
//	decide     what policy and operator say about the destination
//	dial       connect, through the guard
//	connected  note where bytes go, unless the connection was ended meanwhile
//	allowed    decide again, after policy or operator changed
//	end        close from outside, because that is so or the session is over
//	record     write down what was decided
//	finish     complete the record at the connection's own end
//
// Whoever admits a connection decides on it and registers it under one lock, and
// whoever changes a policy changes it first and then takes that lock to find the
// connections that are to end. So each connection is either found or was decided
// by what holds now.
type connection struct {
	gateway  *Gateway
	protocol string         // "tcp" or "udp"
	source   string         // SourceWebTool or SourceMCP; empty: a sandbox, whose records have the source of the network's Meta
	dest     netip.AddrPort // as it was addressed; no address where the server named a host; zero if unknown
	claimed  string         // InvalidHost where the server named a host that is none, else empty
	start    time.Time
	ctx      context.Context // ends with the connection
	cancel   context.CancelFunc
	cut      func() // closes what is open, without ceremony; called by any goroutine, more than once

	// The decision that the connection was admitted under. Whoever admits it
	// writes these before others see it.
	st     *state
	host   Host // the name that dest stands for or that the server named, or zero
	choice verdict

	// asked is the address that told its keys for encrypted hellos; dial goes
	// there. The zero value means that none was asked. Only the goroutine that
	// dials uses it.
	asked netip.Addr

	mu     sync.Mutex // guards what follows
	dialed netip.Addr // where bytes go; zero: not connected, or not any more
	kept   *Record    // of the connection as a whole, to be completed at its end; nil: none
	ended  Reason     // why it was closed from outside, or empty
	told   bool       // there is a record of that end
}

// names says what name the destination stands for in a state, or why it stands
// for nothing that could be allowed. ReasonOK without a name is a bare address.
func (c *connection) names(st *state) (Host, Reason) {
	addr := c.dest.Addr()
	switch {
	case c.claimed != "":
		return Host{}, ReasonNameNotAllowed
	case c.source != "":
		return c.host, ReasonOK
	case !c.dest.IsValid() || addr == netip.MustParseAddr(gatewayAddress):
		return Host{}, ReasonNoMapping
	case addr == refusalAddress():
		return Host{}, ReasonNameNotAllowed
	}
	host, _ := st.names.host(addr)
	return host, ReasonOK
}

// decide says what a state's policy and the operator make of the connection, and
// the name that this is about, if there is one.
func (c *connection) decide(st *state) (Host, verdict) {
	rules := c.gateway.guard.rules.Load()
	host, reason := c.names(st)
	v := verdict{reason: reason}
	switch {
	case reason != ReasonOK:
	case host.IsZero():
		v = rules.decideAddress(st.policy, c.dest.Port())
	default:
		v = rules.decide(st.policy, host, c.dest.Port(), c.source)
		if v.reason == ReasonNameNotAllowed && c.source == "" {
			v.reason = ReasonStaleMapping // it had an address, so it was allowed once
		}
	}
	if c.protocol == "udp" && st.policy.Mode() != ModeUnrestricted {
		v = verdict{reason: ReasonUDPNotAllowed}
	}
	return host, v
}

// dial connects to the destination, through the guard.
func (c *connection) dial() (net.Conn, error) {
	g, port := c.gateway.guard, c.dest.Port()
	if c.asked.IsValid() {
		return g.dialAny(c.ctx, c.protocol, c.host, []netip.Addr{c.asked}, port)
	}
	if !c.host.IsZero() {
		return g.dial(c.ctx, c.protocol, c.st.answers, c.host, port)
	}
	addrs := []netip.Addr{c.dest.Addr()}
	if _, err := g.withoutUnknown(c.ctx, Host{}, addrs, port); err != nil {
		return nil, &DialError{ReasonResolveFailed, err}
	}
	if err := g.check(Host{}, addrs[0], port); err != nil {
		return nil, err
	}
	return g.dialAny(c.ctx, c.protocol, Host{}, addrs, port)
}

// connected notes where the connection's bytes go. The address is checked once
// more: who changed the rules while it was dialled did not find it here.
func (c *connection) connected(up net.Conn) error {
	addr := remoteIP(up)
	c.mu.Lock()
	ended := c.ended
	if ended == "" {
		c.dialed = addr
	}
	c.mu.Unlock()
	if ended != "" {
		return &DialError{ended, errors.New("the network policy changed")}
	}
	return c.gateway.guard.check(c.host, addr, c.dest.Port())
}

func remoteIP(c net.Conn) netip.Addr {
	at, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // the kernel's own words
	return at.Addr().Unmap()
}

// allowed tells whether the connection would be allowed now as it was when it
// was admitted. A connection that was refused then is to get its answer, even if
// the policy has changed since.
func (c *connection) allowed(st *state) bool {
	if c.choice.reason != ReasonOK {
		return true
	}
	if _, v := c.decide(st); v.reason != ReasonOK {
		return false
	}
	c.mu.Lock()
	dialed := c.dialed
	c.mu.Unlock()
	return !dialed.IsValid() || c.gateway.guard.check(c.host, dialed, c.dest.Port()) == nil
}

// end closes the connection from outside, and records why if bytes were passing.
func (c *connection) end(reason Reason) {
	c.mu.Lock()
	tell := c.ended == "" && c.dialed.IsValid()
	c.ended, c.told = reason, c.told || tell
	c.mu.Unlock()
	if tell {
		c.gateway.record(c.st, c.about(Record{Reason: reason}))
	}
	c.cancel()
	c.cut()
}

// over says that no more bytes pass. Who closes a connection that has come to
// its own end says so first: nothing from outside ends it then.
func (c *connection) over() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialed = netip.Addr{}
}

// about fills in what every record of the connection says.
func (c *connection) about(r Record) Record {
	if r.Time.IsZero() {
		r.Time = c.start
	}
	r.Host, r.Source, r.DestPort = c.host.name, c.source, int(c.dest.Port())
	r.Protocol, r.ClaimedHost = cmp.Or(r.Protocol, c.protocol), cmp.Or(r.ClaimedHost, c.claimed)
	if c.dest.Addr().IsValid() {
		r.DestAddress = c.dest.Addr().String()
	}
	return r
}

// record writes a decision about the connection down. Of a connection that was
// ended from outside, the record says that and nothing else.
func (c *connection) record(r Record) *Record {
	c.mu.Lock()
	r.Reason = cmp.Or(c.ended, r.Reason)
	told := c.told
	c.mu.Unlock()
	if told {
		return nil
	}
	return c.gateway.record(c.st, c.about(r))
}

// passes records that the connection was made. finish completes the record.
func (c *connection) passes(up net.Conn, r Record) {
	r.Reason, r.Rule, r.DialedAddress = ReasonOK, c.choice.rule, up.RemoteAddr().String()
	kept := c.record(r)
	c.mu.Lock()
	c.kept = kept
	c.mu.Unlock()
}

// finish says that the connection has come to its own end, and completes its
// record with the bytes that went each way. Only the first call counts.
func (c *connection) finish(sent, received int64) {
	c.over()
	c.mu.Lock()
	kept := c.kept
	c.kept = nil
	c.mu.Unlock()
	if kept != nil {
		c.st.journal.finish(kept, sent, received)
	}
}

// dialReason is why a connection was not made.
func dialReason(err error) Reason {
	var d *DialError
	if errors.As(err, &d) {
		return d.Reason
	}
	return ReasonConnectFailed
}
