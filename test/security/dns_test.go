package security

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

const stub = "169.254.100.1:53"

// Section B: DNS.
func TestDNS(t *testing.T) {
	t.Parallel()
	for mode, spec := range map[string]egress.Spec{
		"L": limited("ok.example.com", "*.wild.example.com"),
		"U": {Mode: egress.ModeUnrestricted},
		"B": {Mode: egress.ModeBuild, Endpoints: []egress.Endpoint{{Host: hostName("ok.example.com"), Rule: "registry:pip"}}},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			everywhere(t, mode, spec, quick, func(t *testing.T, s *stand) {
				dnsNames(t, s)
				dnsMessages(t, s)
				if mode == "L" {
					dnsLimited(t, s)
				}
			})
		})
	}
}

// addressOf asks a server for a name's address; empty if it has none.
func (c *attempt) addressOf(server, name string) string {
	c.Helper()
	m := c.s.ask(c, server, question(c, name, dnsmessage.TypeA))
	if m == nil || len(m.Answers) != 1 {
		return ""
	}
	if ttl := m.Answers[0].Header.TTL; ttl != 1 {
		c.Errorf("%s: TTL %d, want 1", name, ttl)
	}
	a := m.Answers[0].Body.(*dnsmessage.AResource).A
	return fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], a[3])
}

func dnsNames(t *testing.T, s *stand) {
	s.try(t, "E041", func(c *attempt) {
		if a := c.addressOf(stub, "ok.example.com"); a != "198.18.1.0" {
			c.Errorf("got %q", a)
		}
		c.asked()
		c.wantStatus(c.talk("198.18.1.0:80", httpGet("ok.example.com")), "200")
		rule := map[string]string{"L": "http ok ok.example.com:80 by allowed_hosts[0]", "B": "http ok ok.example.com:80 by registry:pip", "U": "tcp ok ok.example.com:80 by unrestricted"}
		c.passed(rule[s.mode], "GET http ok.example.com/ 0")
	})
	s.try(t, "E043", func(c *attempt) {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, 65, 64, dnsmessage.TypeALL} {
			m := s.ask(c, stub, question(c, "ok.example.com", kind))
			if m == nil || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers)+len(m.Authorities)+len(m.Additionals) != 0 {
				c.Errorf("type %d: %+v, want no data", kind, m)
			}
		}
	})
	s.try(t, "E044", func(c *attempt) {
		for _, server := range []string{"8.8.8.8:53", "1.1.1.1:53", "9.9.9.9:53", stub, at(s.up.String(), 53)} {
			if a := c.addressOf(server, "ok.example.com"); a != "198.18.1.0" {
				c.Errorf("%s says %q", server, a)
			}
		}
	})
	s.try(t, "E053", func(c *attempt) {
		for range pick(200, 20000) {
			if a := c.addressOf(stub, "ok.example.com"); a != "198.18.1.0" {
				c.Fatalf("got %q", a)
			}
		}
	})
	s.try(t, "E056", func(c *attempt) {
		m := s.ask(c, stub, question(c, "0.1.18.198.in-addr.arpa", dnsmessage.TypePTR))
		if m == nil || m.RCode != dnsmessage.RCodeNameError {
			c.Errorf("PTR: %+v, want no such name", m)
		}
		for _, name := range []string{"localhost", "a.localhost"} {
			if a := c.addressOf(stub, name); a != "127.0.0.1" {
				c.Errorf("%s: %q", name, a)
			}
		}
	})
	s.try(t, "E057", func(c *attempt) {
		for _, address := range []string{"224.0.0.251:5353", "224.0.0.252:5355"} { // mDNS, LLMNR
			r := c.do(wire.Request{Op: "connect", Network: "broadcast", Address: address, Data: question(c, "ok.example.com", dnsmessage.TypeA), WaitMS: 300})
			if len(r.Data) > 0 {
				c.Errorf("%s: %s", address, told(r))
			}
		}
		r := c.do(wire.Request{Op: "connect", Network: "broadcast", Address: "169.254.100.3:137", Data: question(c, "ok.example.com", dnsmessage.TypeA), WaitMS: 300})
		if len(r.Data) > 0 {
			c.Errorf("NetBIOS: %s", told(r))
		}
		c.decided(map[string]string{
			"L": "udp udp_not_allowed 169.254.100.3:137", "B": "udp udp_not_allowed 169.254.100.3:137",
			"U": "udp address_not_public 169.254.100.3:137 by unrestricted",
		}[s.mode])
	})
	s.try(t, "E061", func(c *attempt) {
		for _, name := range []string{"oK.eXaMpLe.CoM", "OK.EXAMPLE.COM"} {
			m := s.ask(c, stub, question(c, name, dnsmessage.TypeA))
			if m == nil || len(m.Answers) != 1 || m.Questions[0].Name.String() != name+"." || m.Answers[0].Header.Name.String() != name+"." ||
				m.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte{198, 18, 1, 0} {
				c.Errorf("%s: %+v", name, m)
			}
		}
	})
	s.try(t, "E058", func(c *attempt) {
		// The host has a list of suffixes; a single label stays one.
		if s.mode == "U" {
			address := c.address("intranet")
			s.resolves("intranet", s.up.String())
			c.wantStatus(c.talk(at(address, 80), httpGet("intranet")), "200")
			c.passed("tcp ok intranet:80 by unrestricted", "GET http intranet/ 0")
			return
		}
		c.refused("intranet")
		c.want403(c.talk("198.18.0.1:80", httpGet("intranet")), "intranet")
		c.decided("http name_not_allowed refusal:80 claims intranet")
	})
}

// dnsMessages are the cases about malformed and strange messages.
func dnsMessages(t *testing.T, s *stand) {
	s.try(t, "E049", func(c *attempt) { dnsOverTCP(c) })
	s.try(t, "E051", func(c *attempt) {
		names := map[string][]byte{
			"NUL":          []byte("\x08ok\x00evil1\x07example\x03com\x00"),
			"space":        []byte("\x03a b\x07example\x03com\x00"),
			"dot inside":   []byte("\x0aok.example\x03com\x00"),
			"not ASCII":    []byte("\x06b\xc3\xbcche\x07example\x03com\x00"),
			"escape codes": []byte("\x05\x1b[31m\x07example\x03com\x00"),
			"hyphen":       []byte("\x03-ab\x07example\x03com\x00"),
			"root":         []byte("\x00"),
		}
		for name, wireName := range names {
			r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: stub, Data: message(0x0100, 1, wireName, 1, 1), WaitMS: 3000})
			if r.End == "more" && rcode(r.Data) != 3 {
				c.Errorf("%s: %x, want no such name", name, r.Data)
			}
		}
		for name, wireName := range map[string][]byte{
			"64-byte label": append(append([]byte{64}, bytes.Repeat([]byte("a"), 64)...), 0),
			"256 bytes":     append(bytes.Repeat(append([]byte{63}, bytes.Repeat([]byte("a"), 63)...), 4), 0),
			"cut":           []byte("\x09example"),
		} {
			r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: stub, Data: message(0x0100, 1, wireName, 1, 1), WaitMS: 300})
			if r.End == "more" && rcode(r.Data) == 0 {
				c.Errorf("%s: answered with %x", name, r.Data)
			}
		}
		s.mu.Lock()
		for _, d := range s.decisions {
			if got := s.describe(d); got != "dns name_not_allowed claims invalid" {
				c.Errorf("decision %s", got)
			}
		}
		n := len(s.decisions)
		s.decisions = nil
		s.mu.Unlock()
		if n < len(names)-1 { // the dot inside a label is dropped by the parser
			c.Errorf("%d decisions for %d names", n, len(names))
		}
		c.note("name_not_allowed")
	})
	s.try(t, "E052", func(c *attempt) {
		good := []byte("\x02ok\x07example\x03com\x00")
		for name, tt := range map[string]struct {
			message []byte
			codes   []int // none: no answer
		}{
			"pointer to itself": {message(0x0100, 1, []byte{0xc0, 12}, 1, 1), []int{1}},
			"pointer loop":      {message(0x0100, 1, []byte{1, 'a', 0xc0, 12}, 1, 1), []int{1}},
			"pointer forward":   {message(0x0100, 1, []byte{0xc0, 0xff}, 1, 1), []int{1}},
			"header cut":        {message(0x0100, 1, good, 1, 1)[:7], []int{1}},
			"question cut":      {message(0x0100, 1, good, 1, 1)[:20], []int{1}},
			"two questions":     {append(message(0x0100, 2, good, 1, 1), append(good, 0, 1, 0, 1)...), []int{1}},
			"no question":       {message(0x0100, 0, nil, 1, 1)[:12], []int{1}},
			"a response":        {message(0x8100, 1, good, 1, 1), nil},
			"opcode STATUS":     {message(0x1100, 1, good, 1, 1), []int{4}},
			"opcode UPDATE":     {message(0x2900, 1, good, 1, 1), []int{4}},
			"class CH":          {message(0x0100, 1, good, 1, 3), []int{5}},
			"class ANY":         {message(0x0100, 1, good, 1, 255), []int{5}},
		} {
			r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: stub, Data: tt.message, WaitMS: 400})
			if r.End != "more" {
				continue // dropped is fine for every one of these
			}
			ok := false
			for _, code := range tt.codes {
				ok = ok || rcode(r.Data) == code
			}
			if !ok {
				c.Errorf("%s: answered with code %d, want one of %v", name, rcode(r.Data), tt.codes)
			}
		}
		if a := c.addressOf(stub, "ok.example.com"); a != "198.18.1.0" {
			c.Errorf("afterwards: %q", a)
		}
	})
	s.try(t, "E062", func(c *attempt) {
		for _, size := range []int{0, 511, 512, 1232, 4096, 65535} {
			// An OPT record with the DO bit and a cookie.
			opt := append([]byte{0, 0, 41, byte(size >> 8), byte(size), 0, 0, 0x80, 0, 0, 12, 0, 10, 0, 8}, "12345678"...)
			m := message(0x0100, 1, []byte("\x02ok\x07example\x03com\x00"), 1, 1)
			m[11] = 1
			got := s.ask(c, stub, append(m, opt...))
			if got == nil || len(got.Answers) != 1 || got.RCode != dnsmessage.RCodeSuccess {
				c.Errorf("size %d: %+v", size, got)
			}
		}
	})
}

// message is a DNS message with one question, given as it is on the wire.
func message(flags uint16, questions byte, name []byte, kind, class byte) []byte {
	out := []byte{0, 7, byte(flags >> 8), byte(flags), 0, questions, 0, 0, 0, 0, 0, 0}
	return append(append(out, name...), 0, kind, 0, class)
}

func rcode(reply []byte) int {
	if len(reply) < 4 {
		return -1
	}
	return int(reply[3] & 15)
}

func dnsOverTCP(c *attempt) {
	q := question(c, "ok.example.com", dnsmessage.TypeA)
	framed := append([]byte{0, byte(len(q))}, q...)
	ask := func(r wire.Request) wire.Reply {
		r.Op, r.Address, r.Max = "talk", "8.8.4.4:53", 2+len(q)+16
		return c.do(r)
	}
	r := ask(wire.Request{Data: framed})
	if !bytes.Contains(r.Data, []byte{198, 18, 1, 0}) {
		c.Errorf("one question: %s", told(r))
	}
	r = ask(wire.Request{Data: framed, Chunk: 1, PauseMS: 1})
	if !bytes.Contains(r.Data, []byte{198, 18, 1, 0}) {
		c.Errorf("byte by byte: %s", told(r))
	}
	r = ask(wire.Request{Data: framed, Keep: true})
	for range 5 {
		if r = ask(wire.Request{Conn: r.Conn, Data: framed, Keep: true}); !bytes.Contains(r.Data, []byte{198, 18, 1, 0}) {
			c.Errorf("several: %s", told(r))
		}
	}
	// Left alone, the connection is closed; two bytes short, it is closed too.
	idle := c.s.probe.start(c, wire.Request{Op: "talk", Conn: r.Conn, WaitMS: 30000})
	r = c.do(wire.Request{Op: "talk", Address: stub, Data: append([]byte{0xff, 0xff}, make([]byte, 65535)...)})
	if len(r.Data) > 0 || r.End == "timeout" {
		c.Errorf("65,535 bytes: %s, want a close", told(r))
	}
	open := []<-chan wire.Reply{}
	for range 64 {
		open = append(open, c.s.probe.start(c, wire.Request{Op: "talk", Address: stub, Data: []byte{0}, WaitMS: 30000}))
	}
	if r := ask(wire.Request{Data: framed}); r.End == "timeout" {
		c.Errorf("beside 64 idle ones: %s", told(r))
	}
	for _, reply := range append(open, idle) {
		if r := <-reply; r.End == "timeout" || len(r.Data) > 0 {
			c.Errorf("idle: %s, want a close", told(r))
		}
	}
}

// dnsLimited are the cases of mode limited alone.
func dnsLimited(t *testing.T, s *stand) {
	s.try(t, "E042", func(c *attempt) {
		for _, name := range []string{"no.example.com", "wild.example.com", "a.ok.example.com", "com"} {
			c.refused(name)
		}
	})
	s.try(t, "E045", func(c *attempt) {
		kinds := []dnsmessage.Type{dnsmessage.TypeTXT, 10, dnsmessage.TypeMX, dnsmessage.TypeSRV, dnsmessage.TypeCNAME, 25}
		for _, name := range []string{"ok.example.com", "no.example.com", "data.wild.example.com"} {
			for _, kind := range kinds {
				m := s.ask(c, stub, question(c, name, kind))
				if m == nil || len(m.Answers)+len(m.Authorities)+len(m.Additionals) != 0 || m.RCode != 0 && m.RCode != dnsmessage.RCodeNameError {
					c.Errorf("type %d of %s: %+v, want no data", kind, name, m)
				}
			}
		}
	})
	s.try(t, "E046", func(c *attempt) {
		for _, resolver := range []string{"9.9.9.9", "1.1.1.1"} {
			c.wantReset(c.talk(at(resolver, 853), string(helloAs(c, "dns.example.net"))))
			c.decided("tcp no_mapping " + resolver + ":853")
			if r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(resolver, 853), Data: make([]byte, 1200)}); r.End != "refused" {
				c.Errorf("DoQ: %s", told(r))
			}
			c.decided("udp udp_not_allowed " + resolver + ":853")
			c.wantAlert(c.do(wire.Request{Op: "talk", Address: at(resolver, 443), TLS: tlsAs("dns.example.net")}))
			c.decided("tls no_mapping " + resolver + ":443 claims dns.example.net")
		}
		address := c.refused("dns.example.net")
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: at(address, 443), TLS: tlsAs("dns.example.net")}))
		c.decided("tls name_not_allowed refusal:443 claims dns.example.net")
	})
	s.try(t, "E047", func(c *attempt) { tunnel(c, "evil.example", 10000) })
	s.try(t, "E048", func(c *attempt) { tunnel(c, "wild.example.com", 3000) })
}

// tunnel asks for many names that carry data below a domain. None may cause a
// question of the host.
func tunnel(c *attempt, domain string, n int) {
	labels := strings.Repeat("d", 60) + "." + strings.Repeat("a", 60) + "." + strings.Repeat("t", 60)
	name := fmt.Sprintf("x%s.%s", labels, domain)
	c.unowned("dns")
	r := c.do(wire.Request{Op: "flood", Address: stub, Repeat: n, Parallel: 4, Chunk: 13, Data: question(c, name, dnsmessage.TypeA), WaitMS: 1000})
	if r.Counts["sent"] < n/2 || r.Counts["answered"] == 0 {
		c.Errorf("the case shows nothing: %v", r.Counts)
	}
	c.asked()
}

// E050: no flood of names takes the listed ones away, nor memory without end.
func TestNameFlood(t *testing.T) {
	t.Parallel()
	for mode, spec := range map[string]egress.Spec{"L": limited("ok.example.com", "*.wild.example.com"), "U": {Mode: egress.ModeUnrestricted}} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			everywhere(t, mode, spec, func(c *egress.Config) {
				quick(c)
				c.Limits.Names, c.Limits.NamesUnrestricted = pick(512, 4096), pick(512, 8192)
			}, func(t *testing.T, s *stand) {
				s.try(t, "E050", func(c *attempt) { nameFlood(c) })
			})
		})
	}
}

func nameFlood(c *attempt) {
	s := c.s
	c.address("ok.example.com")
	first := c.address("n0.wild.example.com")
	given, failed := 0, 0
	for i := range pick(700, 10000) {
		m := s.ask(c, stub, question(c, fmt.Sprintf("n%d.wild.example.com", i), dnsmessage.TypeA))
		switch {
		case m == nil:
			c.Fatal("no answer")
		case m.RCode == dnsmessage.RCodeServerFailure:
			failed++
		case len(m.Answers) == 1:
			given++
		}
	}
	limit := s.config.Limits.Names
	if s.mode == "U" {
		limit = s.config.Limits.NamesUnrestricted - 1 // ok.example.com is no listed name there
	}
	if given != limit || failed == 0 {
		c.Errorf("%d names have an address and %d have none, want %d", given, failed, limit)
	}
	if a := c.address("n0.wild.example.com"); a != first {
		c.Errorf("an earlier name is %s now, not %s", a, first)
	}
	s.mu.Lock()
	for _, d := range s.decisions {
		if got := s.describe(d); got != "dns name_limit" {
			c.Errorf("decision %s", got)
		}
	}
	s.decisions = nil
	s.mu.Unlock()
	c.wantStatus(c.talk(at(c.address("ok.example.com"), 80), httpGet("ok.example.com")), "200")
	rule := map[string]string{"L": "http ok ok.example.com:80 by allowed_hosts[0]", "U": "tcp ok ok.example.com:80 by unrestricted"}
	c.passed(rule[s.mode], "GET http ok.example.com/ 0")
	c.note("name_limit")
}

// E059: a flood of questions is cut, and the sandbox beside it is served.
func TestQuestionFlood(t *testing.T) {
	t.Parallel()
	everywhere(t, "L", limited("ok.example.com", "*.wild.example.com"), nil, func(t *testing.T, s *stand) {
		s.try(t, "E059", func(c *attempt) {
			other := s.id + "n"
			neighbour := startProbe(c, inPlain, other, s.network(c, other, limited("ok.example.com")))
			flood := s.probe.start(c, wire.Request{Op: "flood", Address: stub, Repeat: pick(20000, 1000000), Parallel: 4, Data: question(c, "a.wild.example.com", dnsmessage.TypeA), WaitMS: 500})
			start, served := time.Now(), 0
			var r wire.Reply
			pace := time.NewTicker(10 * time.Millisecond) // below its own limit
			defer pace.Stop()
			for done := false; !done; <-pace.C {
				got := neighbour.do(c, wire.Request{Op: "get", URL: "http://ok.example.com/"})
				if got.Status != 200 {
					c.Errorf("the neighbour: %s", told(got))
				}
				served++
				select {
				case r = <-flood:
					done = true
				default:
				}
			}
			allowed := int(500 + 1 + 500*time.Since(start).Seconds() + 1)
			if r.Counts["answered"] > allowed || r.Counts["answered"] == 0 || r.Counts["sent"] < 2*r.Counts["answered"] {
				c.Errorf("%v, want at most %d answers: one second's burst and 500 a second", r.Counts, allowed)
			}
			c.unowned("http", "dns")
			s.mu.Lock()
			for _, d := range s.decisions {
				if d.Protocol == "dns" && s.describe(d) != "dns rate_limit" {
					c.Errorf("decision %s", s.describe(d))
				}
			}
			s.mu.Unlock()
			c.asked("ok.example.com")
			want := []string{}
			for range served {
				want = append(want, "GET http ok.example.com/ 0")
			}
			c.upstream(want...)
			c.note("rate_limit")
		})
	})
}
