package security

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// E235: four sandboxes that download as fast as they can, at once. How much
// each gets to the percent is a figure of make bench; that none starves is not.
func TestFair(t *testing.T) {
	t.Parallel()
	spec := limited("big.example.com")
	everywhere(t, "L", spec, func(c *egress.Config) {
		c.OpenPorts = []egress.OpenPort{{Host: "big.example.com", Ports: []int{3306}}}
	}, func(t *testing.T, s *stand) {
		s.try(t, "E235", func(c *attempt) {
			const all = 128 << 20
			var mu sync.Mutex
			var sent []*atomic.Int64 // of each connection
			var stop atomic.Bool
			counts := func() (out []int64) {
				mu.Lock()
				defer mu.Unlock()
				for _, n := range sent {
					out = append(out, n.Load())
				}
				return out
			}
			place := netip.AddrPortFrom(s.address(0, 6), 3306)
			s.resolves("big.example.com", place.Addr().String())
			world.handle(place, func(conn netConn) {
				n := &atomic.Int64{}
				mu.Lock()
				sent = append(sent, n)
				mu.Unlock()
				for block := make([]byte, 64<<10); !stop.Load(); {
					m, err := conn.Write(block)
					if err != nil {
						return
					}
					n.Add(int64(m))
				}
			})
			address := at(c.address("big.example.com"), 3306)
			probes := []*probe{s.probe}
			for i := range 3 {
				id := fmt.Sprintf("%sf%d", s.id, i)
				probes = append(probes, startProbe(c, s.place, id, s.network(c, id, spec)))
				if r := probes[i+1].do(c, wire.Request{Op: "talk", Network: "udp4", Address: "169.254.100.1:53", Data: question(c, "big.example.com", 1)}); r.End != "more" {
					c.Fatalf("asking for the name: %s", told(r))
				}
			}
			var downloads []<-chan wire.Reply
			for _, p := range probes {
				downloads = append(downloads, p.start(c, wire.Request{Op: "stream", Address: address, WaitMS: 120_000}))
			}
			eventually(c, "all four to have begun", func() bool {
				n := counts()
				return len(n) == len(probes) && slices.Min(n) > 0
			})
			begin := counts()
			eventually(c, "enough bytes", func() bool {
				total := int64(0)
				for i, n := range counts() {
					total += n - begin[i]
				}
				return total >= all
			})
			end := counts()
			stop.Store(true)
			for i, n := range end {
				if got := n - begin[i]; got < all/16 {
					c.Errorf("sandbox %d got %d bytes of %d", i, got, all)
				}
			}
			for _, d := range downloads {
				if r := <-d; r.Got == 0 {
					c.Errorf("a download: %s", told(r))
				}
			}
			c.decided(slices.Repeat([]string{"tcp ok big.example.com:3306 by operator"}, len(probes))...)
			c.sent("tcp " + place.String())
			c.asked("big.example.com")
			c.note("none gets less than a quarter of its share; the shares: make bench")
		})
	})
}
