package security

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// works expects that a host is reached by its name, by this rule.
func (c *attempt) works(name, rule string) {
	c.Helper()
	address := c.address(name)
	c.wantStatus(c.talk(at(address, 80), httpGet(name)), "200")
	host := strings.ToLower(strings.TrimSuffix(name, "."))
	c.passed("http ok "+host+":80 by "+rule, "GET http "+host+"/ 0")
}

// fails expects that a host is refused by its name, over both protocols.
func (c *attempt) fails(name string) {
	c.Helper()
	address := c.refused(name)
	host := strings.ToLower(strings.TrimSuffix(name, "."))
	c.want403(c.talk(at(address, 80), httpGet(name)), host)
	c.decided("http name_not_allowed refusal:80 claims " + host)
	c.wantRawAlert(c.talk(at(address, 443), string(helloAs(c, host))))
	c.decided("tls name_not_allowed refusal:443 claims " + host)
}

// Section E: names and entries.
func TestNames(t *testing.T) {
	t.Parallel()
	everywhere(t, "L", limited(), func(c *egress.Config) {
		quick(c)
		c.BlockHosts = []string{"blocked.example.com", "*.never.example.org"}
	}, func(t *testing.T, s *stand) {
		s.try(t, "E163", func(c *attempt) {
			for _, hosts := range [][]string{nil, {}} {
				s.change(c, limited(hosts...))
				c.fails("example.com")
				c.fails("localhost.example.com")
			}
		})
		s.try(t, "E150", func(c *attempt) {
			s.change(c, limited("example.com"))
			c.works("example.com", "allowed_hosts[0]")
			c.fails("a.example.com")
		})
		s.try(t, "E151", func(c *attempt) {
			for _, name := range []string{"notexample.com", "example.com.evil.test", "xexample.com", "example.co", "com"} {
				c.fails(name)
			}
		})
		s.try(t, "E152", func(c *attempt) {
			s.change(c, limited("*.example.org"))
			for _, name := range []string{"a.example.org", "b.a.example.org", "1.2.3.4.5.6.7.8.9.x.example.org"} {
				c.works(name, "allowed_hosts[0]")
			}
		})
		s.try(t, "E153", func(c *attempt) { c.fails("example.org") })
		s.try(t, "E154", func(c *attempt) {
			c.fails("notexample.org")
			r := s.probe.do(c, wire.Request{Op: "talk", Network: "udp4", Address: stub, Data: message(0x0100, 1, []byte("\x00\x07example\x03org\x00"), 1, 1), WaitMS: 500})
			if r.End == "more" && rcode(r.Data) == 0 && len(r.Data) > 40 {
				c.Errorf("an empty label: %x", r.Data)
			}
			s.drop("dns")
			c.wantStatus(c.talk("198.18.0.1:80", httpGet(".example.org")), "403")
			c.decided("http name_not_allowed refusal:80 claims invalid")
		})
		s.try(t, "E155", func(c *attempt) {
			s.change(c, limited("both.example.com", "*.both.example.com"))
			c.works("both.example.com", "allowed_hosts[0]")
			c.works("a.both.example.com", "allowed_hosts[1]")
		})
		namesSpelled(t, s)
		s.try(t, "E168", func(c *attempt) { blocked(c) })
	})
	everywhereNamed(t, "blocked", "U", egress.Spec{Mode: egress.ModeUnrestricted}, func(c *egress.Config) {
		c.BlockHosts = []string{"blocked.example.com", "*.never.example.org"}
	}, func(t *testing.T, s *stand) { s.try(t, "E168", func(c *attempt) { blocked(c) }) })
}

// everywhereNamed is everywhere below one more name, for a second set of stands.
func everywhereNamed(t *testing.T, name, mode string, spec egress.Spec, change func(*egress.Config), f func(t *testing.T, s *stand)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		everywhere(t, mode, spec, change, f)
	})
}

// blocked expects that the operator's list wins.
func blocked(c *attempt) {
	s := c.s
	if s.mode == "L" {
		s.change(c, limited("blocked.example.com", "*.example.org"))
	}
	for _, name := range []string{"blocked.example.com", "x.never.example.org"} {
		if a := s.lookup(c, name); a != "198.18.0.1" {
			c.Errorf("%s is %s", name, a)
		}
		c.decided("dns blocklisted " + name)
		c.want403(c.talk("198.18.0.1:80", httpGet(name)), name)
		c.decided("http name_not_allowed refusal:80 claims " + name)
	}
}

// namesSpelled are the cases about how a name is written.
func namesSpelled(t *testing.T, s *stand) {
	s.try(t, "E160", func(c *attempt) {
		s.change(c, limited("dot.example.com."))
		address := c.address("dot.example.com.")
		c.works("dot.example.com", "allowed_hosts[0]")
		c.wantStatus(c.talk(at(address, 80), httpGet("dot.example.com.")), "200")
		c.passed("http ok dot.example.com:80 by allowed_hosts[0]", "GET http dot.example.com/ 0")
		c.wantRawAlert(c.talk(at(address, 443), string(helloAs(c, "dot.example.com."))))
		c.decided("tls hello_malformed dot.example.com:443")
		c.want403(c.talk(at(address, 80), httpGet("dot.example.com..")), "an invalid host")
		c.decided("http host_mismatch dot.example.com:80 claims invalid")
	})
	s.try(t, "E161", func(c *attempt) {
		spec := limited("b\u00fccher.example.com")
		s.change(c, spec)
		c.works("xn--bcher-kva.example.com", "allowed_hosts[0]")
		if got := compile(c, spec).Spec().AllowedHosts[0]; got != "b\u00fccher.example.com" {
			c.Errorf("echoed as %q", got)
		}
	})
	s.try(t, "E162", func(c *attempt) {
		s.change(c, limited("apple.example.com"))
		c.fails("xn--pple-43d.example.com") // the first letter is Cyrillic
		m := s.ask(c, stub, question(c, "xn--a-.example.com", 1))
		if m == nil || m.RCode != 3 {
			c.Errorf("%+v, want no such name", m)
		}
		c.decided("dns name_not_allowed claims invalid")
	})
	s.try(t, "E164", func(c *attempt) {
		label := strings.Repeat("a", 63)
		long := strings.Join([]string{label, label, label, strings.Repeat("b", 49), "example.com"}, ".")
		good := []string{"a_b.example.com", "r3---x.example.com", label + ".example.com", long}
		if len(long) != 253 {
			c.Fatalf("%d bytes", len(long))
		}
		s.change(c, limited(good...))
		for i, name := range good {
			c.works(name, fmt.Sprintf("allowed_hosts[%d]", i))
		}
		for _, name := range []string{label + "a.example.com", "a" + long} {
			if _, err := egress.Compile(limited(name)); err == nil {
				c.Errorf("%s is an entry", name)
			}
		}
	})
}

// The cases of section E that need no network.
func TestEntries(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, words string, entries ...string) {
		t.Helper()
		for _, e := range entries {
			if _, err := egress.Compile(limited("ok.example.com", e)); err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%q: %v, want %q", e, err, words)
			}
		}
	}
	unit(t, "E156", func(t *testing.T) {
		p, err := egress.Compile(limited("EXAMPLE.com"))
		if err != nil || p.Spec().AllowedHosts[0] != "EXAMPLE.com" {
			t.Fatalf("%v", err)
		}
		for _, name := range []string{"example.com", "Example.COM"} {
			if h, err := egress.Canonical(name); err != nil {
				t.Error(err)
			} else if _, ok := p.Allows(egress.SourceSandbox, h, 443); !ok {
				t.Errorf("%s is not allowed", name)
			}
		}
	})
	unit(t, "E157", func(t *testing.T) {
		refused(t, `contains a URL scheme. Entries must be bare hostnames like "google.com".`, "https://example.com", "http://example.com/", "mailto:x")
		refused(t, "contains a port. Entries must be bare hostnames without ports.", "example.com:443", "example.com:")
	})
	unit(t, "E158", func(t *testing.T) {
		refused(t, "allowed_hosts[1]", "example.com/x", "user@example.com", "192.0.2.1", "2001:db8::1", "[2001:db8::1]", "[example.com]", "*", "foo.*.com", "*foo.com", "**.x", "*.", "",
			" ", "a b.com", "example.com ", "a\tb.com", "a\x00b.com", "a\x7fb.com", "\x1b[31m")
	})
	unit(t, "E159", func(t *testing.T) {
		refused(t, "public suffix", "*.com", "*.co.uk")
		if _, err := egress.Compile(limited("*.github.io")); err != nil {
			t.Error(err)
		}
	})
	unit(t, "E165", func(t *testing.T) {
		refused(t, "allowed_hosts[1]", "example.1", "a.0x7f", "127.1", "2130706433", "0x7f000001", "a.0x", "017700000001")
	})
	unit(t, "E166", func(t *testing.T) {
		hosts := make([]string, 10_000)
		for i := range hosts {
			hosts[i] = fmt.Sprintf("h%d.example.com", i)
		}
		start := time.Now()
		p, err := egress.Compile(limited(hosts...))
		if err != nil {
			t.Fatal(err)
		}
		compiled := time.Since(start)
		h, err := egress.Canonical("h9999.example.com")
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		const n = 10_000
		for range n {
			if rule, ok := p.Allows(egress.SourceSandbox, h, 443); !ok || rule != "allowed_hosts[9999]" {
				t.Fatalf("%s %v", rule, ok)
			}
		}
		// Figures are for make bench to state: this machine is shared.
		t.Logf("compiled in %s, decided in %s", compiled, time.Since(start)/n)
	})
	unit(t, "E167", func(t *testing.T) {
		hosts := []string{"a.example.com", "*.b.example.com", "c.example.com", "a.example.com", "A.example.com."}
		p := compile(t, limited(hosts...))
		for range 20 {
			mixed := slices.Clone(hosts)
			rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
			q := compile(t, limited(mixed...))
			for _, name := range []string{"a.example.com", "b.example.com", "x.b.example.com", "c.example.com", "d.example.com"} {
				h, err := egress.Canonical(name)
				if err != nil {
					t.Fatal(err)
				}
				_, one := p.Allows(egress.SourceSandbox, h, 443)
				if _, two := q.Allows(egress.SourceSandbox, h, 443); one != two {
					t.Errorf("%q and %q do not agree about %s", hosts, mixed, name)
				}
			}
		}
	})
}
