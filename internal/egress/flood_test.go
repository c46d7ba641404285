package egress

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// flood is one way to be a bad neighbour.
type flood struct {
	name  string
	least int64 // how much of it is a flood
	run   func(b *box, addr string, sent *sending) error
}

// sending is a flood under way.
type sending struct {
	stop chan struct{}
	n    atomic.Int64
}

// each calls f again and again, until the flood is stopped or was enough.
func (s *sending) each(f func(i int) error) error {
	for i := range 500_000 {
		select {
		case <-s.stop:
			return nil
		default:
		}
		if err := f(i); err != nil {
			return err
		}
		s.n.Add(1)
	}
	return nil
}

func floods() []flood {
	return []flood{
		{"SYN", 20_000, func(b *box, addr string, sent *sending) error {
			to := netip.MustParseAddr(addr)
			return b.in(func() error {
				send, done, err := rawSender()
				if err != nil {
					return err
				}
				defer done()
				return sent.each(func(i int) error { return send(synFrame(to, uint16(1024+i%60000), 443)) })
			})
		}},
		{"connect", 2000, func(b *box, addr string, sent *sending) error {
			return b.in(func() error {
				return sent.each(func(i int) error {
					if c, err := net.DialTimeout("tcp", addr+":443", time.Second); err == nil {
						_ = c.(*net.TCPConn).SetLinger(0)
						_ = c.Close()
					}
					return nil
				})
			})
		}},
		{"half-open TLS", 2000, func(b *box, addr string, sent *sending) error {
			var held []net.Conn
			defer func() {
				for _, c := range held {
					_ = c.Close()
				}
			}()
			return b.in(func() error {
				return sent.each(func(i int) error {
					c, err := net.DialTimeout("tcp", addr+":443", time.Second)
					if err != nil {
						return nil // over the limit
					}
					_, _ = c.Write([]byte{0x16, 3, 1}) // may be refused already
					if held = append(held, c); len(held) > 700 {
						_ = held[0].Close()
						held = held[1:]
					}
					return nil
				})
			})
		}},
		{"DNS names", 20_000, func(b *box, _ string, sent *sending) error {
			return b.in(func() error {
				c, err := net.Dial("udp", "169.254.100.1:53")
				if err != nil {
					return err
				}
				defer func() { _ = c.Close() }()
				return sent.each(func(i int) error {
					if i%1000 == 0 { // another port, another entry of connection tracking
						_ = c.Close()
						if c, err = net.Dial("udp", "169.254.100.1:53"); err != nil {
							return err
						}
					}
					_, _ = c.Write(question(b.t, fmt.Sprintf("%x.wild.example.com", rand.Uint64()), 1)) // as lost as any datagram
					return nil
				})
			})
		}},
		{"UDP", 20_000, func(b *box, addr string, sent *sending) error {
			return b.in(func() error {
				c, err := net.ListenUDP("udp4", nil)
				if err != nil {
					return err
				}
				defer c.Close()
				data := make([]byte, 1200)
				return sent.each(func(i int) error {
					to := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
					if i%2 == 0 {
						to = netip.MustParseAddr(addr)
					}
					_, _ = c.WriteToUDPAddrPort(data, netip.AddrPortFrom(to, uint16(1024+i%50000))) // refused ones say so here
					return nil
				})
			})
		}},
	}
}

// E059, E231: while one sandbox floods, another one's requests succeed, every
// one; what the flood takes stays within the sandbox's limits; and when it is
// over, the sandbox itself works again. The attacker is a process with all
// capabilities in the runtime namespace. How much slower the other one gets is
// measured by the bench, not here.
func TestE231Floods(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "bad.example.com")
	g := w.gateway(nil)
	quiet := w.open(g, "quiet", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	for i, f := range floods() {
		for _, mode := range []Mode{ModeLimited, ModeUnrestricted} {
			t.Run(f.name+" "+string(mode), func(t *testing.T) {
				spec := Spec{Mode: mode}
				if mode == ModeLimited {
					spec.AllowedHosts = []string{"bad.example.com", "*.wild.example.com"}
				}
				bad := w.open(g, fmt.Sprintf("bad%d%s", i, mode[:1]), spec)
				addr := bad.resolve("bad.example.com")
				sent, ended := sending{stop: make(chan struct{})}, make(chan error, 1)
				go func() { ended <- f.run(bad, addr, &sent) }()
				deadline := time.Now().Add(30 * time.Second)
				pace := time.NewTicker(20 * time.Millisecond) // below the quiet one's own limit
				defer pace.Stop()
				for n := 0; n < 20 || sent.n.Load() < f.least && time.Now().Before(deadline); n++ {
					if code, _, _, err := quiet.get("https://ok.example.com/"); err != nil || code != 200 {
						t.Errorf("the other sandbox: %d %v; %v", code, err, quiet.counts())
					}
					<-pace.C
				}
				close(sent.stop)
				if err := <-ended; err != nil || sent.n.Load() < f.least {
					t.Fatalf("the flood: %d sent, %v", sent.n.Load(), err)
				}
				bounded(t, g, bad.id)
				var last error
				eventually(t, "the flooding sandbox to work again", func() bool {
					c, err := bad.dial("tcp", addr+":443")
					if err == nil {
						_ = c.SetDeadline(time.Now().Add(5 * time.Second))
						_, err = bad.tls(c, "bad.example.com")
						_ = c.Close()
					}
					last = err
					return err == nil
				})
				if last != nil {
					t.Error(last)
				}
				t.Logf("%d sent", sent.n.Load())
			})
		}
	}
}

// bounded checks that a network takes no more than its limits.
func bounded(t *testing.T, g *Gateway, id string) {
	t.Helper()
	s, l := g.live(id), g.config.Limits
	st := s.state.Load()
	most := l.Names
	if st.policy.Mode() == ModeUnrestricted {
		most = l.NamesUnrestricted
	}
	st.names.mu.RLock()
	if n := len(st.names.byAddr) - st.names.listed; n > most {
		t.Errorf("%d names", n)
	}
	st.names.mu.RUnlock()
	s.mu.Lock()
	if len(s.flows) > l.Connections || s.dnsUp > 16 {
		t.Errorf("%d connections, %d of them DNS", len(s.flows), s.dnsUp)
	}
	s.mu.Unlock()
	if rs, err := g.Records(id, Filter{}); err != nil || len(rs) > ringAll+ringRefused {
		t.Errorf("%d records, %v", len(rs), err)
	}
	table, err := os.Stat(g.dir.path + "/" + id + "/names")
	if err != nil || table.Size() > int64(most+10)*300 {
		t.Errorf("table of names: %v %v", table, err)
	}
}
