package egress

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// The seeds of the fuzz targets are the cases of the test matrix; what fuzzing
// found is in testdata/fuzz.

// seedNames are host names, and what is none.
func seedNames() []string {
	label := strings.Repeat("a", 63)
	return []string{
		"example.com", "EXAMPLE.com.", "example.com..", ".example.com", "a..b", "", ".", // E154, E160
		"2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1", "1.2.3.4.", "example.0x", "example.1", "1e100.net", "256.256.256.256", // E021, E165
		"a\x00b.example.com", "attacker\x00.example.com", "a b.example.com", "a\\.b.example.com", "b\u00fccher.example", "\uff0eexample.com", // E051
		"[::1]", "[example.com]", "example.com:443", "example.com%25", "user@example.com", "example.com/x", "ex\x1b[0mample.com", "a\u202eb.example", // E081, E121, E237
		"xn--bcher-kva.example", "xn--", "xn--a.example", "xn--bcher-kva-.example", "xn--99zt52a.example", // E161, E162
		"_dmarc.example.com", "r3---x.example.com", "-a.example.com", "a-.example.com", // E164
		label + ".example.com", label + "a.example.com", strings.Repeat(label[:49]+".", 5) + "abc", strings.Repeat(label[:49]+".", 5) + "abcd", // E164
		"localhost", "a.localhost", "0.1.18.198.in-addr.arpa", // E056
	}
}

// seedEntries are entries of a list of hosts, and what is none (E156 to E162).
func seedEntries() []string {
	return []string{
		"*.example.com", "*.EXAMPLE.com.", "https://example.com", "example.com:443", "*.example.com:443", "*", "*.", "**.example.com", "foo.*.com", "*foo.com",
		"*.com", "*.co.uk", "*.github.io", "\uff0a.example", "*\u3002example.com", "*.b\u00fccher.example", "*.1.2.3.4", "*.xn--bcher-kva.example", "\xff", "*.*.example.com",
	}
}

// seedHellos are ClientHellos (E071 to E088).
func seedHellos(f *testing.F) [][]byte {
	f.Helper()
	const name = "ok.example.com"
	ok := withSNI(f, name)
	out := [][]byte{
		ok, ok[:20], ok[:len(ok)-1], append(bytes.Clone(ok), "GET / HTTP/1.1\r\n"...),
		addExtension(ok, extensionECH, greaseECH()), addExtension(ok, 0, []byte("\x00\x11\x00\x00\x0eok.example.com")),
		addExtension(ok, 0xfe0d, nil), addExtension(ok, 0xfe0a, greaseECH()), addExtension(ok, 0xffce, nil), addExtension(ok, 21, make([]byte, 2000)), addExtension(ok, 21, make([]byte, maxHello)),
		clientHello(f, &tls.Config{ServerName: name, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}),
		clientHello(f, &tls.Config{ServerName: name, NextProtos: []string{"h2", "http/1.1"}, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}),
		[]byte("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"), []byte("\x16\xfe\xfd\x00\x00"), []byte("\x16\x03\x01\xff\xff\x01"), []byte("\x16garbage that is no record"),
	}
	for _, sni := range []string{"no.example.com", "", "OK.example.com", "ok.example.com.", "a\x00.ok.example.com", "ok.example.com:443", "[::1]", "127.0.0.1", "ok.example.com%", strings.Repeat("a", 254)} {
		out = append(out, withSNI(f, sni))
	}
	// The same hello over records of ten bytes each (E075).
	var small []byte
	for body := ok[5:]; len(body) > 0; body = body[min(10, len(body)):] {
		piece := body[:min(10, len(body))]
		small = append(small, 0x16, 3, 1)
		small = binary.BigEndian.AppendUint16(small, uint16(len(piece)))
		small = append(small, piece...)
	}
	return append(out, small)
}

// pieces reads b in three parts, split at a and b.
func pieces(b []byte, first, second int) io.Reader {
	i := max(0, first) % (len(b) + 1)
	j := i + max(0, second)%(len(b)-i+1)
	return io.MultiReader(bytes.NewReader(b[:i]), bytes.NewReader(b[i:j]), bytes.NewReader(b[j:]))
}

// seedQuestions are DNS messages (E041 to E062).
func seedQuestions(f *testing.F) [][]byte {
	f.Helper()
	const head = "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	out := [][]byte{
		[]byte(head + "\xc0\x0c\x00\x01\x00\x01"), []byte(head + "\x03a.b\x00\x00\x01\x00\x01"), []byte(head + "\x03a\x00b\x00\x00\x01\x00\x01"), // loop, escaped dot, NUL
		[]byte(head + "\x00\x00\x01\x00\x01"), []byte(head + "\x40" + strings.Repeat("a", 64) + "\x00\x00\x01\x00\x01"), []byte(head), []byte(head[:11]), // root, long label, cut
		[]byte(head + "\x02Ok\x07ExAmPlE\x03cOm\x00\x00\x01\x00\x01"), []byte(head + "\x01a\x00\x00\x01\x00\x03"), // case, class CH
		[]byte("\x00\x01\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"),                                             // a response
		[]byte("\x00\x01\x29\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"),                                             // opcode 5
		[]byte("\x00\x01\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01\x01b\x00\x00\x01\x00\x01"),                    // two questions
		[]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x01\x00\x01\x00\x00\x29\xff\xff\x00\x00\x80\x00\x00\x00"), // EDNS
	}
	for _, name := range []string{"ok.example.com", "no.example.com", "a.wild.example.com", "wild.example.com", "localhost", "a.localhost", "1.2.3.4", "0.1.18.198.in-addr.arpa", strings.Repeat("a", 63) + ".no.example.com"} {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS, dnsmessage.TypeALL, dnsmessage.TypeTXT, dnsmessage.TypePTR, 10, 257} {
			out = append(out, question(f, name, kind))
		}
	}
	return out
}

// seedRequests are heads of HTTP requests (E101 to E128), each beside a request
// that is well-formed.
func seedRequests() []string {
	const host = "Host: ok.example.com\r\n"
	return []string{
		"GET / HTTP/1.1\r\nHost: OK.example.COM.:80\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "Host: no.example.com\r\n\r\n", "GET / HTTP/1.1\r\n" + host + host + "\r\n",
		"GET http://ok.example.com/ HTTP/1.1\r\nHost: no.example.com\r\n\r\n", "GET https://ok.example.com/ HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "transfer-encoding: Chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", "POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 50\r\n\r\nGET / HTTP/1.1\r\nHost: no.example.com\r\n\r\n", "POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
		"GET / HTTP/1.1\r\n" + host + "X : y\r\n\r\n", "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a@ok.example.com\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: ok.example.com:81\r\n\r\n", "GET / HTTP/1.1\r\nHost: [ok.example.com]\r\n\r\n", "GET / HTTP/1.1\r\nHost: ok.example.com\\\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n" + host + "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "FROB / HTTP/1.1\r\n" + host + "\r\n", "get / HTTP/1.1\r\n" + host + "\r\n", "GET /\r\n", "GET / HTTP/1.2\r\n" + host + "\r\n", "GET / HTTP/0.9\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "Connection: Host, close\r\n\r\n", "GET / HTTP/1.1\r\n" + host + "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET //no.example.com/ HTTP/1.1\r\n" + host + "\r\n", "GET / HTTP/1.1\r\n" + host + "X-Forwarded-Host: no.example.com\r\n\r\n",
	}
}
