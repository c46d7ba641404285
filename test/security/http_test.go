package security

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// Section D: HTTP.
func TestHTTP(t *testing.T) {
	t.Parallel()
	everywhere(t, "L", limited("ok.example.com", "two.example.com", "ws.example.com", "bad.example.com"), func(c *egress.Config) {
		quick(c)
		c.Limits.HTTPHead, c.Limits.Hello = 3*time.Second, 3*time.Second
	}, func(t *testing.T, s *stand) {
		httpTable(t, s)
		httpConnections(t, s)
		httpBodies(t, s)
		httpUpgrades(t, s)
		httpRefusals(t, s)
	})
}

const (
	okHTTP = "http ok ok.example.com:80 by allowed_hosts[0]"
	closes = "Connection: close\r\n\r\n"
)

// row is one request as it is sent, and what comes of it.
type row struct {
	send, status, decision string
	upstream               []string
}

// goAway is a row's status where the answer is in frames of HTTP/2.
const goAway = "GOAWAY"

// httpRows are the requests that are one of each.
func httpRows() map[string][]row {
	bad := func(send, status string) row {
		return row{send, status, "http http_malformed ok.example.com:80", nil}
	}
	good := func(send string, upstream ...string) row { return row{send, "200", okHTTP, upstream} }
	mismatch := func(send, claims string) row {
		return row{send, "403", "http host_mismatch ok.example.com:80 claims " + claims, nil}
	}
	no := func(send string) row {
		return row{send, "403", "http protocol_not_allowed ok.example.com:80", nil}
	}
	get := func(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n" + closes }
	post := func(headers, body string) string {
		return "POST / HTTP/1.1\r\nHost: ok.example.com\r\n" + headers + "\r\n" + body
	}
	const plain = "GET http ok.example.com/ 0"
	return map[string][]row{
		"E101": {good("GET /x?a=1;b&c=%zz HTTP/1.1\r\nHost: ok.example.com\r\n"+closes, "GET http ok.example.com/x?a=1;b&c=%zz 0")},
		"E102": {good(get("OK.eXample.com"), plain), good(get("ok.example.com."), plain), good(get("ok.example.com:80"), plain)},
		"E103": {mismatch(get("two.example.com"), "two.example.com"), mismatch(get("no.example.com"), "no.example.com")},
		"E104": {{"GET / HTTP/1.0\r\n\r\n", "403", "http host_missing ok.example.com:80", nil}, bad("GET / HTTP/1.1\r\n\r\n", "400")},
		"E105": {bad("GET / HTTP/1.1\r\nHost: ok.example.com\r\nHost: ok.example.com\r\n\r\n", "400"), bad("GET / HTTP/1.1\r\nHost: ok.example.com\r\nHost: no.example.com\r\n\r\n", "400")},
		"E106": {good("GET http://ok.example.com/p HTTP/1.1\r\nHost: no.example.com\r\n"+closes, "GET http ok.example.com/p 0"),
			mismatch("GET http://no.example.com/p HTTP/1.1\r\nHost: ok.example.com\r\n"+closes, "no.example.com"),
			no("GET https://ok.example.com/p HTTP/1.1\r\nHost: ok.example.com\r\n" + closes), no("GET ftp://ok.example.com/p HTTP/1.1\r\nHost: ok.example.com\r\n" + closes)},
		"E110": {bad(post("Content-Length: 1\r\nContent-Length: 2\r\n", "ab"), "400"), bad(post("Transfer-Encoding: xchunked\r\n", ""), "501"),
			bad(post("Transfer-Encoding: chunked, chunked\r\n", ""), "501"), bad(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), "501"),
			bad(post("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"), "400"), bad(post("Content-Length: -1\r\n", ""), "400"), bad(post("Content-Length: 0x10\r\n", ""), "400")},
		"E112": {mismatch(get("ok.example.com:8080"), "ok.example.com"), mismatch(get("ok.example.com:443"), "ok.example.com")},
		"E114": {{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", goAway, "http protocol_not_allowed ok.example.com:80", nil},
			good("GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", plain)},
		"E115": {no("CONNECT ok.example.com:80 HTTP/1.1\r\nHost: ok.example.com:80\r\n\r\n"),
			{"CONNECT no.example.com:443 HTTP/1.1\r\nHost: no.example.com:443\r\n\r\n", "403", "http protocol_not_allowed ok.example.com:80 claims no.example.com", nil}},
		"E120": {good("OPTIONS * HTTP/1.1\r\nHost: ok.example.com\r\n"+closes, "OPTIONS http ok.example.com* 0"), good("BREW /pot HTTP/1.1\r\nHost: ok.example.com\r\n"+closes, "BREW http ok.example.com/pot 0"), good("M-SEARCH / HTTP/1.1\r\nHost: ok.example.com\r\n"+closes, "M-SEARCH http ok.example.com/ 0"),
			mismatch("OPTIONS * HTTP/1.1\r\nHost: no.example.com\r\n"+closes, "no.example.com")},
		"E121": {bad(get("ok.example.com\x00"), "400"), bad(get("u@ok.example.com"), "400"), mismatch(get("[ok.example.com]"), "invalid"), mismatch(get("ok.example.com%00"), "invalid"),
			bad(get("ok.example.com\\x"), "400"), bad(get("b\u00fccher.example"), "400"), bad(get("\x1b[31mok.example.com"), "400")},
		"E126": {bad("GET /\r\n\r\n", "400"), {"GET / HTTP/1.2\r\nHost: ok.example.com\r\n" + closes, "403", "http http_malformed ok.example.com:80", nil}},
	}
}

func httpTable(t *testing.T, s *stand) {
	for number, rows := range httpRows() {
		s.try(t, number, func(c *attempt) {
			address := at(c.address("ok.example.com"), 80)
			for _, r := range rows {
				got := c.talk(address, r.send)
				before := c.Failed()
				if r.status != goAway {
					c.wantStatus(got, r.status)
				} else if !strings.Contains(string(got.Data), "HTTP/1.1") || !strings.Contains(string(got.Data), "(protocol_not_allowed)") {
					c.Errorf("got %s, want a frame that says what goes", told(got))
				}
				if r.status != goAway && strings.ContainsAny(string(got.Data), "\x00\x1b\x0b\u00fc") {
					c.Errorf("the client's bytes come back: %s", told(got))
				}
				if c.decided(r.decision); len(r.upstream) > 0 {
					c.upstream(r.upstream...)
					c.asked("ok.example.com")
				}
				if !before && c.Failed() {
					c.Logf("that was of %q", r.send)
				}
			}
			if number == "E126" {
				c.wantReset(c.talk(address, "get / HTTP/1.1\r\nHost: ok.example.com\r\n\r\n"))
				c.decided("tcp protocol_not_allowed ok.example.com:80")
			}
		})
	}
}

// httpConnections are the cases of more than one request on a connection.
func httpConnections(t *testing.T, s *stand) {
	const good = "GET /1 HTTP/1.1\r\nHost: ok.example.com\r\n\r\n"
	const bad = "GET /2 HTTP/1.1\r\nHost: no.example.com\r\n\r\n"
	const refused = "http host_mismatch ok.example.com:80 claims no.example.com"
	s.try(t, "E107", func(c *attempt) {
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("ok.example.com"), 80), Data: []byte(good), Max: 100, Keep: true})
		c.wantStatus(r, "200")
		r = c.do(wire.Request{Op: "talk", Conn: r.Conn, Data: []byte(bad)})
		// The first answer's end may come with the second.
		_, second, _ := strings.Cut(string(r.Data), "HTTP/1.1 403")
		r.Data = []byte("HTTP/1.1 403" + second)
		if c.want403(r, "no.example.com"); r.End != "eof" {
			c.Errorf("the connection stays open: %s", told(r))
		}
		c.decided(okHTTP, refused)
		c.upstream("GET http ok.example.com/1 0")
		c.asked("ok.example.com")
	})
	s.try(t, "E108", func(c *attempt) {
		r := c.talk(at(c.address("ok.example.com"), 80), good+bad+good)
		if strings.Count(string(r.Data), "HTTP/1.1 200") != 1 || strings.Count(string(r.Data), "HTTP/1.1 403") != 1 {
			c.Errorf("got %s", told(r))
		}
		c.decided(okHTTP, refused)
		c.upstream("GET http ok.example.com/1 0")
		c.asked("ok.example.com")
	})
	s.try(t, "E109", func(c *attempt) {
		r := c.talk(at(c.address("ok.example.com"), 80), "POST /3 HTTP/1.1\r\nHost: ok.example.com\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+bad)
		if strings.Contains(string(r.Data), "hello from no.example.com") {
			c.Errorf("got %s", told(r))
		}
		c.unowned("http") // the second is refused by its own Host or not read at all
		c.upstream("POST http ok.example.com/3 0")
		c.asked("ok.example.com")
	})
	s.try(t, "E111", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		for _, send := range []string{"GET / HTTP/1.1\r\nHost : ok.example.com\r\n\r\n", "GET / HTTP/1.1\r\nHost: ok.example.com\r\nX: a\x00b\r\n\r\n"} {
			c.wantStatus(c.talk(address, send), "400")
			c.decided("http http_malformed ok.example.com:80")
		}
		r := c.talk(address, "GET /headers HTTP/1.1\r\nHost: ok.example.com\r\nX-Folded: one\r\n two\r\n"+closes)
		if c.wantStatus(r, "200"); !strings.Contains(string(r.Data), "X-Folded: one two\r\n") {
			c.Errorf("folded: %s", told(r))
		}
		c.passed(okHTTP, "GET http ok.example.com/headers 0")
		r = c.talk(address, "GET /headers HTTP/1.1\nHost: ok.example.com\nX-Bare: 1\nConnection: close\n\n")
		if c.wantStatus(r, "200"); !strings.Contains(string(r.Data), "X-Bare: 1\r\n") {
			c.Errorf("bare line feeds: %s", told(r))
		}
		c.passed(okHTTP, "GET http ok.example.com/headers 0")
	})
	s.try(t, "E113", func(c *attempt) {
		address := at(c.address("ok.example.com"), 443)
		c.wantStatus(c.talk(address, "GET / HTTP/1.1\r\nHost: ok.example.com:443\r\n"+closes), "200")
		c.passed("http ok ok.example.com:443 by allowed_hosts[0]", "GET http ok.example.com:443/ 0")
		c.want403(c.talk(address, httpGet("no.example.com")), "no.example.com")
		c.decided("http host_mismatch ok.example.com:443 claims no.example.com")
	})
	s.try(t, "E119", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		for _, send := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "\x00\x01\x02\x03random", ""} {
			c.wantReset(c.talk(address, send))
			c.decided("tcp protocol_not_allowed ok.example.com:80")
		}
	})
	s.try(t, "E122", func(c *attempt) {
		r := c.do(wire.Request{Op: "get", URL: "http://ok.example.com/redirect/no.example.com"})
		if r.Status != 403 || !strings.Contains(string(r.Data), "no.example.com") {
			c.Errorf("got %d %s", r.Status, told(r))
		}
		c.decided(okHTTP, "dns name_not_allowed no.example.com", "http name_not_allowed refusal:80 claims no.example.com")
		c.upstream("GET http ok.example.com/redirect/no.example.com 0")
		c.asked("ok.example.com")
	})
}

func httpBodies(t *testing.T, s *stand) {
	s.try(t, "E117", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		c.wantStatus(c.talk(address, "GET / HTTP/1.1\r\nHost: ok.example.com\r\nX: "+strings.Repeat("x", 72<<10)+"\r\n\r\n"), "431")
		c.decided("http http_malformed ok.example.com:80")
		r := c.talk(address, "GET / HTTP/1.1\r\nHost: ok.example.com\r\n"+strings.Repeat("X-Many: 1\r\n", 1000)+closes)
		c.wantStatus(r, "200")
		c.passed(okHTTP, "GET http ok.example.com/ 0")
		r = c.do(wire.Request{Op: "talk", Address: address, Data: []byte("GET / HTTP/1.1\r\nHost: "), Chunk: 1, PauseMS: 1000})
		if r.End == "timeout" || strings.Contains(string(r.Data), "200 OK") {
			c.Errorf("one byte a second: %s, want a close", told(r))
		}
		// Of four bytes or less it is not known that they begin a request.
		s.mu.Lock()
		for _, d := range s.decisions {
			if got := s.describe(d); got != "http http_malformed ok.example.com:80" && got != "tcp protocol_not_allowed ok.example.com:80" {
				c.Errorf("decision %s", got)
			}
		}
		s.decisions = nil
		s.mu.Unlock()
	})
	s.try(t, "E118", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		for _, x := range []struct{ send, status, want, upstream string }{
			{"POST /echo HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: chunked\r\n" + closes + "3\r\nabc\r\n0\r\n\r\n", "200", "abc", "POST http ok.example.com/echo 3"},
			{"POST /trailer HTTP/1.1\r\nHost: ok.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-Up\r\n" + closes + "1\r\na\r\n0\r\nX-Up: sum\r\n\r\n", "200", "X-Sum: trailing", "POST http ok.example.com/trailer 1"},
			{"GET /events HTTP/1.1\r\nHost: ok.example.com\r\n" + closes, "200", "data: 2", "GET http ok.example.com/events 0"},
			{"GET /204 HTTP/1.1\r\nHost: ok.example.com\r\n" + closes, "204", "", "GET http ok.example.com/204 0"},
			{"GET /304 HTTP/1.1\r\nHost: ok.example.com\r\n" + closes, "304", "", "GET http ok.example.com/304 0"},
			{"HEAD / HTTP/1.1\r\nHost: ok.example.com\r\n" + closes, "200", "", "HEAD http ok.example.com/ 0"},
		} {
			r := c.talk(address, x.send)
			if c.wantStatus(r, x.status); !strings.Contains(string(r.Data), x.want) {
				c.Errorf("got %s, want %q", told(r), x.want)
			}
			c.passed(okHTTP, x.upstream)
		}
		r := c.talk(address, "POST /echo HTTP/1.1\r\nHost: ok.example.com\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"+closes+"abc")
		if !strings.HasPrefix(string(r.Data), "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ") {
			c.Errorf("100-continue: %s", told(r))
		}
		c.passed(okHTTP, "POST http ok.example.com/echo 3")
	})
	s.try(t, "E123", func(c *attempt) {
		place := netip.AddrPortFrom(s.address(0, 8), 80)
		s.resolves("bad.example.com", place.Addr().String())
		address := at(c.address("bad.example.com"), 80)
		for answer, status := range map[string]string{
			"garbage\r\n\r\n": "502", "": "502", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort": "200",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok": "200",
		} {
			world.handle(place, func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 1000))
				_, _ = io.WriteString(conn, answer)
			})
			r := c.talk(address, "POST / HTTP/1.1\r\nHost: bad.example.com\r\nContent-Length: 2\r\n"+closes+"ab")
			c.wantStatus(r, status)
			c.decided("http ok bad.example.com:80 by allowed_hosts[3]")
		}
		c.sent("tcp " + place.String())
		c.asked("bad.example.com")
		c.wantStatus(c.talk(at(c.address("ok.example.com"), 80), httpGet("ok.example.com")), "200")
		c.passed(okHTTP, "GET http ok.example.com/ 0")
	})
	s.try(t, "E129", func(c *attempt) {
		r := c.talk(at(c.address("ok.example.com"), 80), "GET /headers HTTP/1.1\r\nHost: ok.example.com\r\nX-Forwarded-For: 1.2.3.4\r\nX-Mine: 1\r\n"+closes)
		if _, body, _ := strings.Cut(string(r.Data), "\r\n\r\n"); body != "X-Forwarded-For: 1.2.3.4\r\nX-Mine: 1\r\n" {
			c.Errorf("upstream got %q", body)
		}
		c.passed(okHTTP, "GET http ok.example.com/headers 0")
	})
}

// webSocket answers an upgrade and echoes what follows, and notes it.
func (s *stand) webSocket(conn net.Conn) {
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	s.saw("upgrade %s", req.Host)
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		if err != nil {
			s.saw("socket closed")
			return
		}
		if strings.HasPrefix(string(buf[:n]), "GET ") {
			s.saw("in the socket: %q", buf[:n])
		}
		if string(buf[:n]) == "bye" {
			return
		}
		_, _ = conn.Write(buf[:n])
	}
}

func httpUpgrades(t *testing.T, s *stand) {
	const upgrade = "GET /ws HTTP/1.1\r\nHost: ws.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	const rule = "http ok ws.example.com:80 by allowed_hosts[2]"
	place := netip.AddrPortFrom(s.address(0, 6), 80)
	s.resolves("ws.example.com", place.Addr().String())
	world.handle(place, s.webSocket)
	open := func(c *attempt) int {
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("ws.example.com"), 80), Data: []byte(upgrade), Max: 30, Keep: true})
		c.wantStatus(r, "101")
		return r.Conn
	}
	// frame is a text or binary message of a client, as it is on the wire.
	frame := func(kind byte, text string) []byte {
		return append([]byte{0x80 | kind, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...)
	}
	s.try(t, "E116", func(c *attempt) {
		conn := open(c)
		for end := time.Now().Add(time.Duration(pick(2, 600)) * time.Second); time.Now().Before(end); {
			for _, f := range [][]byte{frame(1, "text"), frame(2, "\x00\xffbinary")} {
				if r := c.do(wire.Request{Op: "talk", Conn: conn, Data: f, Max: len(f), Keep: true}); string(r.Data) != string(f) {
					c.Fatalf("got %s", told(r))
				}
			}
		}
		c.do(wire.Request{Op: "close", Conn: conn}) // the client closes
		c.decided(rule)
		c.sent("tcp " + place.String())
		c.upstream("upgrade ws.example.com", "socket closed")
		conn = open(c)
		if r := c.do(wire.Request{Op: "talk", Conn: conn, Data: []byte("bye")}); r.End != "eof" { // the server closes
			c.Errorf("got %s", told(r))
		}
		c.decided(rule)
		c.sent("tcp " + place.String())
		c.upstream("upgrade ws.example.com")
		c.asked("ws.example.com")
	})
	s.try(t, "E127", func(c *attempt) {
		conn := open(c)
		inner := httpGet("no.example.com")
		if r := c.do(wire.Request{Op: "talk", Conn: conn, Data: []byte(inner), Max: len(inner)}); string(r.Data) != inner {
			c.Errorf("got %s", told(r))
		}
		c.decided(rule)
		c.sent("tcp " + place.String())
		c.upstream("upgrade ws.example.com", fmt.Sprintf("in the socket: %q", inner), "socket closed")
		c.asked("ws.example.com")
	})
	s.try(t, "E128", func(c *attempt) {
		r := c.talk(at(c.address("ws.example.com"), 80), strings.Replace(upgrade, "websocket", "tunnel", 1)+"bytes that must not pass\r\n\r\n"+httpGet("ws.example.com"))
		c.want403(r, "ws.example.com")
		c.decided("http protocol_not_allowed ws.example.com:80")
	})
}

func httpRefusals(t *testing.T, s *stand) {
	s.try(t, "E124", func(c *attempt) {
		address := c.refused("no.example.com")
		r := c.do(wire.Request{Op: "get", URL: "http://no.example.com/secret?token=hunter2"})
		want := map[string]string{"Content-Type": "text/plain", "X-Deny-Reason": "host_not_allowed", "Cache-Control": "no-store", "Connection": ""}
		for k, v := range want {
			if r.Header[k] != v && k != "Connection" {
				c.Errorf("%s: %q, want %q", k, r.Header[k], v)
			}
		}
		if r.Status != 403 || string(r.Data) != "access to no.example.com was refused by the network policy of this environment: no rule allows this host (name_not_allowed)\n" {
			c.Errorf("got %d %s", r.Status, told(r))
		}
		c.decided("dns name_not_allowed no.example.com", "http name_not_allowed refusal:80 claims no.example.com")
		r = c.talk(at(address, 80), "HEAD / HTTP/1.1\r\nHost: no.example.com\r\n\r\n")
		if c.wantStatus(r, "403"); !strings.HasSuffix(string(r.Data), "\r\n\r\n") || !strings.Contains(string(r.Data), "Connection: close\r\n") {
			c.Errorf("HEAD: %s", told(r))
		}
		c.decided("http name_not_allowed refusal:80 claims no.example.com")
	})
	s.try(t, "E125", func(c *attempt) {
		c.want403(c.talk("198.18.0.1:80", httpGet("NO.example.com")), "no.example.com")
		c.want403(c.talk(at(s.raw.String(), 80), httpGet("no.example.com")), s.raw.String()+":80")
		c.want403(c.talk("198.18.0.1:80", httpGet("127.0.0.1")), "an invalid host")
		c.want403(c.talk("198.18.0.1:80", httpGet("other.example.com:99")), "other.example.com")
		c.decided("http name_not_allowed refusal:80 claims no.example.com", "http no_mapping raw:80 claims no.example.com",
			"http name_not_allowed refusal:80 claims invalid", "http name_not_allowed refusal:80 claims other.example.com")
	})
}
