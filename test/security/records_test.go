package security

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// Section L: records, and what of section I a few sandboxes can show.
func TestRecords(t *testing.T) {
	t.Parallel()
	for mode, spec := range allModes() {
		everywhereNamed(t, mode, mode, spec, quick, func(t *testing.T, s *stand) {
			s.try(t, "E285", func(c *attempt) {
				c.gets(s.probe)
				c.wantReset(c.talk("198.18.0.1:22", "x"))
				c.decided("tcp name_not_allowed refusal:22")
				c.note("every case of this table")
			})
			recordsKept(t, s)
			recordsHostile(t, s)
			recordsRings(t, s)
		})
	}
}

func recordsKept(t *testing.T, s *stand) {
	s.try(t, "E291", func(c *attempt) {
		total := int64(0)
		for _, r := range s.records(c, egress.Filter{}) {
			total += r.Count
		}
		s.mu.Lock()
		counted := s.generated
		s.mu.Unlock()
		if total != counted {
			c.Errorf("the records stand for %d decisions, %d were counted", total, counted)
		}
	})
	s.try(t, "E292", func(c *attempt) {
		addresses := slices.Repeat([]string{"198.18.0.1:9"}, 500)
		c.wantOnly(c.do(wire.Request{Op: "many", Addresses: addresses, Parallel: 32, Data: []byte("x")}), "reset", "refused")
		eventually(c, "500 decisions", func() bool { return s.reasons()["name_not_allowed"] == 500 })
		s.drop("tcp")
		kept, sum := 0, int64(0)
		first, last := time.Time{}, time.Time{}
		for _, r := range s.records(c, egress.Filter{}) {
			if r.DestPort == 9 {
				kept, sum = kept+1, sum+r.Count
				first = r.Time
				if last.IsZero() {
					last = r.Time
				}
			}
		}
		// A slow machine takes more than ten seconds: one record for each ten.
		if most := 1 + int(last.Sub(first)/(10*time.Second)); sum != 500 || kept > most {
			c.Errorf("%d records stand for %d refusals", kept, sum)
		}
		c.note("name_not_allowed")
	})
	s.try(t, "E288", func(c *attempt) {
		for port := 30; port < 40; port++ {
			c.wantReset(c.talk(at("198.18.0.1", port), "x"))
		}
		s.drop("tcp")
		all := s.records(c, egress.Filter{Verdict: "refused"})
		if !slices.IsSortedFunc(all, func(a, b egress.Record) int { return strings.Compare(b.ID, a.ID) }) {
			c.Error("not newest first")
		}
		var paged []egress.Record
		before := ""
		for {
			page := s.records(c, egress.Filter{Verdict: "refused", Limit: 3, Before: before})
			if len(page) == 0 {
				break
			}
			paged, before = append(paged, page...), page[len(page)-1].ID
			c.wantReset(c.talk(at("198.18.0.1", 40+len(paged)), "x")) // while it is read
		}
		s.drop("tcp")
		if len(paged) != len(all) {
			c.Fatalf("%d records in pages, %d in all", len(paged), len(all))
		}
		for i := range all {
			if paged[i].ID != all[i].ID || paged[i].Verdict != egress.VerdictRefused {
				c.Errorf("record %d: %s and %s", i, paged[i].ID, all[i].ID)
			}
		}
	})
}

// recordsHostile sends what must never be kept.
func recordsHostile(t *testing.T, s *stand) {
	s.try(t, "E289", func(c *attempt) {
		for _, host := range []string{"ok.example.com", "no.example.com"} {
			address := s.lookup(c, host)
			c.talk(at(address, 80), "POST /hunter2-path?k=hunter2-query HTTP/1.1\r\nHost: "+host+"\r\nX-Key: hunter2-header\r\nContent-Length: 12\r\nConnection: close\r\n\r\nhunter2-body")
		}
		s.forget(c)
		c.quietRecords("hunter2")
	})
	s.try(t, "E237", func(c *attempt) {
		for _, name := range []string{"a\nb.example.com", "\x1b[31mred.example.com", "\u202egnp.example.com", "a\rb", "\x00"} {
			c.talk("198.18.0.1:80", httpGet(name))
			c.talk("198.18.0.1:443", string(helloAs(c, name)))
			label := append([]byte{byte(len(name))}, name...)
			c.do(wire.Request{Op: "talk", Network: "udp4", Address: stub, Data: message(0x0100, 1, append(label, 0), 1, 1), WaitMS: 200})
		}
		s.forget(c)
		c.quietRecords("\x1b", "\u202e", "gnp", "[31m", "red.example", "\\u001b", "\r")
	})
}

// forget takes all that a case has caused for expected: it is about something else.
func (s *stand) forget(c *attempt) {
	c.Helper()
	world.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decisions, s.seen, s.asked, s.packets = nil, nil, nil, nil
}

// quietRecords asserts that neither records nor log hold any of these.
func (c *attempt) quietRecords(secrets ...string) {
	c.Helper()
	kept, err := json.Marshal(c.s.records(c, egress.Filter{}))
	if err != nil {
		c.Fatal(err)
	}
	for _, secret := range secrets {
		if strings.Contains(string(kept), secret) {
			c.Errorf("%q is in a record", secret)
		}
		if strings.Contains(c.s.log.String(), secret) {
			c.Errorf("%q is in the log", secret)
		}
	}
}

func recordsRings(t *testing.T, s *stand) {
	s.try(t, "E287", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		c.wantOnly(c.do(wire.Request{Op: "many", Addresses: slices.Repeat([]string{address}, pick(1100, 2000)), Parallel: 16, Data: []byte(httpGet("ok.example.com"))}), "HTTP/1.1 200")
		ports := []string{}
		for port := range 600 {
			ports = append(ports, at("198.18.0.1", 10_000+port))
		}
		c.wantOnly(c.do(wire.Request{Op: "many", Addresses: ports, Parallel: 16, Data: []byte("x")}), "reset", "refused")
		eventually(c, "full rings", func() bool {
			return len(s.records(c, egress.Filter{Verdict: "allowed"})) == 1000 && len(s.records(c, egress.Filter{Verdict: "refused"})) == 500
		})
		s.forget(c)
		if n := len(s.records(c, egress.Filter{})); n != 1500 {
			c.Errorf("%d records", n)
		}
	})
	s.try(t, "E236", func(c *attempt) {
		before := len(s.log.String())
		c.do(wire.Request{Op: "many", Addresses: slices.Repeat([]string{"198.18.0.1:7", "198.18.0.1:8"}, pick(1500, 50_000)), Parallel: 32, Data: []byte("x")})
		s.forget(c)
		if n := len(s.records(c, egress.Filter{Verdict: "refused"})); n != 500 {
			c.Errorf("%d refusals are kept", n)
		}
		if grown := len(s.log.String()) - before; grown > 1<<20 {
			c.Errorf("the log has grown by %d bytes", grown)
		}
	})
	s.try(t, "E238", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		r := c.do(wire.Request{Op: "many", Addresses: slices.Repeat([]string{address}, pick(500, 10_000)), Parallel: 16, Data: []byte(httpGet("ok.example.com"))})
		if c.wantOnly(r, "HTTP/1.1 200"); c.Failed() {
			c.Logf("%+v", s.records(c, egress.Filter{Verdict: "failed", Limit: 3}))
			c.Log(s.log.String()[max(0, len(s.log.String())-2000):])
		}
		s.forget(c)
		c.gets(s.probe)
		c.note("descriptors and goroutines are counted in internal/egress")
	})
}

// Section I, shortened: floods, from one sandbox, beside another.
func TestLoad(t *testing.T) {
	t.Parallel()
	for mode, spec := range allModes() {
		everywhereNamed(t, mode, mode, spec, func(c *egress.Config) { c.Limits.Hello, c.Limits.HTTPHead = 2*time.Second, 2*time.Second }, func(t *testing.T, s *stand) {
			other := s.id + "v"
			neighbour := startProbe(t, inPlain, other, s.network(t, other, limited("ok.example.com")))
			beside := func(c *attempt, flood <-chan wire.Reply) wire.Reply {
				for {
					if r := neighbour.do(c, wire.Request{Op: "get", URL: "http://ok.example.com/"}); r.Status != 200 {
						c.Errorf("the neighbour: %d %s", r.Status, told(r))
					}
					select {
					case r := <-flood:
						s.forget(c)
						return r
					case <-time.After(20 * time.Millisecond): // below its own rate limit
					}
				}
			}
			if mode == "L" {
				scan(t, s, beside)
			}
			s.try(t, "E232", func(c *attempt) {
				addresses := slices.Repeat([]string{at(c.address("ok.example.com"), 80)}, pick(600, 1000))
				flood := s.probe.start(c, wire.Request{Op: "many", Addresses: addresses, Parallel: len(addresses), Data: []byte(httpGet("ok.example.com"))})
				c.wantOnly(beside(c, flood), "reset", "refused", "HTTP/1.1 200")
			})
			s.try(t, "E233", func(c *attempt) {
				addresses := slices.Repeat([]string{"198.18.0.1:443", "198.18.0.1:80"}, pick(100, 500))
				flood := s.probe.start(c, wire.Request{Op: "many", Addresses: addresses, Parallel: len(addresses), Data: []byte("GET"), WaitMS: 30_000})
				c.wantOnly(beside(c, flood), "reset", "refused", "HTTP/1.1 4", alertBytes, "eof")
			})
			s.try(t, "E231", func(c *attempt) {
				raw := s.raw.String()
				var frames [][]byte
				for i := range pick(3000, 200_000) {
					frames = append(frames, packet{dst: raw, proto: 6, payload: tcp(raw, uint16(1024+i%60000), 443, 2, nil)}.frame())
				}
				if s.place == inGVisor {
					c.send(frames[:1]...)
					return
				}
				beside(c, s.probe.start(c, wire.Request{Op: "frames", Frames: frames, WaitMS: 100, Max: 200}))
				r := neighbour.do(c, wire.Request{Op: "get", URL: "http://ok.example.com/"})
				if r.Status != 200 {
					c.Errorf("afterwards: %s", told(r))
				}
				s.forget(c)
			})
		})
	}
}

// scan tries the whole range of synthetic addresses.
func scan(t *testing.T, s *stand, beside func(*attempt, <-chan wire.Reply) wire.Reply) {
	s.try(t, "E020", func(c *attempt) {
		addresses := []string{}
		for i := range pick(2000, 131072) {
			n := i * (131072 / pick(2000, 131072))
			addresses = append(addresses, fmt.Sprintf("198.%d.%d.%d:443", 18+n>>16, n>>8&255, n&255))
		}
		addresses = append(addresses, "198.18.1.0:443")
		flood := s.probe.start(c, wire.Request{Op: "many", Addresses: addresses, Parallel: 32, Data: helloAs(c, "no.example.com"), Max: 7})
		c.wantOnly(beside(c, flood), "reset", "refused", alertBytes)
		c.note("no_mapping")
		c.note("rate_limit")
	})
}
