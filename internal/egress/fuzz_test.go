package egress

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/dns/dnsmessage"
)

func FuzzCanonical(f *testing.F) {
	for _, s := range seedNames() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		h, err := Canonical(raw)
		if err != nil {
			if !h.IsZero() {
				t.Errorf("an error and a host: %q", h)
			}
			for i := 0; i < len(err.Error()); i++ {
				if c := err.Error()[i]; c < 0x20 || c > 0x7e {
					t.Errorf("the error has byte %#x", c)
				}
			}
			return
		}
		again, err := Canonical(h.name)
		if err != nil || again != h {
			t.Errorf("%q: not a fixed point: %q %v", h, again, err)
		}
		if strings.Trim(h.name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(h.name) > maxName {
			t.Errorf("%q has other bytes or is too long", h)
		}
		// What the C library, Go or a browser would read as an address.
		if _, err := netip.ParseAddr(h.name); err == nil || inetAton(h.name) {
			t.Errorf("%q is an address", h)
		}
		labels := strings.Split(h.name, ".")
		if regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`).MatchString(labels[len(labels)-1]) {
			t.Errorf("%q ends in a number", h)
		}
	})
}

// inetAton tells whether the C library's function of that name takes a string
// for an address: one to four numbers, octal and hexadecimal ones too, of which
// the last fills the bytes that are left.
func inetAton(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return false
	}
	for i, p := range parts {
		base := 10
		switch {
		case len(p) > 1 && (p[:2] == "0x" || p[:2] == "0X"):
			p, base = p[2:], 16
		case len(p) > 1 && p[0] == '0':
			base = 8
		}
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if _, err := strconv.ParseUint(p, base, bits); err != nil {
			return false
		}
	}
	return true
}

func FuzzEntry(f *testing.F) {
	for _, s := range append(seedNames(), seedEntries()...) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		e, err := ParseEntry(raw)
		e2, err2 := ParseEntry(raw)
		if e != e2 || (err == nil) != (err2 == nil) {
			t.Errorf("%q: two verdicts", raw)
		}
		if err != nil {
			for i := 0; i < len(err.Error()); i++ {
				if c := err.Error()[i]; c < 0x20 || c > 0x7e {
					t.Errorf("%q: the error has byte %#x", raw, c)
				}
			}
			return
		}
		if again, err := Canonical(e.Host.name); err != nil || again != e.Host || e.Raw != raw {
			t.Errorf("%q: compiled to %+v", raw, e)
		}
	})
}

// labelsMatch is the slow reference: it compares lists of labels.
func labelsMatch(entry Entry, host Host) bool {
	want, got := strings.Split(entry.Host.name, "."), strings.Split(host.name, ".")
	if entry.Wildcard {
		return len(got) > len(want) && slices.Equal(want, got[len(got)-len(want):])
	}
	return slices.Equal(want, got)
}

func FuzzMatch(f *testing.F) {
	f.Add("example.com *.example.org", "a.example.org", "*.a.example.org")
	f.Add("*.example.com", "notexample.com", "notexample.com")
	f.Add("a.b.c *.b.c *.c", "a.b.c", "x")
	for _, name := range []string{"a.example.com", "notexample.com", "example.com.evil.test", "xexample.com", "1.2.3.4.5.6.7.8.9.a.example.com", "example.com"} {
		f.Add("example.com", name, "*.com.evil.test") // E150, E151
		f.Add("*.example.com", name, "a.example.com") // E152 to E154
		f.Add("*.example.com example.com EXAMPLE.COM", name, "example.com")
	}
	f.Fuzz(func(t *testing.T, list, name, block string) {
		host, err := Canonical(name)
		if err != nil {
			return
		}
		var hosts []string
		want, before := false, false
		for raw := range strings.FieldsSeq(list) {
			e, err := ParseEntry(raw)
			if err != nil {
				continue
			}
			hosts = append(hosts, raw)
			want = want || labelsMatch(e, host)
			_, now := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: hosts}).Allows(SourceSandbox, host, 443)
			if before && !now {
				t.Errorf("%q takes %s away", raw, host)
			}
			before = now
		}
		if before != want {
			t.Errorf("%q allow %s: %v, the reference says %v", hosts, host, before, want)
		}
		e, err := ParseEntry(block)
		if err != nil {
			return
		}
		r, err := compileRules(Config{BlockHosts: []string{block}, OpenPorts: []OpenPort{{Host: block, Ports: []int{22}}}})
		if err != nil {
			t.Fatalf("%q blocks and opens nothing: %v", block, err)
		}
		for _, mode := range []Mode{ModeLimited, ModeUnrestricted} {
			spec := Spec{Mode: mode}
			if mode == ModeLimited {
				spec.AllowedHosts = hosts
			}
			for _, port := range []uint16{22, 80, 443} {
				got := r.decide(mustCompile(t, spec), host, port, SourceSandbox).reason
				if (got == ReasonBlocklisted) != labelsMatch(e, host) {
					t.Errorf("%s, %q is blocked: %s on port %d is %s", mode, block, host, port, got)
				}
			}
		}
	})
}

// snis finds the server names of a ClientHello without the standard parser.
func snis(raw []byte) (names []string) {
	var body []byte
	for len(raw) >= 5 && raw[0] == 0x16 {
		n := int(binary.BigEndian.Uint16(raw[3:]))
		if len(raw) < 5+n {
			break
		}
		body, raw = append(body, raw[5:5+n]...), raw[5+n:]
	}
	defer func() { _ = recover() }() // too short for what it says: what was found stands
	if body[0] != 1 {
		return nil
	}
	b := body[4 : 4+(int(body[1])<<16|int(body[2])<<8|int(body[3]))]
	b = b[34:]
	b = b[1+int(b[0]):]
	b = b[2+int(binary.BigEndian.Uint16(b)):]
	b = b[1+int(b[0]):]
	for b = b[2:]; len(b) >= 4; {
		kind, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if kind == 0 {
			for list := b[6 : 4+n]; len(list) >= 3; list = list[3+int(binary.BigEndian.Uint16(list[1:])):] {
				names = append(names, string(list[3:3+int(binary.BigEndian.Uint16(list[1:]))]))
			}
		}
		b = b[4+n:]
	}
	return names
}

func FuzzClientHello(f *testing.F) {
	for _, h := range seedHellos(f) {
		f.Add(h, 3, 700)
	}
	host := mustHost(f, "ok.example.com")
	f.Fuzz(func(t *testing.T, raw []byte, first, second int) {
		h, err := readHello(bytes.NewReader(raw), maxHello)
		reason, _ := checkHello(h, err, host, false)
		if len(h.raw) > maxHello || !bytes.HasPrefix(raw, h.raw) {
			t.Fatalf("read %d bytes that were not sent", len(h.raw))
		}
		splits := map[string]io.Reader{"in three": pieces(raw, first, second)}
		if len(raw) < 4096 {
			splits["byte by byte"] = iotest.OneByteReader(bytes.NewReader(raw))
		}
		for how, r := range splits {
			h1, err1 := readHello(r, maxHello)
			if r1, _ := checkHello(h1, err1, host, false); r1 != reason {
				t.Errorf("whole: %s, %s: %s", reason, how, r1)
			}
		}
		if reason != ReasonOK {
			r, _ := checkHello(h, err, host, true)
			if (r == ReasonOK) != (reason == ReasonECHPresent) {
				t.Errorf("%s, and with encrypted hellos let through: %s", reason, r)
			}
		} else {
			if names := snis(h.raw); len(names) != 1 || !strings.EqualFold(names[0], host.name) {
				t.Errorf("allowed, and the names are %q", names)
			}
		}
	})
}

func FuzzDNS(f *testing.F) {
	for _, q := range seedQuestions(f) {
		f.Add(q, false)
		f.Add(q, true)
	}
	slots := map[bool]*slot{}
	for unrestricted, spec := range map[bool]Spec{
		false: {Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "*.wild.example.com"}},
		true:  {Mode: ModeUnrestricted},
	} {
		slots[unrestricted] = bareSlot(f, spec, &fakeResolver{hosts: map[string][]string{}}, Limits{Names: 50, NamesUnrestricted: 50}, nil)
	}
	f.Fuzz(func(t *testing.T, message []byte, unrestricted bool) {
		s := slots[unrestricted]
		st := s.state.Load()
		out := s.answer(message)
		if r := st.journal.list(Filter{Limit: 1}); len(r) > 0 && r[0].Host != "" {
			if h, err := Canonical(r[0].Host); err != nil || h.name != r[0].Host {
				t.Errorf("on record is %q", r[0].Host)
			}
		}
		if asked := s.gateway.guard.rules.Load().resolver.(*fakeResolver).questions(); len(asked) != 0 {
			t.Fatalf("a question went upstream: %q", asked)
		}
		if out == nil {
			return
		}
		if len(out) > 512 {
			t.Errorf("%d bytes", len(out))
		}
		if !bytes.Equal(out[:2], message[:2]) {
			t.Error("another id")
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil || !m.Response {
			t.Fatalf("the reply does not parse: %v", err)
		}
		var p dnsmessage.Parser
		if _, err := p.Start(message); err != nil {
			t.Fatal("answered what does not parse")
		}
		if q, err := p.Question(); err == nil && len(m.Questions) == 1 && m.Questions[0] != q {
			t.Errorf("question %+v became %+v", q, m.Questions[0])
		}
		if len(m.Authorities) != 0 || len(m.Additionals) != 0 {
			t.Errorf("more than an answer: %+v", m)
		}
		for _, a := range m.Answers {
			r, ok := a.Body.(*dnsmessage.AResource)
			if !ok || a.Header.Name != m.Questions[0].Name {
				t.Fatalf("answer %+v", a)
			}
			asked, err := Canonical(m.Questions[0].Name.String())
			if err != nil {
				t.Fatalf("an address for %q", m.Questions[0].Name)
			}
			switch addr := netip.AddrFrom4(r.A); {
			case addr == refusalAddress():
				if st.policy.names(asked) {
					t.Errorf("%s is allowed and got the refusal address", asked)
				}
			case asked.name == "localhost" || strings.HasSuffix(asked.name, ".localhost"):
				if !addr.IsLoopback() {
					t.Errorf("%s is %s", asked, addr)
				}
			default:
				if host, ok := st.names.host(addr); !ok || host != asked || !st.policy.names(asked) {
					t.Errorf("%s is %s, which is %s", asked, addr, host)
				}
			}
		}
	})
}

func FuzzAddr(f *testing.F) {
	for text := range guardTable() {
		a := netip.MustParseAddr(text).WithZone("")
		f.Add(a.AsSlice())
	}
	// The reference is another implementation over the same published list.
	var nets []*net.IPNet
	for _, p := range notPublic() {
		_, n, err := net.ParseCIDR(p.String())
		if err != nil {
			f.Fatal(err)
		}
		nets = append(nets, n)
	}
	listed := func(ip net.IP) bool {
		return slices.ContainsFunc(nets, func(n *net.IPNet) bool { return (n.IP.To4() != nil) == (ip.To4() != nil) && n.Contains(ip) })
	}
	r := ranges(notPublic())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		want := !listed(net.IP(b))
		if len(b) == 16 && bytes.HasPrefix(b, []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0}) {
			want = want && !listed(net.IP(b[12:]))
		}
		if len(b) == 16 && b[0] == 0x20 && b[1] == 2 {
			want = want && !listed(net.IP(b[2:6]))
		}
		if got := r.public(a); got != want {
			t.Errorf("%s: public %v, the reference says %v", a, got, want)
		}
		if r.public(a.WithZone("x")) && a.Is6() && !a.Is4In6() {
			t.Errorf("%s with a zone is public", a)
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte(`{"mode":"limited","allowed_hosts":["a.example","*.b.example"],"endpoints":[{"host":"c.example","port":8443,"rule":"mcp:x"}]}`))
	f.Add([]byte(`{"mode":"unrestricted"}`))
	f.Add([]byte(`{"mode":"limited","allowed_hosts":["*"]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		var s Spec
		if json.Unmarshal(document, &s) != nil {
			return
		}
		p, err := Compile(s)
		if err != nil {
			if p != nil {
				t.Error("an error and a policy")
			}
			return
		}
		again, err := Compile(p.Spec())
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("the echo compiles to another policy: %v", err)
		}
		written, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var read Spec
		if err := json.Unmarshal(written, &read); err != nil {
			t.Fatal(err)
		}
		if again, err := Compile(read); err != nil || !again.Equal(p) || !slices.Equal(again.exact, p.exact) || !reflect.DeepEqual(again.hosts, p.hosts) || !reflect.DeepEqual(again.endpoints, p.endpoints) {
			t.Errorf("stored and read it is another policy: %v", err)
		}
	})
}

func FuzzTable(f *testing.F) {
	f.Add([]byte(namesHeader))
	f.Add([]byte(namesHeader + nameLine(syntheticAddr(0), mustHost(f, "a.example")) + nameLine(syntheticAddr(1), mustHost(f, "b.example"))))
	f.Add([]byte(namesHeader + "198.18.1.0 a.example 00000000\n"))
	line := nameLine(syntheticAddr(0), mustHost(f, "a.example"))
	f.Add([]byte(namesHeader + line[:len(line)-3]))                                                   // cut
	f.Add([]byte(namesHeader + line + nameLine(syntheticAddr(1), mustHost(f, "a.example"))))          // one name, two addresses
	f.Add([]byte(namesHeader + line + nameLine(syntheticAddr(0), mustHost(f, "b.example"))))          // one address, two names
	f.Add([]byte(namesHeader + nameLine(syntheticAddr(1), mustHost(f, "a.example")) + line))          // out of order
	f.Add([]byte(namesHeader + line + "\x00" + nameLine(syntheticAddr(1), mustHost(f, "b.example")))) // garbage between
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parseNames(data)
		if err != nil {
			return
		}
		// What loads is what would be written: nothing else in the file.
		out := namesHeader
		for i, h := range n.byAddr {
			out += nameLine(syntheticAddr(i), h)
			if n.byHost[h] != i {
				t.Errorf("%s has two addresses", h)
			}
		}
		if out != string(data) {
			t.Errorf("loaded from other bytes than are written")
		}
		// What is given out next is a new address, and stays.
		path := t.TempDir() + "/names"
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err = openNames(path); err != nil {
			t.Fatal(err)
		}
		defer n.close()
		fresh := mustHost(t, "fresh.example.com")
		_, known := n.byHost[fresh]
		addr, err := n.address(fresh, syntheticLast)
		if err != nil || !known && addr != syntheticAddr(len(n.byAddr)-1) {
			t.Errorf("%s %v", addr, err)
		}
		again, err := openNames(path)
		if err != nil {
			t.Fatal(err)
		}
		defer again.close()
		if !slices.Equal(again.byAddr, n.byAddr) {
			t.Error("another table after another start")
		}
	})
}
