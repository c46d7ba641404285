package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The tests of this file write the bounds as numbers of their own, so that a
// bound that was made larger by mistake is seen.

// askOver puts one question to the stub over an open TCP connection.
func askOver(t testing.TB, c net.Conn, name string) error {
	t.Helper()
	q := question(t, name, dnsmessage.TypeA)
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		return err
	}
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head)))
	return err
}

// E049: a session has sixteen DNS connections at a time; its neighbour has its own.
func TestE049ConnectionLimit(t *testing.T) {
	t.Parallel()
	const most = 16
	w := newWorld(t)
	g := w.gateway(nil)
	spec := Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}}
	b, neighbour := w.open(g, "greedy", spec), w.open(g, "neighbour", spec)
	var open []net.Conn
	for i := range most {
		c := b.mustDial("8.8.8.8:53")
		if err := askOver(t, c, "ok.example.com"); err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		open = append(open, c)
	}
	another := func(b *box) error {
		c, err := b.dial("tcp", "8.8.8.8:53")
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return askOver(t, c, "ok.example.com")
	}
	if err := another(b); err == nil {
		t.Errorf("connection %d was answered", most+1)
	}
	if err := another(neighbour); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	_ = open[0].Close()
	eventually(t, "an answer when one has ended", func() bool { return another(b) == nil })
}

// slow answers a question with its silence, after a time that no context ends.
type slow struct {
	takes time.Duration
	asked atomic.Int32
}

func (s *slow) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	s.asked.Add(1)
	time.Sleep(s.takes)
	return nil, context.DeadlineExceeded
}

// counting hears how long it may take for an answer.
type counting struct {
	asked   atomic.Int32
	longest atomic.Int64
}

func (c *counting) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	c.asked.Add(1)
	began := time.Now()
	<-ctx.Done()
	c.longest.Store(max(c.longest.Load(), int64(time.Since(began))))
	return nil, ctx.Err()
}

// E187: the guard's limits of time are its own: a resolver that says nothing has
// a share of the time for each of three questions, and one that does not heed the
// end of its question is not asked again when the time is over.
func TestE187OwnTimeLimit(t *testing.T) {
	t.Parallel()
	const limit = 3 * time.Second
	silent, late := &counting{}, &slow{takes: limit + time.Millisecond}
	host := mustHost(t, "a.example")
	for name, resolver := range map[string]Resolver{"silent": silent, "late": late} {
		g := testGuard(t, nil, func(c *Config) { c.Resolver, c.Limits.Resolve = resolver, limit })
		synctest.Test(t, func(t *testing.T) {
			// So that a lookup without a limit of its own ends too.
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			began := time.Now()
			if _, err := g.lookup(ctx, nil, host, 443); dialReason(err) != ReasonResolveFailed {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took > late.takes {
				t.Errorf("%s: took %v, want at most %v", name, took, late.takes)
			}
		})
	}
	if n, longest := silent.asked.Load(), time.Duration(silent.longest.Load()); n != 3 || longest != limit/3 {
		t.Errorf("the silent resolver: %d questions, the longest of %v; want 3 of %v", n, longest, limit/3)
	}
	if n := late.asked.Load(); n != 1 {
		t.Errorf("the late resolver was asked %d times, want once", n)
	}
}

// TestRelayRules: the kernel's rules in front of the relay are those of the
// policy of the moment and no others.
func TestRelayRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.gateway(nil)
	w.open(g, "r", Spec{Mode: ModeLimited})
	for i, step := range []struct {
		mode Mode
		want uint64
	}{{ModeLimited, 100}, {ModeUnrestricted, 50_000}, {ModeLimited, 100}, {ModeUnrestricted, 50_000}} {
		if err := g.Update(t.Context(), "r", mustCompile(t, Spec{Mode: step.mode})); err != nil {
			t.Fatal(err)
		}
		if got := relayRates(t, g, "r"); len(got) != 1 || got[0] != step.want {
			t.Errorf("step %d, %s: rules for %d datagrams a second, want one for %d", i+1, step.mode, got, step.want)
		}
	}
}

// relayRates reads the limits of the rules of a network's chain for the relay,
// in the order in which the kernel looks at them.
func relayRates(t *testing.T, g *Gateway, id string) (rates []uint64) {
	t.Helper()
	g.mu.Lock()
	s := g.slots[id]
	g.mu.Unlock()
	var rules []*nftables.Rule
	err := inNamespace(s.ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
		rules, err = c.GetRules(table, &nftables.Chain{Name: relayChain, Table: table})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if limit, ok := e.(*expr.Limit); ok {
				rates = append(rates, limit.Rate)
			}
		}
	}
	if len(rates) != len(rules) {
		t.Errorf("%d rules, %d of them with a limit", len(rules), len(rates))
	}
	return rates
}

// TestUDPWithoutPolicy: a slot that nobody has claimed refuses a datagram at
// once, as a plain matter of course, and keeps nothing of it.
func TestUDPWithoutPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log lockedBuffer
	g := w.gateway(func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	p, err := makePair(g.config.Limits)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	s, err := g.newSlot(p)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, at := range []string{"203.0.113.7:4000", "198.18.1.0:443", "10.0.0.5:53000"} {
		var c net.Conn
		err := inNamespace(p.runtime, func() (err error) {
			c, err = net.Dial("udp", at)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(c, []byte("x")); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want %v", at, err, unix.ECONNREFUSED)
		}
		_ = c.Close()
	}
	if said := log.String(); strings.Contains(said, "panic") {
		t.Errorf("the log says:\n%s", said)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.udpFlows) != 0 {
		t.Errorf("%d flows", len(s.udpFlows))
	}
}

// TestClientLimit: the server connects 64 times at once for one session, and for
// another one all the same.
func TestClientLimit(t *testing.T) {
	t.Parallel()
	const most = 64
	w := newWorld(t, "ok.example.com")
	g := w.gateway(nil)
	dial := func(id string) (net.Conn, error) {
		return g.DialContext(t.Context(), Client{ID: id, Source: SourceWebTool, Meta: Meta{SessionID: id},
			Policy: mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})}, "tcp", "ok.example.com:443")
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for i := range most {
		c, err := dial("greedy")
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		open = append(open, c)
	}
	if c, err := dial("greedy"); dialReason(err) != ReasonConnectionLimit {
		t.Errorf("connection %d: %v", most+1, err)
		if err == nil {
			_ = c.Close()
		}
	}
	rs, err := g.Records("greedy", Filter{Verdict: "refused"})
	if err != nil || len(rs) != 1 || rs[0].Reason != ReasonConnectionLimit || rs[0].Source != SourceWebTool {
		t.Errorf("records %+v %v", rs, err)
	}
	c, err := dial("neighbour")
	if err != nil {
		t.Fatalf("the neighbour: %v", err)
	}
	_ = c.Close()
	_ = open[0].Close()
	if open[0], err = dial("greedy"); err != nil {
		t.Fatalf("after one has ended: %v", err)
	}
	if fmt.Sprint(len(g.clientsOf("greedy")), len(g.clientsOf("neighbour"))) != "64 0" {
		t.Errorf("%d and %d clients", len(g.clientsOf("greedy")), len(g.clientsOf("neighbour")))
	}
}

// TestRefusedWithoutName: a hello that names nobody is recorded as just that, not
// as one with an invalid name.
func TestRefusedWithoutName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.limited("ok.example.com")
	if _, err := b.tls(b.mustDial("203.0.113.7:443"), ""); err == nil {
		t.Error("a bare address was reached")
	}
	if r := b.wantReason(ReasonNoMapping); r.ClaimedHost != "" || r.Protocol != "tls" {
		t.Errorf("recorded as %+v", r)
	}
}

// lockedBuffer takes a log from several goroutines.
type lockedBuffer struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
