package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/time/rate"
)

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"example.com", "EXAMPLE.com.", "xn--bcher-kva.example", "127.1", "0x7f.1", "a..b", "[::1]", "a\x00b", "r3---x", "2130706433", "1e100.net"} {
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
		if _, err := netip.ParseAddr(h.name); err == nil {
			t.Errorf("%q is an address", h)
		}
		labels := strings.Split(h.name, ".")
		if regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`).MatchString(labels[len(labels)-1]) {
			t.Errorf("%q ends in a number", h)
		}
	})
}

func FuzzEntry(f *testing.F) {
	for _, s := range []string{"example.com", "*.example.com", "https://example.com", "example.com:443", "*", "b\u00fccher.example", "*.co.uk", "\uff0a.example", "1.2.3.4", "[::1]", "a@b", "\xff"} {
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
			_, now := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: hosts}).Allows(host, 443)
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
		blocked, err := newBlockList([]string{block})
		if err != nil || blocked.has(host) != labelsMatch(e, host) {
			t.Errorf("block list %q has %s: %v %v", block, host, blocked.has(host), err)
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
	for _, name := range []string{"ok.example.com", "no.example.com", "", "OK.example.com", "ok.example.com.", "a\x00.ok.example.com"} {
		f.Add(withSNI(f, name))
	}
	f.Add(addExtension(withSNI(f, "ok.example.com"), extensionECH, greaseECH()))
	f.Add(addExtension(withSNI(f, "ok.example.com"), 0, []byte("\x00\x11\x00\x00\x0eok.example.com")))
	f.Add(clientHello(f, &tls.Config{ServerName: "ok.example.com", MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}))
	host := mustHost(f, "ok.example.com")
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := readHello(bytes.NewReader(raw))
		reason, _ := checkHello(h, err, host, false)
		if len(h.raw) > maxHello || !bytes.HasPrefix(raw, h.raw) {
			t.Fatalf("read %d bytes that were not sent", len(h.raw))
		}
		if len(raw) < 4096 {
			h1, err1 := readHello(iotest.OneByteReader(bytes.NewReader(raw)))
			if r1, _ := checkHello(h1, err1, host, false); r1 != reason {
				t.Errorf("whole: %s, byte by byte: %s", reason, r1)
			}
		}
		if reason == ReasonOK {
			if names := snis(h.raw); len(names) != 1 || !strings.EqualFold(names[0], host.name) {
				t.Errorf("allowed, and the names are %q", names)
			}
		}
	})
}

func FuzzDNS(f *testing.F) {
	f.Add(question(f, "ok.example.com", dnsmessage.TypeA))
	f.Add(question(f, "no.example.com", dnsmessage.TypeAAAA))
	f.Add(question(f, "x.in-addr.arpa", dnsmessage.TypePTR))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, message []byte) {
		asked := 0
		out := dnsReply(message, func(string) (dnsmessage.RCode, netip.Addr) {
			asked++
			return dnsmessage.RCodeSuccess, syntheticAddr(3)
		})
		if asked > 1 {
			t.Errorf("%d lookups for one message", asked)
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
		for _, a := range m.Answers {
			if r, ok := a.Body.(*dnsmessage.AResource); !ok || netip.AddrFrom4(r.A) != syntheticAddr(3) || a.Header.Name != m.Questions[0].Name {
				t.Errorf("answer %+v", a)
			}
		}
		var p dnsmessage.Parser
		if _, err := p.Start(message); err != nil {
			t.Fatal("answered what does not parse")
		}
		if q, err := p.Question(); err == nil && len(m.Questions) == 1 && m.Questions[0] != q {
			t.Errorf("question %+v became %+v", q, m.Questions[0])
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
		if err != nil || !slices.Equal(again.hosts, p.hosts) || len(again.wildcard) != len(p.wildcard) {
			t.Errorf("the echo compiles to another policy: %v", err)
		}
	})
}

func FuzzTable(f *testing.F) {
	f.Add([]byte(namesHeader))
	f.Add([]byte(namesHeader + nameLine(syntheticAddr(0), mustHost(f, "a.example")) + nameLine(syntheticAddr(1), mustHost(f, "b.example"))))
	f.Add([]byte(namesHeader + "198.18.1.0 a.example 00000000\n"))
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
	})
}

// recorder is an upstream that reads requests strictly and keeps their bytes.
type recorder struct {
	net.Listener
	mu   sync.Mutex // guards what follows
	got  []*http.Request
	fail error
}

func (u *recorder) serve() {
	for {
		c, err := u.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var read bytes.Buffer
			r := bufio.NewReader(io.TeeReader(c, &read))
			for {
				req, err := http.ReadRequest(r)
				u.mu.Lock()
				if err == nil {
					u.got = append(u.got, req)
				} else if read.Len() > 0 && err != io.EOF && err != io.ErrUnexpectedEOF && !isReset(err) {
					u.fail = err
				}
				u.mu.Unlock()
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, req.Body); err != nil {
					return
				}
				if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
					return
				}
			}
		}()
	}
}

func FuzzHTTPGate(f *testing.F) {
	const ok = "GET / HTTP/1.1\r\nHost: ok.example.com\r\n\r\n"
	for _, s := range []string{
		ok, ok + ok, ok + "GET / HTTP/1.1\r\nHost: no.example.com\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + ok,
		"POST / HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\n" + ok,
		"GET http://no.example.com/ HTTP/1.1\r\nHost: ok.example.com\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: ok.example.com\r\nX: a\r\n Host: no.example.com\r\n\r\n",
		"GET / HTTP/1.1\nHost: ok.example.com\n\n", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
	} {
		f.Add(s, 7)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	u := &recorder{Listener: l}
	go u.serve()
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	name := mustHost(f, "ok.example.com")
	s := gateOnly(f, name, port)
	f.Fuzz(func(t *testing.T, sent string, split int) {
		u.mu.Lock()
		u.got, u.fail = nil, nil
		u.mu.Unlock()
		client, err := net.Dial("tcp", inside.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer reset(client.(*net.TCPConn))
		c, err := inside.Accept()
		if err != nil {
			t.Fatal(err)
		}
		st := *s.state.Load()
		st.journal = &journal{}
		s.state.Store(&st)
		fl := &flow{slot: s, client: c.(*net.TCPConn), dest: netip.AddrPortFrom(syntheticAddr(0), port), start: time.Now(), st: &st, ctx: s.ctx, cancel: func() {}}
		fl.host, fl.choice = s.decide(&st, fl.dest)
		done := make(chan struct{})
		go func() { defer close(done); fl.run(); fl.reset() }()
		_ = client.SetDeadline(time.Now().Add(5 * time.Second))
		at := 0
		if len(sent) > 0 {
			at = max(split, 0) % len(sent)
		}
		_, _ = io.WriteString(client, sent[:at])
		_, _ = io.WriteString(client, sent[at:])
		_ = client.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, client)
		<-done
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.fail != nil {
			t.Errorf("the upstream could not parse what it got: %v", u.fail)
		}
		accepted := 0
		for _, r := range st.journal.list(Filter{}) {
			if r.Reason == ReasonOK || r.Verdict == VerdictFailed {
				accepted += int(r.Count)
			}
		}
		if len(u.got) > accepted+1 { // one may have been sent and its client gone before the answer
			t.Errorf("%d requests upstream, %d accepted", len(u.got), accepted)
		}
		for _, r := range u.got {
			host, p, err := splitAuthority(r.Host)
			if err != nil || host != name || p != port && p != 0 {
				t.Errorf("upstream got a request for %q", r.Host)
			}
			if len(r.TransferEncoding) > 0 && r.Header.Get("Content-Length") != "" {
				t.Error("two framings")
			}
		}
	})
}

// gateOnly is a slot without namespaces, for one name on one port of loopback.
func gateOnly(t testing.TB, name Host, port uint16) *slot {
	t.Helper()
	r := &fakeResolver{hosts: map[string][]string{name.name + ".": {"127.0.0.1"}}}
	g := &Gateway{config: Config{Limits: Limits{Hello: 200 * time.Millisecond, HTTPHead: 200 * time.Millisecond, Idle: 200 * time.Millisecond}.withDefaults()}}
	g.log = discardLogger()
	g.guard = testGuard(t, r, func(c *Config) {
		c.Exempt = []Exemption{{Host: name.name, CIDR: netip.MustParsePrefix("127.0.0.1/32"), Ports: []int{int(port)}}}
	})
	table, err := createNames(t.TempDir() + "/names")
	if err != nil {
		t.Fatal(err)
	}
	p := mustCompile(t, Spec{Mode: ModeLimited, Endpoints: []Endpoint{{Host: name.name, Port: int(port), Rule: "mcp:x"}}})
	if err := table.list(p.hosts); err != nil {
		t.Fatal(err)
	}
	s := &slot{gateway: g, connRate: rate.NewLimiter(rate.Inf, 1), dnsRate: rate.NewLimiter(rate.Inf, 1), flows: map[*flow]bool{}, ctx: t.Context()}
	s.state.Store(&state{id: "fuzz", policy: p, names: table, journal: &journal{}})
	s.gate = &gate{conns: make(chan net.Conn), closed: make(chan struct{}), addr: &net.TCPAddr{}}
	s.server = s.newHTTPServer()
	go func() { _ = s.server.Serve(s.gate) }()
	return s
}
