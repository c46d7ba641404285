package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\r\n")
	return line
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "two.example.com")
	b := w.limited("ok.example.com", "two.example.com")
	const end = "Connection: close\r\n\r\n"
	tests := []struct {
		number, send string
		status       string // of the first answer
		reason       Reason
		upstream     []string
	}{
		{"E101", "GET /x?a=1;b&c=%zz HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "200", ReasonOK, []string{"GET http ok.example.com/x?a=1;b&c=%zz 0"}},
		{"E102", "GET / HTTP/1.1\r\nHost: OK.example.com\r\n" + end, "200", ReasonOK, []string{"GET http ok.example.com/ 0"}},
		{"E102", "GET / HTTP/1.1\r\nHost: ok.example.com.\r\n" + end, "200", ReasonOK, []string{"GET http ok.example.com/ 0"}},
		{"E102", "GET / HTTP/1.1\r\nHost: ok.example.com:80\r\n" + end, "200", ReasonOK, []string{"GET http ok.example.com/ 0"}},
		{"E103", "GET / HTTP/1.1\r\nHost: two.example.com\r\n" + end, "403", ReasonHostMismatch, nil},
		{"E103", "GET / HTTP/1.1\r\nHost: no.example.com\r\n" + end, "403", ReasonHostMismatch, nil},
		{"E104", "GET / HTTP/1.0\r\n\r\n", "403", ReasonHostMissing, nil},
		{"E104", "GET / HTTP/1.1\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E105", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nHost: ok.example.com\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E105", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nHost: no.example.com\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E106", "GET http://ok.example.com/p HTTP/1.1\r\nHost: no.example.com\r\n" + end, "200", ReasonOK, []string{"GET http ok.example.com/p 0"}},
		{"E106", "GET http://no.example.com/p HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "403", ReasonHostMismatch, nil},
		{"E106", "GET https://ok.example.com/p HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "403", ReasonProtocolNotAllowed, nil},
		{"E106", "GET http:www//no.example.com/ HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "403", ReasonHTTPMalformed, nil},
		{"E110", "POST / HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400", ReasonHTTPMalformed, nil},
		{"E110", "POST / HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: xchunked\r\n\r\n", "501", ReasonHTTPMalformed, nil},
		{"E110", "POST / HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", "501", ReasonHTTPMalformed, nil},
		{"E111", "GET / HTTP/1.1\r\nHost : ok.example.com\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E111", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nX: a\x00b\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E112", "GET / HTTP/1.1\r\nHost: ok.example.com:8080\r\n" + end, "403", ReasonHostMismatch, nil},
		{"E114", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "200", ReasonOK, []string{"GET http ok.example.com/ 0"}},
		{"E114", "POST /echo HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 3\r\nConnection: Upgrade, close\r\nUpgrade: TLS/1.2, H2C\r\n\r\nabc", "200", ReasonOK, []string{"POST http ok.example.com/echo 3"}},
		{"E114", "GET / HTTP/1.1\r\nHost: no.example.com\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n", "403", ReasonHostMismatch, nil},
		{"E128", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\nbytes", "403", ReasonProtocolNotAllowed, nil},
		{"E128", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: Upgrade\r\nUpgrade: h2c, tunnel\r\n\r\nbytes", "403", ReasonProtocolNotAllowed, nil},
		{"E128", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: tunnel\r\n\r\nbytes", "403", ReasonProtocolNotAllowed, nil},
		{"E115", "CONNECT ok.example.com:80 HTTP/1.1\r\nHost: ok.example.com:80\r\n\r\n", "403", ReasonProtocolNotAllowed, nil},
		{"E115", "CONNECT no.example.com:443 HTTP/1.1\r\nHost: no.example.com:443\r\n\r\n", "403", ReasonProtocolNotAllowed, nil},
		{"E117", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", "431", ReasonHTTPMalformed, nil},
		{"E120", "OPTIONS * HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "200", ReasonOK, []string{"OPTIONS http ok.example.com* 0"}},
		{"E120", "BREW /pot HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "200", ReasonOK, []string{"BREW http ok.example.com/pot 0"}},
		{"E120", "M-SEARCH /x HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "200", ReasonOK, []string{"M-SEARCH http ok.example.com/x 0"}},
		{"E120", "VERSION-CONTROL /x HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "200", ReasonOK, []string{"VERSION-CONTROL http ok.example.com/x 0"}},
		{"E121", "GET / HTTP/1.1\r\nHost: u@ok.example.com\r\n" + end, "400", ReasonHTTPMalformed, nil},
		{"E121", "GET / HTTP/1.1\r\nHost: [ok.example.com]\r\n" + end, "403", ReasonHostMismatch, nil},
		{"E121", "GET / HTTP/1.1\r\nHost: ok.example.com\\x\r\n" + end, "400", ReasonHTTPMalformed, nil},
		{"E121", "GET / HTTP/1.1\r\nHost: ok.example.com%00\r\n" + end, "403", ReasonHostMismatch, nil},
		{"E121", "GET / HTTP/1.1\r\nHost: \x1b[31m\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E126", "GET / HTTP/1.2\r\nHost: ok.example.com\r\n" + end, "403", ReasonHTTPMalformed, nil},
		{"E126", "GET /\r\n\r\n", "400", ReasonHTTPMalformed, nil},
		{"E118", "POST /echo HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: chunked\r\n" + end + "3\r\nabc\r\n0\r\n\r\n", "200", ReasonOK, []string{"POST http ok.example.com/echo 3"}},
		{"E118", "HEAD / HTTP/1.1\r\nHost: ok.example.com\r\n" + end, "200", ReasonOK, []string{"HEAD http ok.example.com/ 0"}},
	}
	addr := b.resolve("ok.example.com")
	for _, tt := range tests {
		want := b.counts()
		want[tt.reason]++
		out, err := raw(b.mustDial(addr+":80"), tt.send)
		if !strings.HasPrefix(out, "HTTP/1.1 "+tt.status+" ") && !strings.HasPrefix(out, "HTTP/1.0 "+tt.status+" ") {
			t.Errorf("%s: %q\n  got %q %v, want %s", tt.number, tt.send[:min(len(tt.send), 100)], firstLine(out), err, tt.status)
		}
		if diff := cmp.Diff(tt.upstream, w.upstream()); diff != "" {
			t.Errorf("%s: %q: upstream saw\n%s", tt.number, firstLine(tt.send), diff)
		}
		// E285: exactly one record each.
		eventually(t, fmt.Sprintf("%s: %q: one record %s", tt.number, tt.send[:min(len(tt.send), 100)], tt.reason), func() bool {
			return cmp.Equal(want, b.counts())
		})
		if strings.ContainsAny(out, "\x00\x1b") {
			t.Errorf("%s: the client's bytes come back: %q", tt.number, out)
		}
	}
}

// E107, E108, E109: every request of a connection is checked.
func TestHTTPKeepAlive(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	const good = "GET /1 HTTP/1.1\r\nHost: ok.example.com\r\n\r\n"
	const bad = "GET /2 HTTP/1.1\r\nHost: no.example.com\r\n\r\n"

	c := b.to("ok.example.com", 80)
	r := bufio.NewReader(c)
	for range 2 {
		if res, body := reply(t, c, r, good); res.StatusCode != 200 {
			t.Errorf("E107: %s %q", res.Status, body)
		}
	}
	if res, body := reply(t, c, r, bad); res.StatusCode != 403 || !strings.Contains(body, "no.example.com") {
		t.Errorf("E107: %s %q", res.Status, body)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("E107: the connection stays open")
	}
	if got := b.wantReason(ReasonHostMismatch); got.Host != "ok.example.com" || got.ClaimedHost != "no.example.com" {
		t.Errorf("E107: record %+v", got)
	}
	out, _ := raw(b.to("ok.example.com", 80), good+bad+good)
	if strings.Count(out, "200 OK") != 1 || strings.Count(out, "403 Forbidden") != 1 {
		t.Errorf("E108: %q", out)
	}
	w.upstream()
	smuggled := "POST /3 HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + bad
	out, _ = raw(b.to("ok.example.com", 80), smuggled)
	if strings.Count(out, "200 OK") > 1 || strings.Contains(out, "hello from no.example.com") {
		t.Errorf("E109: %q", out)
	}
	for _, s := range w.upstream() {
		if !strings.Contains(s, "http ok.example.com/3 0") {
			t.Errorf("E109: upstream saw %q", s)
		}
	}
}

// E124, E125: the form of a refusal.
func TestE124Refusal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	c := b.to("no.example.com", 80)
	res, body := reply(t, c, bufio.NewReader(c), "GET /secret?token=hunter2 HTTP/1.1\r\nHost: NO.example.com\r\n\r\n")
	if res.StatusCode != 403 || res.Header.Get("Content-Type") != "text/plain" || res.Header.Get("X-Deny-Reason") != "host_not_allowed" ||
		res.Header.Get("Cache-Control") != "no-store" || !res.Close {
		t.Errorf("got %s %v", res.Status, res.Header)
	}
	if body != "access to no.example.com was refused by the network policy of this environment: no rule allows this host (name_not_allowed)\n" {
		t.Errorf("body %q", body)
	}
	out, err := raw(b.to("no.example.com", 80), "HEAD / HTTP/1.1\r\nHost: no.example.com\r\n\r\n")
	if err != nil || !strings.HasPrefix(out, "HTTP/1.1 403 ") || !strings.HasSuffix(out, "\r\n\r\n") {
		t.Errorf("HEAD: %q %v", out, err)
	}
	for host, want := range map[string]string{"a b": "400", "x_\xc3\xbc.example": "an invalid host", "127.0.0.1": "an invalid host", "other.example.com:99": "other.example.com"} {
		out, _ := raw(b.to("no.example.com", 80), "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if !strings.Contains(out, want) && !strings.HasPrefix(out, "HTTP/1.1 400 ") {
			t.Errorf("Host %q: %q", host, out)
		}
	}
	// E289: no path, no query, no header is in any record.
	rs, err := b.g.Records(b.id, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%+v", rs); strings.Contains(s, "hunter2") || strings.Contains(s, "secret") {
		t.Errorf("a record tells too much: %s", s)
	}
}

// E125: a refusal says which rule, and blames the policy only where it is the
// policy.
func TestE125WhichRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	w.resolver.set("inside.example.com", "10.0.0.5")
	b := w.limited("ok.example.com", "inside.example.com")
	for _, tt := range []struct {
		to, send, deny string
		want           []string
		policy         bool
	}{
		{"no.example.com", "GET / HTTP/1.1\r\nHost: no.example.com\r\n", "host_not_allowed", []string{"access to no.example.com", "(name_not_allowed)"}, true},
		{"inside.example.com", "GET / HTTP/1.1\r\nHost: inside.example.com\r\n", "host_not_allowed", []string{"access to inside.example.com", "(address_not_public)"}, true},
		{"ok.example.com", "GET / HTTP/1.1\r\nHost: no.example.com\r\n", "host_not_allowed", []string{"access to no.example.com", "(host_mismatch)"}, true},
		{"ok.example.com", "GET / HTTP/1.0\r\n", "host_missing", []string{"names no host", "(host_missing)"}, false},
		{"ok.example.com", "GET / HTTP/1.2\r\nHost: ok.example.com\r\n", "http_malformed", []string{"ok.example.com", "HTTP/1.1", "(http_malformed)"}, false},
		{"ok.example.com", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n", "protocol_not_allowed", []string{"ok.example.com", "WebSocket", "(protocol_not_allowed)"}, false},
		{"ok.example.com", "CONNECT ok.example.com:80 HTTP/1.1\r\nHost: ok.example.com:80\r\n", "protocol_not_allowed", []string{"(protocol_not_allowed)"}, false},
	} {
		out, err := raw(b.to(tt.to, 80), tt.send+"\r\n")
		if !strings.HasPrefix(out, "HTTP/1.1 403 ") && !strings.HasPrefix(out, "HTTP/1.0 403 ") || !strings.Contains(out, "X-Deny-Reason: "+tt.deny+"\r\n") {
			t.Errorf("%s: %q %v, want 403 for %s", firstLine(tt.send), out, err, tt.deny)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q, want %q", firstLine(tt.send), out, want)
			}
		}
		if strings.Contains(out, "policy") != tt.policy {
			t.Errorf("%s: blames the policy: %q", firstLine(tt.send), out)
		}
	}
}

// E114: a client that begins with HTTP/2 is told in HTTP/2 what goes.
func TestE114PriorKnowledge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	for host, want := range map[string]string{"ok.example.com": "protocol_not_allowed", "no.example.com": "name_not_allowed"} {
		dial := func(context.Context, string, string) (net.Conn, error) { return b.dial("tcp", b.resolve(host)+":80") }
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		client := &http.Client{Transport: &http.Transport{DialContext: dial, Protocols: &protocols}}
		res, err := client.Get("http://" + host + "/")
		if err == nil {
			_ = res.Body.Close()
			t.Fatalf("%s: %s", host, res.Status)
		}
		client.CloseIdleConnections()
		c := b.to(host, 80)
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		frames := http2.NewFramer(c, c)
		for {
			f, err := frames.ReadFrame()
			if err != nil {
				t.Errorf("%s: no word of why: %v", host, err)
				break
			}
			if away, ok := f.(*http2.GoAwayFrame); ok {
				if text := string(away.DebugData()); away.ErrCode != http2.ErrCodeHTTP11Required || !strings.Contains(text, strings.Replace(host, "no.example.com", "this host", 1)) || !strings.Contains(text, "("+want+")") {
					t.Errorf("%s: %q, want %s", host, text, want)
				}
				break
			}
		}
	}
	if seen := w.upstream(); len(seen) != 0 {
		t.Errorf("upstream saw %q", seen)
	}
}

// E091: a client that closes its sending side after the request gets its answer;
// one that goes away ends what is done for it.
func TestE091HalfClosedRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	for _, send := range []string{
		"GET /slow HTTP/1.1\r\nHost: ok.example.com\r\n\r\n",
		"GET /slow HTTP/1.0\r\nHost: ok.example.com\r\n\r\n",
		"POST /slow HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 3\r\n\r\nabc",
		"POST /slow HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
	} {
		c := b.to("ok.example.com", 80)
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		// The gate has a moment to see that the client sends no more; that is no
		// reason for an answer of its own.
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		early := make([]byte, 100)
		if n, err := c.Read(early); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %q %v, before upstream has answered", firstLine(send), early[:n], err)
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		w.release <- struct{}{}
		out, err := io.ReadAll(c)
		if err != nil || !strings.Contains(string(out), " 200 OK\r\n") || !strings.Contains(string(out), "slow but sure") {
			t.Errorf("%s: %q %v", firstLine(send), out, err)
		}
	}
	// Half a body is no request.
	c := b.to("ok.example.com", 80)
	if _, err := io.WriteString(c, "POST /slow HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 30\r\n\r\nabc"); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if out, _ := io.ReadAll(c); strings.Contains(string(out), " 200 OK") {
		t.Errorf("half a body: %q", out)
	}
	// Who goes away is not waited for.
	c = b.to("ok.example.com", 80)
	if _, err := io.WriteString(c, "GET /never HTTP/1.1\r\nHost: ok.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is upstream", func() bool { return w.waiting.Load() == 1 })
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	eventually(t, "the request ends with its client", func() bool { return w.waiting.Load() == 0 })
}

// E129: the gate adds nothing and takes nothing away.
func TestE129Headers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	out, err := raw(b.to("ok.example.com", 80),
		"GET /headers HTTP/1.1\r\nHost: ok.example.com\r\nX-Forwarded-For: 1.2.3.4\r\nX-Mine: 1\r\nConnection: close\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(out, "\r\n\r\n")
	if diff := cmp.Diff("X-Forwarded-For: 1.2.3.4\r\nX-Mine: 1\r\n", body); diff != "" {
		t.Errorf("upstream got\n%s", diff)
	}
}

// E113: plain HTTP on the TLS port goes through the same gate.
func TestE113PlainOn443(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", net.JoinHostPort(w.addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: http.HandlerFunc(w.serve)}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	w.know("reg.example.com", port)
	b := w.open(w.gateway(nil), "p", Spec{Mode: ModeBuild, Endpoints: []Endpoint{{Host: testHost("reg.example.com"), Port: port, Rule: "registry:npm"}}})
	code, body, _, err := b.get(fmt.Sprintf("http://reg.example.com:%d/", port))
	if err != nil || code != 200 || body != fmt.Sprintf("hello from reg.example.com:%d", port) {
		t.Errorf("got %d %q %v", code, body, err)
	}
	if r := b.wantReason(ReasonOK); r.Rule != "registry:npm" || r.DialedAddress != netip.AddrPortFrom(w.addr, uint16(port)).String() {
		t.Errorf("record %+v", r)
	}
	out, err := raw(b.to("reg.example.com", port), "GET / HTTP/1.1\r\nHost: no.example.com\r\nConnection: close\r\n\r\n")
	if err != nil || !strings.HasPrefix(out, "HTTP/1.1 403 ") {
		t.Errorf("got %q %v", out, err)
	}
}

// E116, E127: a WebSocket works, and what follows it goes nowhere else.
func TestE116WebSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", net.JoinHostPort(w.addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, nil)
		if err != nil {
			return
		}
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				return
			}
			w.saw("%s", data)
			if err := c.Write(r.Context(), kind, data); err != nil {
				return
			}
		}
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	w.know("ws.example.com", port)
	b := w.open(w.gateway(nil), "w", Spec{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("ws.example.com"), Port: port, Rule: "mcp:ws"}}})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return b.to("ws.example.com", port), nil
	}}}
	c, _, err := websocket.Dial(ctx, fmt.Sprintf("ws://ws.example.com:%d/", port), &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "GET / HTTP/1.1\r\nHost: no.example.com\r\n\r\n"} {
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, data, err := c.Read(ctx); err != nil || string(data) != text {
			t.Fatalf("got %q %v", data, err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	eventually(t, "the connection's end", func() bool { r := b.record(); return r.Reason == ReasonOK && r.BytesDown > 100 })
	s := b.g.live("w")
	eventually(t, "no flow left", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.flows) == 0 })
}

// E123: an upstream that breaks the rules breaks its own connection only.
func TestE123BrokenUpstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", net.JoinHostPort(w.addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for _, answer := range []string{"garbage\r\n\r\n", ""} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1000))
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	w.know("bad.example.com", port)
	b := w.open(w.gateway(nil), "b", Spec{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("bad.example.com"), Port: port, Rule: "mcp:x"}}})
	for range 2 {
		out, _ := raw(b.to("bad.example.com", port), fmt.Sprintf("POST / HTTP/1.1\r\nHost: bad.example.com:%d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", port))
		if !strings.HasPrefix(out, "HTTP/1.1 502 ") {
			t.Errorf("got %q", out)
		}
	}
	b.wantReason(ReasonOK)
}

// Whoever waits for a connection to leave the gate resets what is left of it,
// so it has to be closed by then: a reset takes answers along that the client
// has not read yet.
func TestGateCloses(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := &gateConn{flow: &flow{}, TCPConn: server.(*net.TCPConn), done: make(chan struct{})}
	descriptor, err := c.TCPConn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Closing waits for whoever uses the descriptor.
	using, release := make(chan struct{}), make(chan struct{})
	go func() { _ = descriptor.Control(func(uintptr) { close(using); <-release }) }()
	<-using
	closed := make(chan struct{})
	go func() { defer close(closed); _ = c.Close() }()
	eventually(t, "the connection to begin closing", func() bool { return errors.Is(c.TCPConn.SetNoDelay(true), net.ErrClosed) })
	select {
	case <-c.done:
		t.Error("told before it is closed")
	default:
	}
	close(release)
	<-closed
	<-c.done
}
