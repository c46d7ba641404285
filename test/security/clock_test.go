package security

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// steppedClock is a clock whose wall time is set back and forth, as an operator
// or a time server does it: what elapses goes on as before. The clock of the
// machine is not touched, for it is everybody's.
type steppedClock struct{ seconds atomic.Int64 }

// now is time.Now with other seconds in its wall clock. No function of package
// time makes such a time, so its first word is changed, in which they begin at
// bit 30; that it came out as meant is asserted.
func (c *steppedClock) now() time.Time {
	t, step := time.Now(), c.seconds.Load()
	stepped := t
	*(*uint64)(unsafe.Pointer(&stepped)) += uint64(step) << 30
	if stepped.Sub(t) != 0 || stepped.Unix()-t.Unix() != step {
		panic("a time is not what this test takes it for")
	}
	return stepped
}

// E228: the wall clock jumps an hour each way.
func TestClock(t *testing.T) {
	t.Parallel()
	var clocks sync.Map // *egress.Config → *steppedClock
	for mode, spec := range allModes() {
		everywhereNamed(t, mode, mode, spec, func(c *egress.Config) {
			quick(c)
			clock := &steppedClock{}
			clocks.Store(c, clock)
			c.Now = clock.now
			c.Limits.Hello, c.Limits.UDPIdle = 5*time.Second, 8*time.Second
		}, func(t *testing.T, s *stand) {
			clock, _ := clocks.Load(&s.config)
			s.try(t, "E228", func(c *attempt) { c.jumps(&clock.(*steppedClock).seconds) })
		})
	}
}

func (c *attempt) jumps(clock *atomic.Int64) {
	s := c.s
	const hour = 3600
	c.unowned("tcp", "tls", "http", "udp") // counted below, in the records
	address := c.address("ok.example.com")
	tls := func() wire.Reply {
		return c.do(wire.Request{Op: "talk", Address: at(address, 443), TLS: tlsAs("ok.example.com"), Max: -1, Keep: true})
	}
	use := func(r wire.Reply) {
		c.Helper()
		c.wantStatus(c.do(wire.Request{Op: "talk", Conn: r.Conn, Data: []byte(httpGet("ok.example.com"))}), "200")
	}
	refused := at("10.0.0.5", 8080)
	datagrams := netip.AddrPortFrom(s.raw, 7)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := world.udpEcho(ctx, datagrams, func(netip.AddrPort, []byte) {}); err != nil {
		c.Fatal(err)
	}
	echo := wire.Request{Op: "talk", Network: "udp4", Address: datagrams.String(), Data: []byte("x"), Keep: true}
	echoed := func() {
		c.Helper()
		if s.mode != "U" {
			return
		}
		r := c.do(echo)
		if string(r.Data) != "echo:x" {
			c.Errorf("a datagram: %s", told(r))
		}
		echo.Conn = r.Conn
	}

	// What is under way when the clock goes forward goes on.
	one, two := tls(), tls()
	c.wantReset(c.talk(refused, "x"))
	echoed()
	hello := helloAs(c, "ok.example.com")
	half := c.do(wire.Request{Op: "talk", Address: at(address, 443), Data: hello[:50], Max: -1, Keep: true})
	clock.Store(hour)
	echoed()
	if r := c.do(wire.Request{Op: "talk", Conn: half.Conn, Data: hello[50:], Max: 1}); s.mode != "U" && !strings.HasPrefix(string(r.Data), "\x16") {
		c.Errorf("half a hello, and the rest: %s", told(r))
	}
	use(one)
	c.wantReset(c.talk(refused, "x"))
	three := tls()

	// And so it does when it goes back; what is late is late nevertheless.
	half = c.do(wire.Request{Op: "talk", Address: at(address, 443), Data: hello[:50], Max: -1, Keep: true})
	clock.Store(-hour)
	echoed()
	use(two)
	use(three)
	c.wantReset(c.talk(refused, "x"))
	if s.mode != "U" {
		if r := c.do(wire.Request{Op: "talk", Conn: half.Conn}); r.End == "timeout" {
			c.Errorf("half a hello stays open: %s", told(r))
		}
	}
	if s.mode == "U" {
		eventually(c, "the end of the flow", func() bool {
			flows := c.recorded(func(r egress.Record) bool { return r.Protocol == "udp" })
			return len(flows) == 1 && flows[0].BytesDown == 3*int64(len("echo:x")) && flows[0].DurationMS > 0
		})
	}
	four := tls()
	use(four)
	c.sane()
	c.packets(func(p string) bool { return strings.HasPrefix(p, "tcp up:") || p == "udp raw:7" })
	c.upstream("GET https ok.example.com/ 0", "GET https ok.example.com/ 0", "GET https ok.example.com/ 0", "GET https ok.example.com/ 0")
	c.asked("ok.example.com")
}

// recorded are the kept records that fit, newest first.
func (c *attempt) recorded(fits func(egress.Record) bool) (out []egress.Record) {
	c.Helper()
	for _, r := range c.s.records(c, egress.Filter{}) {
		if fits(r) {
			out = append(out, r)
		}
	}
	return out
}

// sane expects records in order, whatever the clock said, with durations that
// nothing but time made.
func (c *attempt) sane() {
	c.Helper()
	s := c.s
	all := c.recorded(func(egress.Record) bool { return true })
	var paged []string
	for before := ""; ; {
		page := s.records(c, egress.Filter{Limit: 2, Before: before})
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			paged = append(paged, r.ID)
		}
		before = page[len(page)-1].ID
	}
	hours := map[float64]bool{}
	for i, r := range all {
		if i > 0 && all[i-1].ID <= r.ID || i >= len(paged) || paged[i] != r.ID {
			c.Errorf("records are out of order: %s, page by page %v", r.ID, paged)
		}
		if r.DurationMS < 0 || r.DurationMS > 600_000 {
			c.Errorf("a duration of %d ms: %s", r.DurationMS, s.describe(r))
		}
		hours[math.Round(r.Time.Round(0).Sub(time.Now().Round(0)).Hours())] = true
		if r.DestAddress == "10.0.0.5" && r.Count != 3 {
			c.Errorf("three refusals in a moment are %d: %s", r.Count, fmt.Sprint(r))
		}
	}
	if !hours[0] || !hours[1] {
		c.Errorf("the clock has not jumped: %v", hours)
	}
}
