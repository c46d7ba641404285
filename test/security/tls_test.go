package security

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// Section C: TLS.
func TestTLS(t *testing.T) {
	t.Parallel()
	spec := limited("ok.example.com", "two.example.com", "wrong.example.com", "old.example.com", "hrr.example.com")
	spec.Endpoints = []egress.Endpoint{{Host: hostName("db.example.com"), Port: 5432, Rule: "operator", Raw: true}}
	everywhere(t, "L", spec, func(c *egress.Config) {
		quick(c)
		c.Limits.Hello = 3 * time.Second
	}, func(t *testing.T, s *stand) {
		tlsWorks(t, s)
		tlsNames(t, s)
		tlsMalformed(t, s)
		tlsTransfers(t, s)
	})
}

const okTLS = "tls ok ok.example.com:443 by allowed_hosts[0]"

// secure is a request over TLS by a client that checks certificates.
func (c *attempt) secure(name string, change func(*wire.Request)) wire.Reply {
	c.Helper()
	r := wire.Request{Op: "talk", Address: at(c.address(name), 443), TLS: tlsAs(name), Data: []byte(httpGet(name))}
	if change != nil {
		change(&r)
	}
	return c.do(r)
}

func tlsWorks(t *testing.T, s *stand) {
	s.try(t, "E071", func(c *attempt) {
		body := strings.Repeat("0123456789abcdef", 60_000)
		r := c.secure("ok.example.com", func(r *wire.Request) {
			r.Data = []byte(fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: ok.example.com\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		})
		if sum := sha256.Sum256(certificates().good.Certificate[0]); !bytes.Equal(r.Peer, sum[:]) {
			c.Error("not the upstream's own certificate")
		}
		if !strings.HasSuffix(string(r.Data), body) {
			c.Errorf("%d bytes came back, not those sent", len(r.Data))
		}
		c.passed(okTLS, fmt.Sprintf("POST https ok.example.com/echo %d", len(body)))
	})
	s.try(t, "E072", func(c *attempt) {
		for name, change := range map[string]func(*wire.TLS){
			"1.2":                func(w *wire.TLS) { w.Max = tls.VersionTLS12 },
			"1.3":                func(w *wire.TLS) { w.Min = tls.VersionTLS13 },
			"post-quantum":       func(w *wire.TLS) { w.Curves = []uint16{uint16(tls.X25519MLKEM768)} },
			"ALPN":               func(w *wire.TLS) { w.ALPN = []string{"http/1.1"} },
			"client certificate": func(w *wire.TLS) { w.Cert = certificates().mine },
		} {
			r := c.secure("ok.example.com", func(r *wire.Request) { change(r.TLS) })
			if !strings.HasPrefix(string(r.Data), "HTTP/1.1 200") {
				c.Errorf("%s: %s", name, told(r))
			}
			scheme := "https"
			if name == "client certificate" {
				scheme = "https+cert"
			}
			c.passed(okTLS, "GET "+scheme+" ok.example.com/ 0")
		}
		r := c.secure("ok.example.com", func(r *wire.Request) { r.TLS.Resume = true })
		if c.wantStatus(r, "200"); !r.Resume {
			c.Error("the session was not resumed")
		}
		c.decided(okTLS, okTLS)
		c.upstream("GET https ok.example.com/ 0", "GET https ok.example.com/ 0")
		c.asked("ok.example.com")
		r = c.do(wire.Request{Op: "get", Method: "POST", URL: "https://ok.example.com/trailer", TLS: tlsAs("ok.example.com"), Data: []byte("x")})
		if r.Status != 200 || r.Header["Proto"] != "HTTP/2.0" {
			c.Errorf("HTTP/2: %d %v %s", r.Status, r.Header, told(r))
		}
		c.passed(okTLS, "POST https ok.example.com/trailer 1")
	})
	s.try(t, "E073", func(c *attempt) {
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("ok.example.com"), 443), Data: helloAs(c, "oK.eXample.COM"), Max: 1})
		if len(r.Data) == 0 || r.Data[0] != 0x16 {
			c.Errorf("got %s, want the server's hello", told(r))
		}
		c.passed(okTLS)
	})
	s.try(t, "E074", func(c *attempt) {
		address := at(c.address("ok.example.com"), 443)
		r := c.do(wire.Request{Op: "talk", Address: address, Data: helloAs(c, "ok.example.com"), Chunk: 1, PauseMS: 1, Max: 1})
		if len(r.Data) == 0 || r.Data[0] != 0x16 {
			c.Errorf("byte by byte: %s, want the server's hello", told(r))
		}
		c.passed(okTLS)
		c.wantRawAlert(c.do(wire.Request{Op: "talk", Address: address, Data: helloAs(c, "ok.example.com")[:40], Chunk: 8, PauseMS: 1000}))
		c.decided("tls hello_malformed ok.example.com:443")
	})
	s.try(t, "E075", func(c *attempt) {
		address := at(c.address("ok.example.com"), 443)
		for _, n := range []int{1, 7, 100} {
			r := c.do(wire.Request{Op: "talk", Address: address, Data: inRecords(helloAs(c, "ok.example.com"), n), Chunk: 64, Max: 1})
			if len(r.Data) == 0 || r.Data[0] != 0x16 {
				c.Errorf("records of %d bytes: %s, want the server's hello", n, told(r))
			}
			c.passed(okTLS)
		}
	})
	s.try(t, "E088", func(c *attempt) {
		address := at(c.address("ok.example.com"), 80)
		r := c.do(wire.Request{Op: "talk", Address: address, TLS: tlsAs("ok.example.com"), Data: []byte(httpGet("ok.example.com"))})
		c.wantStatus(r, "200")
		c.passed("tls ok ok.example.com:80 by allowed_hosts[0]", "GET https ok.example.com/ 0")
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: address, TLS: tlsAs("two.example.com")}))
		c.decided("tls sni_mismatch ok.example.com:80 claims two.example.com")
	})
	s.try(t, "E090", func(c *attempt) {
		r := c.secure("ok.example.com", func(r *wire.Request) { r.Data = []byte(httpGet("other.example.net")) })
		c.wantStatus(r, "200")
		c.passed(okTLS, "GET https other.example.net/ 0")
		said, err := os.ReadFile("../../SECURITY.md")
		if err != nil || !strings.Contains(string(said), "**Fronting inside TLS**") {
			c.Errorf("SECURITY.md does not say that this stays possible (%v)", err)
		}
		c.note("passes, as SECURITY.md says")
	})
	s.try(t, "E092", func(c *attempt) {
		for name, want := range map[string]string{"wrong.example.com": "certificate is valid for somebody.else", "old.example.com": "expired"} {
			if r := c.secure(name, nil); !strings.Contains(r.Error, want) {
				c.Errorf("%s: %s, want %q", name, told(r), want)
			}
			c.upstream()
			c.asked(name)
		}
		c.decided("tls ok wrong.example.com:443 by allowed_hosts[2]", "tls ok old.example.com:443 by allowed_hosts[3]")
	})
	s.try(t, "E093", func(c *attempt) {
		// The server answers anything, and notes both hellos.
		place := netip.AddrPortFrom(s.address(0, 7), 443)
		s.resolves("hrr.example.com", place.Addr().String())
		first, second := helloAs(c, "hrr.example.com"), helloAs(c, "no.example.com")
		world.handle(place, func(conn net.Conn) {
			buf := make([]byte, len(first)+len(second))
			n, _ := io.ReadFull(conn, buf[:len(first)])
			_, _ = conn.Write([]byte("\x16retry"))
			m, _ := io.ReadFull(conn, buf[n:])
			s.saw("other name: %v", bytes.Contains(buf[:n+m], []byte("no.example.com")))
		})
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("hrr.example.com"), 443), Data: first, Max: 6, Keep: true})
		c.do(wire.Request{Op: "talk", Conn: r.Conn, Data: second})
		c.decided("tls ok hrr.example.com:443 by allowed_hosts[4]")
		c.sent("tcp " + place.String())
		c.upstream("other name: true")
		c.asked("hrr.example.com")
		c.note("passes, as SECURITY.md says")
	})
}

func tlsNames(t *testing.T, s *stand) {
	refused := func(number, decision string, hellos ...[]byte) {
		s.try(t, number, func(c *attempt) {
			address := at(c.address("ok.example.com"), 443)
			for i, h := range hellos {
				if r := c.talk(address, string(h)); string(r.Data) != alertBytes {
					c.Errorf("hello %d: %s, want the alert access_denied", i, told(r))
				}
				c.decided(decision)
			}
		})
	}
	const at443 = " ok.example.com:443"
	refused("E076", "tls sni_mismatch"+at443+" claims two.example.com", helloAs(t, "two.example.com"))
	refused("E077", "tls sni_mismatch"+at443+" claims no.example.com", helloAs(t, "no.example.com"))
	refused("E079", "tls sni_missing"+at443, helloAs(t, ""))
	refused("E080", "tls hello_malformed"+at443, helloAs(t, "ok.example.com."))
	var odd [][]byte
	for _, name := range []string{"ok.example.com\x00", "evil.example\x00.ok.example.com", "ok.example.com ", "[ok.example.com]", "ok.example.com:443",
		"ok%2eexample.com", "127.0.0.1", "::1", "2130706433", "b\u00fccher.example", strings.Repeat("a.", 126) + "aa", "user@ok.example.com"} {
		odd = append(odd, helloAs(t, name))
	}
	refused("E081", "tls sni_mismatch"+at443+" claims invalid", odd...)
	refused("E082", "tls hello_malformed"+at443,
		extended(helloAs(t, ""), 0, nameList("ok.example.com", "no.example.com")), extended(helloAs(t, "ok.example.com"), 0, nameList("ok.example.com")))
	refused("E085", "tls ech_present"+at443+" ech", extended(helloAs(t, "ok.example.com"), 0xfe0d, []byte{1}),
		extended(helloAs(t, "ok.example.com"), 0xfe0a, greaseECH()), extended(helloAs(t, "ok.example.com"), 0xffce, greaseECH()))
	s.try(t, "E078", func(c *attempt) {
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: "198.18.0.1:443", TLS: tlsAs("ok.example.com")}))
		c.decided("tls name_not_allowed refusal:443 claims ok.example.com")
	})
	s.try(t, "E089", func(c *attempt) {
		c.refused("no.example.com")
		c.wantAlert(c.do(wire.Request{Op: "talk", Address: "198.18.0.1:443", TLS: tlsAs("no.example.com")}))
		c.decided("tls name_not_allowed refusal:443 claims no.example.com")
		c.note("a Go client")
	})
}

func tlsMalformed(t *testing.T, s *stand) {
	s.try(t, "E083", func(c *attempt) {
		big := helloAs(c, "ok.example.com")
		for i := range 5 {
			big = extended(big, uint16(0xff00+i), make([]byte, 4000))
		}
		r := c.talk(at(c.address("ok.example.com"), 443), string(inRecords(big, 8000)))
		c.wantRawAlert(r)
		c.decided("tls hello_malformed ok.example.com:443")
	})
	s.try(t, "E084", func(c *attempt) {
		r := c.talk(at(c.address("ok.example.com"), 443), string(helloAs(c, "ok.example.com")[:60]))
		c.wantRawAlert(r)
		c.decided("tls hello_malformed ok.example.com:443")
	})
	s.try(t, "E087", func(c *attempt) {
		address := at(c.address("ok.example.com"), 443)
		for _, text := range []string{"\x16garbage and more garbage", "\x16\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x01\x00\x00\x04"} { // the second: DTLS
			c.wantRawAlert(c.talk(address, text))
			c.decided("tls hello_malformed ok.example.com:443")
		}
		c.wantReset(c.talk(address, "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10")) // SSLv2
		c.decided("tcp protocol_not_allowed ok.example.com:443")
	})
}

// tlsTransfers are the cases about moving bytes.
func tlsTransfers(t *testing.T, s *stand) {
	s.try(t, "E091", func(c *attempt) {
		const rule, up = "tcp ok db.example.com:5432 by operator", "tcp up:5432"
		address := at(c.address("db.example.com"), 5432)
		size := pick(32<<20, 1<<30)
		// The echo does not keep the bytes of this one.
		place := netip.AddrPortFrom(s.up, 5432)
		world.handle(place, func(conn net.Conn) { _, _ = io.Copy(conn, conn); _ = conn.(*net.TCPConn).CloseWrite() })
		for _, pause := range []int{0, 500} { // the second: a slow reader
			r := c.do(wire.Request{Op: "stream", Address: address, Repeat: size, PauseMS: pause, WaitMS: 300_000})
			if r.Got != int64(size) || r.Sent != int64(size) || r.End != "eof" {
				c.Errorf("sent %d, got %d, end %s", r.Sent, r.Got, r.End)
			}
			c.decided(rule)
		}
		r := c.do(wire.Request{Op: "talk", Address: address, Data: []byte("half"), HalfClose: true})
		if string(r.Data) != "half" || r.End != "eof" {
			c.Errorf("half-close: %s", told(r))
		}
		c.decided(rule)
		world.handle(place, func(conn net.Conn) {
			_, err := io.Copy(io.Discard, conn)
			s.saw("reset by the client: %v", err != nil && strings.Contains(err.Error(), "reset"))
		})
		r = c.do(wire.Request{Op: "talk", Address: address, Data: []byte("x"), Max: -1, Keep: true})
		c.decided(rule)
		c.do(wire.Request{Op: "close", Conn: r.Conn, Abort: true})
		c.upstream("reset by the client: true")
		world.handle(place, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0)
		})
		c.wantReset(c.talk(address, "x"))
		c.decided(rule)
		c.upstream()
		c.asked("db.example.com")
		c.packets(func(p string) bool { return p == up })
		world.handle(place, nil)
	})
	s.try(t, "E286", func(c *attempt) {
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("db.example.com"), 5432), Data: []byte("12345"), HalfClose: true})
		if string(r.Data) != "220 server first\r\n12345" {
			c.Errorf("got %s", told(r))
		}
		eventually(c, "the byte counts", func() bool {
			last := s.records(c, egress.Filter{Verdict: "allowed", Limit: 1})[0]
			return last.BytesUp == 5 && last.BytesDown == 23 && last.DurationMS >= 0
		})
		c.passed("tcp ok db.example.com:5432 by operator", `banner 5432 "12345"`)
	})
}

// E086: what the operator opted into.
func TestECH(t *testing.T) {
	t.Parallel()
	everywhere(t, "L", limited("ok.example.com"), func(c *egress.Config) { c.AllowECH = true }, func(t *testing.T, s *stand) {
		s.try(t, "E086", func(c *attempt) {
			r := c.do(wire.Request{Op: "talk", Address: at(c.address("ok.example.com"), 443), Data: extended(helloAs(c, "ok.example.com"), 0xfe0d, greaseECH()), Max: 1})
			if len(r.Data) == 0 || r.Data[0] != 0x16 {
				c.Errorf("got %s, want the server's hello", told(r))
			}
			c.passed(okTLS + " ech")
			c.wantRawAlert(c.talk(at(c.address("ok.example.com"), 443), string(extended(helloAs(c, "no.example.com"), 0xfe0d, greaseECH()))))
			c.decided("tls sni_mismatch ok.example.com:443 claims no.example.com ech")
		})
	})
}
