package egress

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// recorder is an upstream that reads requests strictly and keeps their bytes.
type recorder struct {
	net.Listener
	mu     sync.Mutex // guards what follows
	got    []*http.Request
	fail   error
	active int             // connections that are read
	seen   map[string]bool // addresses of the peers that were accepted
}

// settle waits until every connection that was made so far has been read to its
// end: connections are accepted in order, so one made now comes last.
func (u *recorder) settle(t *testing.T) {
	t.Helper()
	last, err := net.Dial("tcp", u.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	name := last.LocalAddr().String()
	_ = last.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond / 4) {
		u.mu.Lock()
		settled := u.seen[name] && u.active == 0
		u.mu.Unlock()
		if settled {
			return
		}
		if time.Now().After(end) {
			t.Fatal("connections to the upstream stay open after their client's has ended")
		}
	}
}

func (u *recorder) serve() {
	for {
		c, err := u.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.seen[c.RemoteAddr().String()] = true
		u.active++
		u.mu.Unlock()
		go func() {
			defer func() {
				_ = c.Close()
				u.mu.Lock()
				u.active--
				u.mu.Unlock()
			}()
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
	for _, s := range seedRequests() {
		f.Add(s, 40)
		f.Add(ok+s, len(ok))
		f.Add(s+ok, 1)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	u := &recorder{Listener: l, seen: map[string]bool{}}
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
		clear(u.seen)
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
		fl := &flow{connection: s.connection("tcp", netip.AddrPortFrom(syntheticAddr(0), port), &st), slot: s, client: c.(*net.TCPConn)}
		fl.ctx, fl.cancel, fl.cut = s.ctx, func() {}, fl.reset
		fl.host, fl.choice = fl.decide(&st)
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
		u.settle(t)
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
		if len(u.got) > accepted {
			t.Errorf("%d requests upstream, %d accepted", len(u.got), accepted)
		}
		for _, r := range u.got {
			host, p, err := splitAuthority(r.Host)
			if err != nil || host != name || p != port && p != 0 {
				t.Errorf("upstream got a request for %q", r.Host)
			}
			if !strings.HasPrefix(r.RequestURI, "/") && r.RequestURI != "*" {
				t.Errorf("upstream got the target %q", r.RequestURI)
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
	s := bareSlot(t, Spec{Mode: ModeLimited, Endpoints: []Endpoint{{Host: name, Port: int(port), Rule: "mcp:x"}}}, r,
		Limits{Hello: 200 * time.Millisecond, HTTPHead: 200 * time.Millisecond, Idle: 200 * time.Millisecond}, func(c *Config) {
			c.Exempt = []Exemption{{Host: name.name, CIDR: netip.MustParsePrefix("127.0.0.1/32"), Ports: []int{int(port)}}}
		})
	s.gate = &gate{conns: make(chan net.Conn), closed: make(chan struct{}), addr: &net.TCPAddr{}}
	s.server = s.newHTTPServer()
	go func() { _ = s.server.Serve(s.gate) }()
	return s
}

// bareSlot is a slot with a policy and without namespaces or sockets.
func bareSlot(t testing.TB, spec Spec, r *fakeResolver, limits Limits, change func(*Config)) *slot {
	t.Helper()
	g := &Gateway{config: Config{Limits: limits.withDefaults(), Descriptors: plenty{}}, log: discardLogger()}
	g.guard = testGuard(t, r, change)
	table, err := createNames(t.TempDir() + "/names")
	if err != nil {
		t.Fatal(err)
	}
	p := mustCompile(t, spec)
	if err := table.list(p.exact); err != nil {
		t.Fatal(err)
	}
	s := &slot{gateway: g, connRate: rate.NewLimiter(rate.Inf, 1), dnsRate: rate.NewLimiter(rate.Inf, 1), flows: map[*flow]bool{}, ctx: t.Context()}
	s.state.Store(&state{id: "fuzz", policy: p, names: table, journal: &journal{}})
	return s
}
