package egress

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// hostileRecords is a resolver that answers with whatever it is given, n times.
type hostileRecords struct {
	target, text string
	n            int
}

// everywhere has one public address for every name.
type everywhere struct{}

func (everywhere) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("203.0.113.53")}, nil
}

func times[T any](n int, v T) (out []T) {
	for range n {
		out = append(out, v)
	}
	return out
}

func (h hostileRecords) LookupMX(context.Context, string) ([]*net.MX, error) {
	return times(h.n, &net.MX{Host: h.target, Pref: 1}), nil
}

func (h hostileRecords) LookupTXT(context.Context, string) ([]string, error) {
	return times(h.n, h.text), nil
}

func (h hostileRecords) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return h.target, times(h.n, &net.SRV{Target: h.target}), nil
}

func (h hostileRecords) LookupNS(context.Context, string) ([]*net.NS, error) {
	return times(h.n, &net.NS{Host: h.target}), nil
}

// FuzzRecords: whatever a zone of the attacker's answers, the sandbox gets a
// message that parses, answers its question, holds canonical names and no
// address, and is no longer than its transport takes.
func FuzzRecords(f *testing.F) {
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeMX, dnsmessage.TypeTXT, dnsmessage.TypeSRV, dnsmessage.TypeNS, dnsmessage.TypeA} {
		q := question(f, "example.com", kind)
		f.Add(q, "mail.example.com.", "v=spf1 -all", 2, false)
		f.Add(q, "a\x00b.example.com.", string(make([]byte, 5000)), 300, true)
		f.Add(q, "10.0.0.1", "\xff\x1b[0m\n", 1, true)
		f.Add(q, ".", "", 0, false)
	}
	s := bareSlot(f, Spec{Mode: ModeUnrestricted}, nil, Limits{}, func(c *Config) { c.Resolver = everywhere{} })
	s.lookups = make(chan struct{}, 1)
	f.Fuzz(func(t *testing.T, message []byte, target, text string, n int, tcp bool) {
		q, ok := parseRecordQuestion(message)
		if !ok {
			return
		}
		limit := maxUDPAnswer
		if tcp {
			limit = maxTCPAnswer
		}
		out := s.lookUp(q, hostileRecords{target, text, max(0, n) % 400}, limit)
		if out == nil || len(out) > limit {
			t.Fatalf("%d bytes", len(out))
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatalf("the reply does not parse: %v", err)
		}
		if !m.Response || m.ID != q.header.ID || len(m.Questions) != 1 || m.Questions[0] != q.question || len(m.Authorities)+len(m.Additionals) != 0 {
			t.Fatalf("reply %+v", m)
		}
		for _, a := range m.Answers {
			if a.Header.Type != q.question.Type || a.Header.Name != q.question.Name {
				t.Errorf("answer %+v", a.Header)
			}
			for _, name := range recordTargets(a.Body) {
				if h, err := Canonical(name); err != nil || h.name+"." != name {
					t.Errorf("a name that is not canonical: %q", name)
				}
			}
		}
	})
}

// recordTargets are the names in a record. An address is none, and fails.
func recordTargets(b dnsmessage.ResourceBody) []string {
	switch r := b.(type) {
	case *dnsmessage.MXResource:
		return []string{r.MX.String()}
	case *dnsmessage.SRVResource:
		return []string{r.Target.String()}
	case *dnsmessage.NSResource:
		return []string{r.NS.String()}
	case *dnsmessage.TXTResource:
		return nil
	}
	return []string{"no such record"}
}
