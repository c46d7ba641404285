package security

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// attempt is one run of a case: one number, one mode, one place. At its end
// everything that the stand saw must have been expected by it.
type attempt struct {
	*testing.T
	s      *stand
	number string
	quiet  map[string]bool // kinds of decision that are not counted
	notes  []string        // for the table
	loose  bool            // packets to any address of the stand are expected
}

// try runs one case of the matrix.
func (s *stand) try(t *testing.T, number string, f func(c *attempt)) {
	t.Helper()
	if *only != "" && number != *only {
		return
	}
	t.Run(number, func(t *testing.T) {
		c := &attempt{T: t, s: s, number: number, quiet: map[string]bool{}}
		defer func() { note(c, t.Failed(), t.Skipped()) }()
		c.finish("before this case")
		if t.Failed() {
			return
		}
		defer func() {
			if t.Failed() {
				for text := range strings.Lines(s.log.String()) {
					if strings.Contains(text, "not connected") || strings.Contains(text, "panic") {
						t.Log(text)
					}
				}
			}
		}()
		f(c)
		c.finish("and no case expected it")
	})
}

// finish fails the case for whatever is left that nothing expected.
func (c *attempt) finish(when string) {
	c.Helper()
	world.settle()
	s := c.s
	s.mu.Lock()
	var decisions []string
	for _, d := range s.decisions {
		if !c.quiet[d.Protocol] {
			decisions = append(decisions, s.describe(d))
		}
	}
	seen, asked, packets := s.seen, s.asked, s.packets
	s.decisions, s.seen, s.asked, s.packets = nil, nil, nil, nil
	s.mu.Unlock()
	for what, left := range map[string][]string{
		"decisions": decisions, "upstream": seen, "the resolver was asked": asked, "strays": world.takeStrays(),
	} {
		if len(left) > 0 {
			c.Errorf("%s: %q, %s", what, left, when)
		}
	}
	if !c.loose && len(packets) > 0 {
		c.Errorf("packets: %q, %s", packets, when)
	}
}

// unowned leaves decisions of a protocol uncounted: for cases that make so many
// that the counts are checked in another way.
func (c *attempt) unowned(protocols ...string) {
	for _, p := range protocols {
		c.quiet[p] = true
	}
}

// note adds words to the case's line in the table.
func (c *attempt) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// decided asserts that exactly these decisions were made, in any order.
func (c *attempt) decided(want ...string) {
	c.Helper()
	s := c.s
	var got []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got = got[:0]
		for _, d := range s.decisions {
			if !c.quiet[d.Protocol] {
				got = append(got, s.describe(d))
			}
		}
		if len(got) >= len(want) || time.Now().After(deadline) {
			s.decisions = nil
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		c.Errorf("decisions (-want +got):\n%s", cmp.Diff(want, got))
	}
	for _, w := range want {
		reason := strings.Fields(w)[1]
		if !slices.Contains(c.notes, reason) && reason != "ok" {
			c.notes = append(c.notes, reason)
		}
	}
}

// upstream asserts that exactly this reached the stand's upstreams, in any
// order, and that the host sent packets to where names resolve and nowhere else.
func (c *attempt) upstream(want ...string) {
	c.Helper()
	s := c.s
	var got []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got = slices.Sorted(slices.Values(s.seen))
		if len(got) >= len(want) || time.Now().After(deadline) {
			s.seen = nil
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
	}
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		c.Errorf("upstream saw (-want +got):\n%s", cmp.Diff(want, got))
	}
	c.packets(func(p string) bool { return strings.HasPrefix(p, "tcp up:") })
}

// packets takes note of the packets that were sent; each must be expected.
func (c *attempt) packets(expected func(string) bool) {
	c.Helper()
	world.settle()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, p := range c.s.packets {
		if !expected(p) {
			c.Errorf("the host sent a packet: %s", p)
		}
	}
	c.s.packets = nil
}

// sent asserts which packets the host sent.
func (c *attempt) sent(want ...string) {
	c.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		c.s.mu.Lock()
		got := slices.Sorted(slices.Values(c.s.packets))
		if len(got) >= len(want) || time.Now().After(deadline) {
			c.s.packets = nil
			c.s.mu.Unlock()
			if slices.Sort(want); !slices.Equal(got, want) {
				c.Errorf("packets (-want +got):\n%s", cmp.Diff(want, got))
			}
			return
		}
		c.s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

// asked asserts which names the resolver was asked for, without repetitions.
func (c *attempt) asked(want ...string) {
	c.Helper()
	c.s.mu.Lock()
	got := slices.Compact(slices.Sorted(slices.Values(c.s.asked)))
	c.s.asked = nil
	c.s.mu.Unlock()
	for i := range want {
		want[i] += "."
	}
	if slices.Sort(want); !slices.Equal(got, want) {
		c.Errorf("the resolver was asked (-want +got):\n%s", cmp.Diff(want, got))
	}
}

// passed asserts the usual outcome of one allowed connection or request.
func (c *attempt) passed(decision string, upstream ...string) {
	c.Helper()
	c.decided(decision)
	c.upstream(upstream...)
	host, _, _ := strings.Cut(strings.Fields(decision)[2], ":")
	c.asked(host)
}

// address asks for a name that is allowed.
func (c *attempt) address(name string) string {
	c.Helper()
	a := c.s.lookup(c, name)
	if a == "198.18.0.1" {
		c.Fatalf("%s has the refusal address", name)
	}
	return a
}

// refused asks for a name that is not allowed, and expects the record of that.
func (c *attempt) refused(name string) string {
	c.Helper()
	a := c.s.lookup(c, name)
	if a != "198.18.0.1" {
		c.Fatalf("%s is %s, want the refusal address", name, a)
	}
	c.decided("dns name_not_allowed " + strings.ToLower(strings.TrimSuffix(name, ".")))
	return a
}

// talk connects to an address, sends, and reads to the end.
func (c *attempt) talk(address, send string) wire.Reply {
	c.Helper()
	return c.s.probe.do(c, wire.Request{Op: "talk", Address: address, Data: []byte(send)})
}

func (c *attempt) do(r wire.Request) wire.Reply {
	c.Helper()
	return c.s.probe.do(c, r)
}

// at joins an address and a port.
func at[P int | uint16](address string, port P) string {
	a := netip.MustParseAddr(address)
	return netip.AddrPortFrom(a, uint16(port)).String()
}

// wantReset expects that a connection was reset, before or after it was made,
// and that nothing came over it.
func (c *attempt) wantReset(r wire.Reply) {
	c.Helper()
	if r.End != "reset" && r.End != "refused" || len(r.Data) > 0 {
		c.Errorf("got %s, want a reset", told(r))
	}
}

// wantAlert expects the alert access_denied, in the client's own words.
func (c *attempt) wantAlert(r wire.Reply) {
	c.Helper()
	if r.End != "alert" || !strings.Contains(r.Error, "access denied") {
		c.Errorf("got %s, want the alert access_denied", told(r))
	}
}

// alertBytes is the alert as it is on the wire.
const alertBytes = "\x15\x03\x03\x00\x02\x02\x31"

func (c *attempt) wantRawAlert(r wire.Reply) {
	c.Helper()
	if string(r.Data) != alertBytes {
		c.Errorf("got %s, want the alert access_denied", told(r))
	}
}

// want403 expects the refusal of plain HTTP that names this.
func (c *attempt) want403(r wire.Reply, name string) {
	c.Helper()
	c.wantStatus(r, "403")
	text := string(r.Data)
	if !strings.Contains(text, "access to "+name+" was refused by the network policy") && !strings.Contains(text, "the request to "+name+" was not passed on") {
		c.Errorf("got %s, want a refusal that names %s", told(r), name)
	}
}

// wantStatus expects an HTTP answer.
func (c *attempt) wantStatus(r wire.Reply, status string) {
	c.Helper()
	if head := string(r.Data); !strings.HasPrefix(head, "HTTP/1.1 "+status+" ") && !strings.HasPrefix(head, "HTTP/1.0 "+status+" ") {
		c.Errorf("got %s, want HTTP %s", told(r), status)
	}
}

func told(r wire.Reply) string {
	return fmt.Sprintf("%.300q, end %s, error %q, after %d ms", r.Data, r.End, r.Error, r.Millis)
}

// httpGet is a plain request on a connection that ends with it.
func httpGet(host string) string {
	return "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
}

// tlsAs shakes hands as a client that trusts the internet's authority.
func tlsAs(name string) *wire.TLS { return &wire.TLS{Name: name, Roots: certificates().roots} }

// records reads the stand's records, as users do.
func (s *stand) records(t testing.TB, f egress.Filter) []egress.Record {
	t.Helper()
	out, err := s.gw.Records(s.id, f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// result is what one attempt came to.
type result struct {
	number, mode, place string
	failed, skipped     bool
	notes               string
}

var results struct {
	mu  sync.Mutex
	all []result
}

func note(c *attempt, failed, skipped bool) {
	results.mu.Lock()
	defer results.mu.Unlock()
	results.all = append(results.all, result{c.number, c.s.mode, c.s.place, failed, skipped, strings.Join(c.notes, ", ")})
}
