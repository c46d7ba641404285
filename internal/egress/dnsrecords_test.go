package egress

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// fakeRecords answers records too.
type fakeRecords struct {
	*fakeResolver
}

func (f fakeRecords) note(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, name)
	if strings.HasPrefix(name, "lame.") {
		return &net.DNSError{Err: "server misbehaving", Name: name}
	}
	if strings.HasPrefix(name, "none.") {
		return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return nil
}

func (f fakeRecords) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	if err := f.note(name); err != nil {
		return nil, err
	}
	return []*net.MX{{Host: "mx.example.com.", Pref: 10}, {Host: "10.0.0.5", Pref: 20}, {Host: "bad name.example.com.", Pref: 30}}, nil
}

func (f fakeRecords) LookupTXT(_ context.Context, name string) ([]string, error) {
	if err := f.note(name); err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, "long.") {
		return []string{strings.Repeat("x", 700)}, nil
	}
	return []string{"v=spf1 -all", ""}, nil
}

func (f fakeRecords) LookupSRV(_ context.Context, _, _, name string) (string, []*net.SRV, error) {
	if err := f.note(name); err != nil {
		return "", nil, err
	}
	return name, []*net.SRV{{Target: "srv.example.com.", Port: 5222, Priority: 1, Weight: 2}, {Target: "127.0.0.1.", Port: 1}}, nil
}

func (f fakeRecords) LookupNS(_ context.Context, name string) ([]*net.NS, error) {
	return []*net.NS{{Host: "ns.example.com."}}, f.note(name)
}

// E260: MX, TXT, SRV and NS are asked anew under unrestricted: names and texts
// come back, no address and nothing additional. Elsewhere nothing is asked.
func TestE260Records(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.resolver.set("ns.example.com", "203.0.113.53")
	g := w.gateway(func(c *Config) {
		c.Resolver = fakeRecords{w.resolver}
		c.BlockHosts = []string{"blocked.example.com"}
	})
	b := w.open(g, "u", Spec{Mode: ModeUnrestricted})
	body := func(name string, kind dnsmessage.Type) (out []string, m dnsmessage.Message) {
		t.Helper()
		m, err := b.ask("9.9.9.9:53", name, kind)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Additionals) != 0 || len(m.Authorities) != 0 || m.ID != 7 || len(m.Questions) != 1 {
			t.Errorf("%s %s: %+v", name, kind, m)
		}
		for _, a := range m.Answers {
			switch r := a.Body.(type) {
			case *dnsmessage.MXResource:
				out = append(out, r.MX.String())
			case *dnsmessage.TXTResource:
				out = append(out, strings.Join(r.TXT, ""))
			case *dnsmessage.SRVResource:
				out = append(out, r.Target.String())
			case *dnsmessage.NSResource:
				out = append(out, r.NS.String())
			default:
				t.Errorf("%s %s: an answer %v", name, kind, a)
			}
		}
		return out, m
	}
	for _, tt := range []struct {
		name string
		kind dnsmessage.Type
		want []string
		code dnsmessage.RCode
	}{
		{"example.com", dnsmessage.TypeMX, []string{"mx.example.com."}, dnsmessage.RCodeSuccess},
		{"example.com", dnsmessage.TypeTXT, []string{"v=spf1 -all", ""}, dnsmessage.RCodeSuccess},
		{"_xmpp-client._tcp.example.com", dnsmessage.TypeSRV, []string{"srv.example.com."}, dnsmessage.RCodeSuccess},
		{"example.com", dnsmessage.TypeNS, []string{"ns.example.com."}, dnsmessage.RCodeSuccess},
		{"none.example.com", dnsmessage.TypeMX, nil, dnsmessage.RCodeSuccess},
		{"lame.example.com", dnsmessage.TypeMX, nil, dnsmessage.RCodeServerFailure},
		{"blocked.example.com", dnsmessage.TypeTXT, nil, dnsmessage.RCodeSuccess},
		{"example.com", dnsmessage.TypeAAAA, nil, dnsmessage.RCodeSuccess},
		{"example.com", dnsmessage.TypeHTTPS, nil, dnsmessage.RCodeSuccess},
	} {
		if got, m := body(tt.name, tt.kind); !cmp.Equal(got, tt.want) || m.RCode != tt.code || m.Truncated {
			t.Errorf("%s %s: %q %v", tt.name, tt.kind, got, m.Header)
		}
	}
	// More than a datagram holds comes over TCP.
	if got, m := body("long.example.com", dnsmessage.TypeTXT); got != nil || !m.Truncated {
		t.Errorf("long, over UDP: %d bytes, %v", len(strings.Join(got, "")), m.Header)
	}
	c := b.mustDial("9.9.9.9:53")
	q := question(t, "long.example.com", dnsmessage.TypeTXT)
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		t.Fatal(err)
	}
	size := make([]byte, 2)
	if _, err := io.ReadFull(c, size); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, binary.BigEndian.Uint16(size))
	var m dnsmessage.Message
	if _, err := io.ReadFull(c, reply); err != nil || m.Unpack(reply) != nil || len(strings.Join(m.Answers[0].Body.(*dnsmessage.TXTResource).TXT, "")) != 700 {
		t.Errorf("long, over TCP: %v %v", err, m)
	}
	asked := w.resolver.questions()
	if slices.Contains(asked, "blocked.example.com.") || !slices.Contains(asked, "example.com.") {
		t.Errorf("asked %q", asked)
	}

	limited := w.open(g, "l", Spec{Mode: ModeLimited, AllowedHosts: []string{"example.com"}})
	before := len(w.resolver.questions())
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeMX, dnsmessage.TypeTXT, dnsmessage.TypeSRV, dnsmessage.TypeNS} {
		if m, err := limited.ask("9.9.9.9:53", "example.com", kind); err != nil || len(m.Answers) != 0 || m.RCode != dnsmessage.RCodeSuccess {
			t.Errorf("under limited, %s: %+v %v", kind, m, err)
		}
	}
	if after := w.resolver.questions(); len(after) != before {
		t.Errorf("under limited, asked %q", after[before:])
	}
}
