package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// smallBudget is a Descriptors that leaves each holder the same share.
type smallBudget struct {
	share int64

	mu   sync.Mutex
	used map[string]int64 // holder → what it has
	most map[string]int64 // holder → the most it had
}

func newSmallBudget(share int64) *smallBudget {
	return &smallBudget{share: share, used: map[string]int64{}, most: map[string]int64{}}
}

func (b *smallBudget) Take(holder string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used[holder]+n > b.share {
		return false
	}
	b.used[holder] += n
	b.most[holder] = max(b.most[holder], b.used[holder])
	return true
}

func (b *smallBudget) Give(holder string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used[holder] -= n
}

func (b *smallBudget) of(holder string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used[holder]
}

// muteFor is a resolver that never answers for one name.
type muteFor struct {
	*fakeResolver
	name string
}

func (m muteFor) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if host == m.name+"." {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return m.fakeResolver.LookupNetIP(ctx, network, host)
}

// TestDescriptorsAreShared: connections, those of a zone that never answers
// included, UDP flows and DNS connections of one session take from its share of
// the descriptors; its neighbour has its own, and all are returned.
func TestDescriptorsAreShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "mute.example.com")
	w.know("udp.example.com", 5000)
	budget := newSmallBudget(40)
	g := w.gateway(func(c *Config) {
		c.Descriptors = budget
		c.Resolver = muteFor{w.resolver, "mute.example.com"}
		c.Limits.Resolve = time.Minute
	})
	spec := Spec{Mode: ModeUnrestricted}
	b, neighbour := w.open(g, "greedy", spec), w.open(g, "neighbour", spec)
	if got := budget.of("greedy"); got != 8 {
		t.Errorf("a network takes %d descriptors, want 8", got)
	}
	silent, ok := b.resolve("mute.example.com"), b.resolve("ok.example.com")
	// Three connections that wait for the resolver, one that talks, take 4×6.
	var open []net.Conn
	for range 3 {
		c := b.mustDial(silent + ":443")
		go func() { _, _ = b.tls(c, "mute.example.com") }() // ends with the connection
		open = append(open, c)
	}
	eventually(t, "three connections are counted", func() bool { return budget.of("greedy") == 8+3*6 })
	c := b.mustDial(ok + ":443")
	if _, err := b.tls(c, "ok.example.com"); err != nil {
		t.Fatalf("a connection within the share: %v", err)
	}
	open = append(open, c)
	eventually(t, "four connections are counted", func() bool { return budget.of("greedy") == 8+4*6 })
	dns := b.mustDial("8.8.8.8:53")
	if err := askOver(t, dns, "ok.example.com"); err != nil {
		t.Fatalf("a DNS connection within the share: %v", err)
	}
	open = append(open, dns)
	udp, err := b.dial("udp", b.resolve("udp.example.com")+":5000")
	if err != nil {
		t.Fatal(err)
	}
	open = append(open, udp)
	eventually(t, "a UDP flow is counted", func() bool {
		_, _ = udp.Write([]byte("x"))
		return budget.of("greedy") == 8+4*6+1+2
	})
	// 35 of 40 are taken: no connection has room any more.
	if c, err := b.dial("tcp", ok+":443"); err == nil {
		if _, err := b.tls(c, "ok.example.com"); err == nil {
			t.Error("a connection beyond the share was made")
		}
	}
	b.wantReason(ReasonConnectionLimit)
	c = neighbour.mustDial(neighbour.resolve("ok.example.com") + ":443")
	if _, err := neighbour.tls(c, "ok.example.com"); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	_ = c.Close()
	for _, c := range open {
		_ = c.Close()
	}
	for _, id := range []string{"greedy", "neighbour"} {
		if err := g.Close(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		if got := budget.of(id); got != 0 {
			t.Errorf("%s: %d descriptors were not returned", id, got)
		}
	}
}

// TestNoDescriptorsForANetwork: a network for which there are none is not
// opened, and nothing of it stays.
func TestNoDescriptorsForANetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	budget := newSmallBudget(4)
	g := w.gateway(func(c *Config) { c.Descriptors = budget })
	policy, err := Compile(Spec{Mode: ModeLimited})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Open(context.Background(), "n", Meta{SessionID: "n", Source: SourceSandbox}, policy); !errors.Is(err, ErrDescriptors) {
		t.Errorf("Open without descriptors: %v", err)
	}
	ids, err := g.List(context.Background())
	if err != nil || len(ids) != 0 || budget.of("n") != 0 {
		t.Errorf("left: %v, %d descriptors, %v", ids, budget.of("n"), err)
	}
}
