package egress

import (
	"context"
	"net"
	"net/netip"
	"testing"
)

// openConnection is a connection of a sandbox to ok.example.com, admitted and
// not yet dialled, and the upstream that it would reach.
func openConnection(t *testing.T, protocol string, mode Mode) (*connection, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	up, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = up.Close() })
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	spec := Spec{Mode: mode}
	if mode == ModeLimited {
		spec.Endpoints = []Endpoint{{Host: testHost("ok.example.com"), Port: int(port), Rule: "mcp:x"}}
	}
	s := bareSlot(t, spec, &fakeResolver{}, Limits{}, func(c *Config) {
		c.Exempt = []Exemption{{Host: "ok.example.com", CIDR: netip.MustParsePrefix("127.0.0.1/32"), Ports: []int{int(port)}}}
	})
	st := s.state.Load()
	if err := st.names.list([]Host{mustHost(t, "ok.example.com")}); err != nil {
		t.Fatal(err)
	}
	c := s.connection(protocol, netip.AddrPortFrom(syntheticAddr(0), port), st)
	c.cut = func() {}
	if reason := s.admit(&c, 0, func() bool { return true }, func() {}); reason != ReasonOK {
		t.Fatalf("not admitted: %s", reason)
	}
	return &c, up
}

// reasonsOf are the reasons of a connection's records, the oldest first, each as
// often as it was counted.
func reasonsOf(c *connection) (out []Reason) {
	all := c.st.journal.list(Filter{})
	for i := len(all) - 1; i >= 0; i-- {
		for range all[i].Count {
			out = append(out, all[i].Reason)
		}
	}
	return out
}

// A connection that is ended from outside has one record of that, whenever the
// end comes, and none if it had come to its own end before.
func TestConnectionEnd(t *testing.T) {
	t.Parallel()
	const end = ReasonPolicyChanged
	for name, tt := range map[string]struct {
		run  func(t *testing.T, c *connection, up net.Conn)
		want []Reason
	}{
		"while it is dialled": {func(t *testing.T, c *connection, up net.Conn) {
			c.end(end)
			err := c.connected(up)
			if dialReason(err) != end || c.ctx.Err() == nil {
				t.Errorf("connected: %v, context: %v", err, c.ctx.Err())
			}
			c.record(Record{Reason: ReasonConnectFailed, Protocol: "tls"})
		}, []Reason{end}},
		"before its record": {func(t *testing.T, c *connection, up net.Conn) {
			if err := c.connected(up); err != nil {
				t.Error(err)
			}
			c.end(end)
			c.passes(up, Record{Protocol: "tls"})
			c.finish(1, 2)
		}, []Reason{end}},
		"while bytes pass": {func(t *testing.T, c *connection, up net.Conn) {
			if err := c.connected(up); err != nil {
				t.Error(err)
			}
			c.passes(up, Record{})
			c.end(end)
			c.end(ReasonSessionEnded)
			c.finish(1, 2)
		}, []Reason{ReasonOK, end}},
		"after its own end": {func(t *testing.T, c *connection, up net.Conn) {
			if err := c.connected(up); err != nil {
				t.Error(err)
			}
			c.passes(up, Record{})
			c.finish(1, 2)
			c.finish(100, 200)
			c.end(end)
		}, []Reason{ReasonOK}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, up := openConnection(t, "tcp", ModeLimited)
			cuts := 0
			c.cut = func() { cuts++ }
			tt.run(t, c, up)
			got := reasonsOf(c)
			if len(got) != len(tt.want) {
				t.Fatalf("records %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Fatalf("records %v, want %v", got, tt.want)
				}
			}
			if cuts == 0 {
				t.Error("not closed")
			}
			for _, r := range c.st.journal.list(Filter{Verdict: string(VerdictAllowed)}) {
				if r.BytesUp != 1 || r.BytesDown != 2 || r.Host != "ok.example.com" || r.DestAddress != syntheticAddr(0).String() || r.DestPort != int(c.dest.Port()) || r.DialedAddress != up.RemoteAddr().String() || r.Rule != "mcp:x" {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// What holds now decides about each open connection: the policy for its name,
// and the guard for where its bytes go. A refused one is let be.
func TestConnectionAllowed(t *testing.T) {
	t.Parallel()
	c, up := openConnection(t, "tcp", ModeLimited)
	if err := c.connected(up); err != nil {
		t.Fatal(err)
	}
	closed := *c.st
	closed.policy = mustCompile(t, Spec{Mode: ModeLimited})
	if !c.allowed(c.st) || c.allowed(&closed) {
		t.Errorf("under its policy %t, under an empty one %t", c.allowed(c.st), c.allowed(&closed))
	}
	if _, v := c.decide(&closed); v.reason != ReasonStaleMapping {
		t.Errorf("decided anew: %+v", v)
	}
	none, err := compileRules(Config{Resolver: &fakeResolver{}})
	if err != nil {
		t.Fatal(err)
	}
	c.gateway.guard.rules.Store(none) // without the exemption of the upstream's address
	if c.allowed(c.st) {
		t.Error("the address that bytes go to is not checked anew")
	}
	if err := c.connected(up); dialReason(err) != ReasonAddressNotPublic {
		t.Errorf("an address that was refused while it was dialled: %v", err)
	}
	c.choice = verdict{reason: ReasonNameNotAllowed}
	if !c.allowed(&closed) {
		t.Error("a refused connection does not get its answer")
	}
}

// Datagrams pass under mode unrestricted only, also where the policy opens name
// and port.
func TestConnectionUDP(t *testing.T) {
	t.Parallel()
	c, up := openConnection(t, "udp", ModeUnrestricted)
	if err := c.connected(up); err != nil || c.choice.reason != ReasonOK {
		t.Fatalf("%v, %+v", err, c.choice)
	}
	for _, mode := range []Mode{ModeLimited, ModeBuild, ModeObserve} {
		other := *c.st
		other.policy = mustCompile(t, Spec{Mode: mode, Endpoints: []Endpoint{{Host: testHost("ok.example.com"), Port: int(c.dest.Port()), Rule: "mcp:x"}}})
		if host, v := c.decide(&other); host.String() != "ok.example.com" || v.reason != ReasonUDPNotAllowed || c.allowed(&other) {
			t.Errorf("%s: %s %+v", mode, host, v)
		}
	}
	if _, err := c.dial(); err == nil {
		t.Error("a name that the resolver does not know was reached")
	}
	c.cancel()
	if c.ctx.Err() != context.Canceled {
		t.Error(c.ctx.Err())
	}
}
