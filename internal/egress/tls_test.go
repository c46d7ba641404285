package egress

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// clientHello returns the first record that a client sends for these settings.
func clientHello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go func() { _ = tls.Client(here, c).Handshake() }()
	head := make([]byte, 5)
	_ = there.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(there, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(there, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// withSNI makes a hello that says exactly these bytes as server name; the
// standard client would clean them.
func withSNI(t testing.TB, name string) []byte {
	t.Helper()
	placeholder := strings.Repeat("q", max(len(name), 1))
	if name == "" {
		return clientHello(t, &tls.Config{InsecureSkipVerify: true})
	}
	h := clientHello(t, &tls.Config{ServerName: placeholder})
	if n := bytes.Count(h, []byte(placeholder)); n != 1 {
		t.Fatalf("placeholder %d times", n)
	}
	return bytes.Replace(h, []byte(placeholder), []byte(name), 1)
}

// addExtension appends an extension to a hello of one record.
func addExtension(h []byte, kind uint16, data []byte) []byte {
	out := bytes.Clone(h)
	// record(5) type(1) length(3) version(2) random(32) session(1+n) suites(2+n) compression(1+n) extensions(2+n)
	at := 5 + 4 + 2 + 32
	at += 1 + int(out[at])
	at += 2 + int(binary.BigEndian.Uint16(out[at:]))
	at += 1 + int(out[at])
	ext := binary.BigEndian.AppendUint16(nil, kind)
	ext = binary.BigEndian.AppendUint16(ext, uint16(len(data)))
	ext = append(ext, data...)
	binary.BigEndian.PutUint16(out[at:], binary.BigEndian.Uint16(out[at:])+uint16(len(ext)))
	out = append(out, ext...)
	binary.BigEndian.PutUint16(out[3:], uint16(len(out)-5))
	n := len(out) - 9
	out[6], out[7], out[8] = byte(n>>16), byte(n>>8), byte(n)
	return out
}

// greaseECH is what a browser sends as a decoy: an outer hello with random bytes.
func greaseECH() []byte {
	b := []byte{0, 0, 1, 0, 1, 7, 0, 32}
	b = append(b, bytes.Repeat([]byte{9}, 32)...)
	b = append(b, 0, 16)
	return append(b, bytes.Repeat([]byte{8}, 16)...)
}

func TestCheckHello(t *testing.T) {
	t.Parallel()
	host := mustHost(t, "ok.example.com")
	big := clientHello(t, &tls.Config{ServerName: "ok.example.com"})
	for range 5 {
		big = addExtension(big, uint16(0xff00+len(big)%200), make([]byte, 4000))
	}
	twice := addExtension(withSNI(t, "ok.example.com"), 0, []byte("\x00\x11\x00\x00\x0eok.example.com"))
	sslv2 := []byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10}
	tests := []struct {
		number, name string
		hello        []byte
		want         Reason
		claimed      string
	}{
		{"E071", "equal", withSNI(t, "ok.example.com"), ReasonOK, ""},
		{"E073", "mixed case", withSNI(t, "OK.Example.COM"), ReasonOK, ""},
		{"E077", "unlisted", withSNI(t, "no.example.com"), ReasonSNIMismatch, "no.example.com"},
		{"E079", "none", withSNI(t, ""), ReasonSNIMissing, ""},
		{"E080", "trailing dot", withSNI(t, "ok.example.com."), ReasonHelloMalformed, ""},
		{"E081", "NUL", withSNI(t, "evil.example\x00.ok.example.com"), ReasonSNIMismatch, InvalidHost},
		{"E081", "space", withSNI(t, "ok.example.com "), ReasonSNIMismatch, InvalidHost},
		{"E081", "brackets", withSNI(t, "[ok.example.com]"), ReasonSNIMismatch, InvalidHost},
		{"E081", "port", withSNI(t, "ok.example.com:443"), ReasonSNIMismatch, InvalidHost},
		{"E081", "percent", withSNI(t, "ok%2eexample.com"), ReasonSNIMismatch, InvalidHost},
		{"E081", "address", withSNI(t, "127.0.0.1"), ReasonSNIMismatch, InvalidHost},
		{"E081", "UTF-8", withSNI(t, "b\u00fccher.example"), ReasonSNIMismatch, InvalidHost},
		{"E082", "extension twice", twice, ReasonHelloMalformed, ""},
		{"E083", "too large", big, ReasonHelloMalformed, ""},
		{"E085", "ECH", addExtension(withSNI(t, "ok.example.com"), extensionECH, greaseECH()), ReasonECHPresent, ""},
		{"E087", "SSLv2", sslv2, ReasonHelloMalformed, ""},
		{"E087", "garbage", []byte("\x16garbage and more garbage"), ReasonHelloMalformed, ""},
		{"E084", "cut", withSNI(t, "ok.example.com")[:60], ReasonHelloMalformed, ""},
	}
	for _, tt := range tests {
		h, err := readHello(bytes.NewReader(tt.hello), maxHello)
		got, claimed := checkHello(h, err, host, false)
		if got != tt.want || claimed != tt.claimed {
			t.Errorf("%s, %s: %s %q (%v), want %s %q", tt.number, tt.name, got, claimed, err, tt.want, tt.claimed)
		}
		if len(h.raw) > maxHello || !bytes.HasPrefix(tt.hello, h.raw) {
			t.Errorf("%s, %s: read %d bytes that were not those sent", tt.number, tt.name, len(h.raw))
		}
	}
	// E085: the forms that were before it.
	for _, extension := range []uint16{0xfe08, 0xfe09, 0xfe0a, 0xfe0b, 0xfe0c, 0xff02, 0xffce} {
		for _, body := range [][]byte{nil, {1}, greaseECH()} {
			h, err := readHello(bytes.NewReader(addExtension(withSNI(t, "ok.example.com"), extension, body)), maxHello)
			if got, _ := checkHello(h, err, host, false); got != ReasonECHPresent || !h.ech {
				t.Errorf("E085: extension %#x of %d bytes: %s, ech %v", extension, len(body), got, h.ech)
			}
			if got, _ := checkHello(h, err, host, true); got != ReasonOK {
				t.Errorf("E086: extension %#x of %d bytes: %s", extension, len(body), got)
			}
		}
	}
	for _, extension := range []uint16{0xfe07, 0xfe0e, 0xff01, 0xffcd, 0x0a0a} { // what is near, and a browser's filler
		h, err := readHello(bytes.NewReader(addExtension(withSNI(t, "ok.example.com"), extension, []byte{0})), maxHello)
		if got, _ := checkHello(h, err, host, false); got != ReasonOK && extension != 0xff01 || h.ech {
			t.Errorf("extension %#x: %s, ech %v", extension, got, h.ech)
		}
	}
	// E086: with the operator's word.
	h, err := readHello(bytes.NewReader(tests[14].hello), maxHello)
	if got, _ := checkHello(h, err, host, true); got != ReasonOK || !h.ech {
		t.Errorf("E086: %s, ech %v", got, h.ech)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "two.example.com")
	b := w.limited("ok.example.com", "two.example.com")

	t.Run("E071", func(t *testing.T) {
		tc, err := b.tls(b.to("ok.example.com", 443), "ok.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tc.ConnectionState().PeerCertificates[0].Raw, w.cert.Certificate[0]) {
			t.Error("not the upstream's own certificate")
		}
		w.upstream()
		body := strings.Repeat("0123456789", 100_000)
		out, err := raw(tc, "POST /echo HTTP/1.1\r\nHost: ok.example.com\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"+body)
		if err != nil || !strings.Contains(out, "200 OK") || len(out) < len(body) {
			t.Errorf("%d bytes, %v", len(out), err)
		}
		_ = tc.Close()
		r := b.wantReason(ReasonOK)
		if r.Protocol != "tls" || r.Host != "ok.example.com" || r.Rule != "allowed_hosts[0]" || r.DialedAddress != w.addr.String()+":443" {
			t.Errorf("record %+v", r)
		}
		eventually(t, "byte counts", func() bool { r := b.record(); return r.BytesUp > 1_000_000 && r.BytesDown > 1_000_000 })
	})
	refused := func(t *testing.T, hello []byte, want Reason) {
		t.Helper()
		out, err := raw(b.to("ok.example.com", 443), string(hello))
		if err != nil || out != string(accessDenied()) {
			t.Errorf("got %q %v, want the alert", out, err)
		}
		b.wantReason(want)
	}
	t.Run("E076", func(t *testing.T) { refused(t, withSNI(t, "two.example.com"), ReasonSNIMismatch) })
	t.Run("E077", func(t *testing.T) { refused(t, withSNI(t, "no.example.com"), ReasonSNIMismatch) })
	t.Run("E079", func(t *testing.T) { refused(t, withSNI(t, ""), ReasonSNIMissing) })
	t.Run("E080", func(t *testing.T) { refused(t, withSNI(t, "ok.example.com."), ReasonHelloMalformed) })
	t.Run("E085", func(t *testing.T) {
		refused(t, addExtension(withSNI(t, "ok.example.com"), extensionECH, []byte{1}), ReasonECHPresent)
	})
	t.Run("E087", func(t *testing.T) {
		refused(t, []byte("\x16\x03\x01\x00\x08garbage!"+strings.Repeat("x", 100)), ReasonHelloMalformed)
	})
	t.Run("E078", func(t *testing.T) {
		if _, err := b.tls(b.to("no.example.com", 443), "ok.example.com"); err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("got %v", err)
		}
		if r := b.wantReason(ReasonNameNotAllowed); r.ClaimedHost != "ok.example.com" {
			t.Errorf("record %+v", r)
		}
	})
	t.Run("E088", func(t *testing.T) {
		if _, err := b.tls(b.to("ok.example.com", 80), "no.example.com"); err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("got %v", err)
		}
		b.wantReason(ReasonSNIMismatch)
	})
	if seen := w.upstream(); len(seen) > 1 {
		t.Errorf("upstreams saw %q", seen)
	}
	// E074, E075: byte by byte, over many records.
	t.Run("E074", func(t *testing.T) {
		c := &trickle{b.to("ok.example.com", 443), 1}
		if tc, err := b.tls(c, "ok.example.com"); err != nil {
			t.Error(err)
		} else if _, err := io.WriteString(tc, "GET / HTTP/1.0\r\nHost: ok.example.com\r\n\r\n"); err != nil {
			t.Error(err)
		}
	})
	t.Run("E075", func(t *testing.T) {
		h := withSNI(t, "ok.example.com")[5:]
		c := b.to("ok.example.com", 443)
		for len(h) > 0 {
			n := min(100, len(h))
			record := append([]byte{0x16, 3, 1, 0, byte(n)}, h[:n]...)
			if _, err := c.Write(record); err != nil {
				t.Fatal(err)
			}
			h = h[n:]
		}
		head := make([]byte, 6)
		if _, err := io.ReadFull(c, head); err != nil || head[0] != 0x16 || head[5] != 2 {
			t.Errorf("got %x %v, want a ServerHello", head, err)
		}
	})
}

// trickle writes a few bytes at a time.
type trickle struct {
	net.Conn
	n int
}

func (c *trickle) Write(b []byte) (int, error) {
	for i := 0; i < len(b); i += c.n {
		if _, err := c.Conn.Write(b[i:min(len(b), i+c.n)]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// E084, E119: what never ends its hello is closed at the deadline.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	g := w.gateway(func(c *Config) { c.Limits.Hello = 100 * time.Millisecond })
	b := w.open(g, "d", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	c := b.to("ok.example.com", 443)
	if out, err := raw(c, "\x16\x03\x01\x10\x00\x01"); err != nil || out != string(accessDenied()) {
		t.Errorf("half a hello: %q %v", out, err)
	}
	b.wantReason(ReasonHelloMalformed)
	if _, err := io.ReadAll(b.to("ok.example.com", 80)); !isReset(err) {
		t.Errorf("silence: %v", err)
	}
	b.wantReason(ReasonProtocolNotAllowed)
	if out, err := raw(b.to("ok.example.com", 80), "SSH-2.0-x\r\n"); !isReset(err) {
		t.Errorf("a banner: %q %v", out, err)
	}
	if seen := w.upstream(); len(seen) != 0 {
		t.Errorf("upstream saw %q", seen)
	}
}

// E091: each direction closes on its own, and a reset is passed on.
func TestE091HalfClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", net.JoinHostPort(w.addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conns := make(chan *net.TCPConn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c.(*net.TCPConn)
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	w.know("raw.example.com", port)
	b := w.open(w.gateway(nil), "h", Spec{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("raw.example.com"), Port: port, Rule: "operator", Raw: true}}})
	client := b.to("raw.example.com", port).(*net.TCPConn)
	server := <-conns
	if _, err := io.WriteString(client, "question"); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(server); err != nil || string(got) != "question" {
		t.Fatalf("%q %v", got, err)
	}
	if _, err := io.WriteString(server, "answer"); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("%q %v", got, err)
	}
	eventually(t, "byte counts", func() bool { r := b.record(); return r.BytesUp == 8 && r.BytesDown == 6 })

	// The server has sent all and is gone; the client, who reads slowly, gets
	// every byte of it, and then an end that is no reset.
	client = b.to("raw.example.com", port).(*net.TCPConn)
	server = <-conns
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, server); err != nil {
		t.Fatal(err)
	}
	const much = 256 << 10 // what buffers hold while nobody reads
	if _, err := server.Write(make([]byte, much)); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	eventually(t, "the gateway to be done", func() bool {
		s := b.g.live(b.id)
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.flows) == 0
	})
	if n, err := io.Copy(io.Discard, client); err != nil || n != much {
		t.Errorf("%d of %d bytes, %v", n, much, err)
	}

	client = b.to("raw.example.com", port).(*net.TCPConn)
	server = <-conns
	reset(server)
	if _, err := io.ReadAll(client); !isReset(err) {
		t.Errorf("reset by the server: client got %v", err)
	}
	client = b.to("raw.example.com", port).(*net.TCPConn)
	server = <-conns
	reset(client)
	_ = server.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(server); !isReset(err) {
		t.Errorf("reset by the client: server got %v", err)
	}
}

// E190: what was allowed and could not be reached.
func TestE190Unreachable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.know("down.example.com", 80, 443, 8443)
	b := w.open(w.gateway(nil), "r", Spec{Mode: ModeLimited, AllowedHosts: []string{"gone.example.com"},
		Endpoints: []Endpoint{{Host: testHost("down.example.com"), Port: 8443, Rule: "mcp:x"}}})
	out, err := raw(b.to("down.example.com", 8443), "GET / HTTP/1.1\r\nHost: down.example.com:8443\r\nConnection: close\r\n\r\n")
	if err != nil || !strings.HasPrefix(out, "HTTP/1.1 502 ") {
		t.Errorf("got %q %v", out, err)
	}
	if r := b.wantReason(ReasonConnectFailed); r.Verdict != VerdictFailed || r.Rule != "mcp:x" {
		t.Errorf("record %+v", r)
	}
	if _, err := b.tls(b.to("gone.example.com", 443), "gone.example.com"); !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
	b.wantReason(ReasonResolveFailed)
}
