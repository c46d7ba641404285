package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// zoneServer is the resolver of a host whose operator has zones of their own: a
// real DNS server on loopback, over UDP and TCP.
type zoneServer struct {
	records map[string][]dnsmessage.ResourceBody // "name." → what is there

	mu    sync.Mutex // guards asked
	asked []string   // "name. TYPE", each once
}

func (z *zoneServer) add(name string, bodies ...dnsmessage.ResourceBody) {
	z.records[name+"."] = append(z.records[name+"."], bodies...)
}

func named(name string) dnsmessage.Name         { return dnsmessage.MustNewName(name + ".") }
func recordA(a ...byte) dnsmessage.ResourceBody { return &dnsmessage.AResource{A: [4]byte(a)} }
func recordNS(name string) dnsmessage.ResourceBody {
	return &dnsmessage.NSResource{NS: named(name)}
}
func recordCNAME(name string) dnsmessage.ResourceBody {
	return &dnsmessage.CNAMEResource{CNAME: named(name)}
}
func recordTXT(text ...string) dnsmessage.ResourceBody { return &dnsmessage.TXTResource{TXT: text} }

func bodyType(b dnsmessage.ResourceBody) dnsmessage.Type {
	switch b.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.NSResource:
		return dnsmessage.TypeNS
	case *dnsmessage.CNAMEResource:
		return dnsmessage.TypeCNAME
	case *dnsmessage.MXResource:
		return dnsmessage.TypeMX
	case *dnsmessage.SRVResource:
		return dnsmessage.TypeSRV
	}
	return dnsmessage.TypeTXT
}

// answer is the reply to a question: aliases are followed, as resolvers do.
func (z *zoneServer) answer(message []byte, limit int) []byte {
	var m dnsmessage.Message
	if m.Unpack(message) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	z.mu.Lock()
	if what := q.Name.String() + " " + strings.TrimPrefix(q.Type.String(), "Type"); !slices.Contains(z.asked, what) {
		z.asked = append(z.asked, what)
	}
	z.mu.Unlock()
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	name := q.Name
	for range 8 {
		alias := ""
		for _, b := range z.records[strings.ToLower(name.String())] {
			if kind := bodyType(b); kind == q.Type || kind == dnsmessage.TypeCNAME {
				reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 1}, Body: b})
				if c, ok := b.(*dnsmessage.CNAMEResource); ok {
					alias = c.CNAME.String()
				}
			}
		}
		if alias == "" {
			break
		}
		name = dnsmessage.MustNewName(alias)
	}
	if _, there := z.records[strings.ToLower(name.String())]; !there {
		reply.RCode = dnsmessage.RCodeNameError
	}
	out, err := reply.Pack()
	if err != nil || len(out) > limit {
		reply.Answers, reply.Truncated = nil, true
		out, _ = reply.Pack()
	}
	return out
}

// resolver starts the server and returns a resolver that asks it.
func (z *zoneServer) resolver(t testing.TB) *net.Resolver {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	var err error
	for range 50 { // a port that is free over both
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		_ = udp.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(udp.Close(), tcp.Close()) })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(z.answer(buf[:n], 512), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				size := make([]byte, 2)
				if _, err := io.ReadFull(c, size); err != nil {
					return
				}
				message := make([]byte, binary.BigEndian.Uint16(size))
				if _, err := io.ReadFull(c, message); err == nil {
					out := z.answer(message, 65535)
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
				}
			}()
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, udp.LocalAddr().String())
	}}
}

// wrapped is a resolver that has one of the host's inside.
type wrapped struct{ *net.Resolver }

func (w wrapped) HostResolver() *net.Resolver { return w.Resolver }

// Records of the operator's own zones are not given, whichever way leads there.
func TestE262InternalZones(t *testing.T) {
	t.Parallel()
	z := &zoneServer{records: map[string][]dnsmessage.ResourceBody{}}
	z.add("ns.example.net", recordA(203, 0, 113, 53))
	z.add("ns.inside.example.net", recordA(10, 0, 0, 53))
	z.add("example.net", recordNS("ns.example.net"), recordTXT("public"))
	z.add("_sip._tcp.example.net", &dnsmessage.SRVResource{Target: named("sip.example.net"), Port: 5060})
	z.add("example.com", recordNS("ns.example.net"), recordNS("lame.example.net"), recordTXT("public too"), &dnsmessage.MXResource{MX: named("mx.example.com")})
	z.add("a.b.example.com", recordTXT("below"))
	z.add("hr.example.com", recordNS("ns.inside.example.net"), recordTXT("secret"))
	z.add("x.hr.example.com", recordTXT("secret"), &dnsmessage.MXResource{MX: named("mx.hr.example.com")}, &dnsmessage.SRVResource{Target: named("db.hr.example.com"), Port: 5432})
	z.add("half.example.com", recordNS("ns.example.net"), recordNS("ns.inside.example.net"), recordTXT("secret"))
	z.add("dead.example.com", recordNS("lame.example.net"), recordTXT("secret"))
	z.add("named.example.com", recordNS("ns.corp"), recordTXT("secret"))
	z.add("example.org", recordTXT("in no zone"))
	z.add("alias.example.com", recordCNAME("example.net"))
	z.add("trick.example.com", recordCNAME("x.hr.example.com"))
	z.add("twice.example.com", recordCNAME("trick.example.com"))
	z.add("wide.example.com", recordCNAME("big.corp"))
	z.add("big.corp", recordTXT(strings.Repeat("x", 200), strings.Repeat("y", 200), strings.Repeat("z", 200)))
	z.add("zonealias.example.com", recordCNAME("example.net"))
	z.add("under.searched.example.net", recordTXT("secret"))
	for _, name := range []string{"db.internal", "printer.local", "x.corp", "host.lan", "intranet", "1.0.0.10.in-addr.arpa", "x.home.arpa", "vault.service.consul", "a.onion", "b.example"} {
		z.add(name, recordTXT("secret"), recordNS("ns.example.net"))
	}
	base := z.resolver(t)
	for name, resolver := range map[string]RecordResolver{"host's own": base, "wrapped": wrapped{base}} {
		t.Run(name, func(t *testing.T) {
			s := bareSlot(t, Spec{Mode: ModeUnrestricted}, nil, Limits{}, func(c *Config) { c.Resolver = resolver.(Resolver) })
			s.lookups = make(chan struct{}, maxLookups)
			file := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(file, []byte("nameserver 10.0.0.1\nsearch Searched.example.net. example.invalid\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s.gateway.guard.resolvConf = file
			// ask is what a sandbox is told: texts and targets, or why not.
			ask := func(host string, kind dnsmessage.Type) (out []string, reason Reason) {
				t.Helper()
				// Refusals that are the same are one record.
				fresh := *s.state.Load()
				fresh.journal = &journal{}
				s.state.Store(&fresh)
				q, asked, ok := s.asksAnew(question(t, host, kind))
				if ok {
					var m dnsmessage.Message
					if err := m.Unpack(s.lookUp(q, asked, maxTCPAnswer)); err != nil {
						t.Fatal(err)
					}
					for _, a := range m.Answers {
						switch b := a.Body.(type) {
						case *dnsmessage.TXTResource:
							out = append(out, strings.Join(b.TXT, ""))
						default:
							out = append(out, recordTargets(b)...)
						}
					}
					if m.RCode == dnsmessage.RCodeServerFailure {
						return out, ReasonResolveFailed
					}
				}
				if records := s.state.Load().journal.list(Filter{}); len(records) > 0 {
					return out, records[0].Reason
				}
				return out, ReasonOK
			}
			for _, tt := range []struct {
				host string
				kind dnsmessage.Type
				want []string
				why  Reason
			}{
				{"example.net", dnsmessage.TypeTXT, []string{"public"}, ReasonOK},
				{"_sip._tcp.example.net", dnsmessage.TypeSRV, []string{"sip.example.net."}, ReasonOK},
				{"example.com", dnsmessage.TypeTXT, []string{"public too"}, ReasonOK},
				{"example.com", dnsmessage.TypeMX, []string{"mx.example.com."}, ReasonOK},
				{"example.com", dnsmessage.TypeNS, []string{"ns.example.net.", "lame.example.net."}, ReasonOK},
				{"a.b.example.com", dnsmessage.TypeTXT, []string{"below"}, ReasonOK},
				{"alias.example.com", dnsmessage.TypeTXT, []string{"public"}, ReasonOK},
				{"zonealias.example.com", dnsmessage.TypeNS, []string{"ns.example.net."}, ReasonOK},
				{"absent.example.com", dnsmessage.TypeTXT, nil, ReasonOK},

				{"hr.example.com", dnsmessage.TypeTXT, nil, ReasonAddressNotPublic},
				{"hr.example.com", dnsmessage.TypeNS, nil, ReasonAddressNotPublic},
				{"x.hr.example.com", dnsmessage.TypeTXT, nil, ReasonAddressNotPublic},
				{"x.hr.example.com", dnsmessage.TypeMX, nil, ReasonAddressNotPublic},
				{"x.hr.example.com", dnsmessage.TypeSRV, nil, ReasonAddressNotPublic},
				{"half.example.com", dnsmessage.TypeTXT, nil, ReasonAddressNotPublic},
				{"dead.example.com", dnsmessage.TypeTXT, nil, ReasonResolveFailed},
				{"named.example.com", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"example.org", dnsmessage.TypeTXT, nil, ReasonAddressNotPublic},
				{"trick.example.com", dnsmessage.TypeTXT, nil, ReasonAddressNotPublic},
				{"trick.example.com", dnsmessage.TypeSRV, nil, ReasonAddressNotPublic},
				{"twice.example.com", dnsmessage.TypeMX, nil, ReasonAddressNotPublic},
				{"wide.example.com", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"searched.example.net", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"under.searched.example.net", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"db.internal", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"printer.local", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"x.corp", dnsmessage.TypeNS, nil, ReasonNameNotAllowed},
				{"host.lan", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"intranet", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"1.0.0.10.in-addr.arpa", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"x.home.arpa", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"vault.service.consul", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"a.onion", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{"b.example", dnsmessage.TypeTXT, nil, ReasonNameNotAllowed},
				{strings.Repeat("a.", 20) + "example.com", dnsmessage.TypeTXT, nil, ReasonAddressNotPublic},
			} {
				got, why := ask(tt.host, tt.kind)
				if !cmp.Equal(got, tt.want) || why != tt.why {
					t.Errorf("%s %s: %q (%s), want %q (%s)", tt.host, tt.kind, got, why, tt.want, tt.why)
				}
			}
		})
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, what := range z.asked { // what is refused by its name is asked of nobody
		for _, never := range []string{"internal.", "local.", "corp.", "lan.", "intranet.", "arpa.", "consul.", "onion.", "b.example.", "searched.example.net."} {
			if name, _, _ := strings.Cut(what, " "); strings.HasSuffix(name, never) && name != "ipv4only.arpa." {
				t.Errorf("the resolver was asked for %s", what)
			}
		}
	}
	for _, what := range []string{"x.hr.example.com. TXT", "half.example.com. TXT", "hr.example.com. TXT", "example.org. TXT"} {
		if slices.Contains(z.asked, what) {
			t.Errorf("the resolver was asked for %s of a zone that is not public", what)
		}
	}
}

func TestSearchDomains(t *testing.T) {
	t.Parallel()
	got := parseSearchDomains([]byte("# search no.example.com\nnameserver 10.0.0.1\ndomain corp.example.com\nsearch A.example.com. b_.example.com bad!name . 10.0.0.1\noptions ndots:5\nsearch\n"))
	want := []Host{mustHost(t, "corp.example.com"), mustHost(t, "a.example.com"), mustHost(t, "b_.example.com")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := searchDomains(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("without the file: %v", err)
	}
	if _, err := searchDomains(t.TempDir()); err == nil {
		t.Error("what cannot be read has no domains")
	}
}

// What was found out about zones is kept for a while, up to a number, and not
// over a reload.
func TestZoneVerdicts(t *testing.T) {
	t.Parallel()
	var z zoneVerdicts
	now, later := &rules{}, &rules{allowECH: true}
	refused := errors.New("refused")
	z.put(now, mustHost(t, "a.example.com"), refused)
	if err, known := z.get(now, mustHost(t, "a.example.com")); !known || !errors.Is(err, refused) {
		t.Errorf("%v %v", err, known)
	}
	if _, known := z.get(later, mustHost(t, "a.example.com")); known {
		t.Error("a verdict outlives the rules")
	}
	z.known[mustHost(t, "a.example.com")] = zoneVerdict{refused, time.Now().Add(-zoneVerdictAge)}
	if _, known := z.get(now, mustHost(t, "a.example.com")); known {
		t.Error("a verdict does not age")
	}
	for i := range 3 * maxZones {
		z.put(now, Host{strings.Repeat("a", i+1) + ".example.com"}, nil)
	}
	if len(z.known) > maxZones {
		t.Errorf("%d verdicts", len(z.known))
	}
}

// FuzzAliases: no message of a resolver makes the reader stumble, and what it
// cannot read to the end counts as an answer with a bad name.
func FuzzAliases(f *testing.F) {
	z := &zoneServer{records: map[string][]dnsmessage.ResourceBody{"a.example.com.": {recordCNAME("b.example.com")}, "b.example.com.": {recordTXT("x")}}}
	f.Add(z.answer(question(f, "a.example.com", dnsmessage.TypeTXT), 512))
	f.Add([]byte{0, 7, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xc0, 0x0c})
	asked := mustHost(f, "a.example.com")
	f.Fuzz(func(t *testing.T, message []byte) {
		seen := &seenNames{}
		seen.read(message)
		names, ok := seen.beside(asked)
		var m dnsmessage.Message
		if err := m.Unpack(message); err != nil {
			return // it may have been whole up to the last answer
		}
		for _, a := range m.Answers {
			h, err := Canonical(a.Header.Name.String())
			if err == nil && h != asked && ok && !slices.Contains(names, h) {
				t.Errorf("%s was overlooked", h)
			}
		}
	})
}
