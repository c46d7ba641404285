package e2e

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/net/dns/dnsmessage"
)

// pageSite is a site with a page that loads a style, a picture, a script, data
// of two other hosts, and a WebSocket, and that offers HTTP/3. Behind its host
// keys, which decrypts encrypted ClientHellos, is a hidden host.
type pageSite struct {
	*site
	Keys []byte // the list of ECH configurations of the host keys

	datagrams atomic.Int64           // that came to where HTTP/3 would be
	hidden    atomic.Int64           // the ClientHellos that were decrypted
	inside    atomic.Pointer[string] // the address of keys in the sandbox, which the host doh tells
}

func newPageSite(t *testing.T) *pageSite {
	t.Helper()
	p := &pageSite{site: newSite(t)}
	http3, err := net.ListenPacket("udp", p.Address+":443")
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for buf := make([]byte, 2048); ; p.datagrams.Add(1) {
			if _, _, err := http3.ReadFrom(buf); err != nil {
				return // it was closed
			}
		}
	})
	t.Cleanup(func() { http3.Close(); reading.Wait() })
	p.hosts["page"] = servePage()
	hello := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		fmt.Fprintf(w, "hello over %s", r.Proto)
	}
	p.hosts["api"], p.hosts["keys"] = http.HandlerFunc(hello), http.HandlerFunc(hello)
	p.hosts["doh"] = http.HandlerFunc(p.serveDNS)
	p.serveKeys(t)
	return p
}

// servePage serves the files of testdata/browsers, all with an offer of HTTP/3.
// The picture /finished.svg is held until /finish was asked for.
func servePage() http.Handler {
	var mu sync.Mutex
	finished := make(chan struct{})
	picture := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "image/svg+xml")
		_, _ = io.WriteString(w, `<svg xmlns="http://www.w3.org/2000/svg" width="42" height="42"/>`)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/picture.svg", picture)
	mux.HandleFunc("/style.css", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/css")
		_, _ = io.WriteString(w, "p { color: rgb(1, 2, 3) }")
	})
	mux.HandleFunc("/finish", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		close(finished)
		finished = make(chan struct{})
	})
	mux.HandleFunc("/finished.svg", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		wait := finished
		mu.Unlock()
		select {
		case <-wait:
			picture(w, r)
		case <-r.Context().Done():
		}
	})
	for _, name := range []string{"index.html", "page.js"} {
		path := "/" + name
		if name == "index.html" {
			path = "/{$}"
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			content, err := os.ReadFile(filepath.Join("testdata/browsers", name))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", map[string]string{".html": "text/html", ".js": "text/javascript"}[filepath.Ext(name)])
			_, _ = w.Write(content)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Alt-Svc", `h3=":443"; ma=3600`)
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// serveKeys serves the host keys at an address of its own, with a key for
// encrypted ClientHellos whose outer name is the host's.
func (p *pageSite) serveKeys(t *testing.T) {
	t.Helper()
	var key, wrong tls.EncryptedClientHelloKey
	key, p.Keys = echKey(t, "keys.example.com")
	wrong, _ = echKey(t, "keys.example.com")
	wrong.Config = key.Config
	var listener net.Listener
	waitFor(t, time.Second, "another loopback address with its port free", func() bool {
		p.elsewhere["keys"] = fmt.Sprintf("127.%d.%d.%d", 128+mrand.IntN(60), mrand.IntN(256), 1+mrand.IntN(250))
		var err error
		listener, err = net.Listen("tcp", p.elsewhere["keys"]+":443")
		return err == nil
	})
	config := &tls.Config{
		Certificates: []tls.Certificate{p.certificate},
		// Package tls tries what it is given, whatever number a hello claims. Most
		// servers go by the number, and so does this one.
		GetEncryptedClientHelloKeys: func(hello *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
			if claimsKey(hello.Conn.(*readConn).read) {
				return []tls.EncryptedClientHelloKey{key}, nil
			}
			return []tls.EncryptedClientHelloKey{wrong}, nil
		},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName == "hidden.example.com" {
				p.hidden.Add(1)
			}
			return nil, nil // the same for all
		},
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), TLSConfig: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "hidden.example.com" {
			fmt.Fprint(w, "hello from behind")
			return
		}
		p.ServeHTTP(w, r)
	})}
	var ending sync.WaitGroup
	ending.Go(func() { _ = server.ServeTLS(readListener{listener}, "", "") }) // ends when it is closed
	t.Cleanup(func() { server.Close(); ending.Wait() })
}

// readListener is one whose connections keep what was read first.
type readListener struct{ net.Listener }

func (l readListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &readConn{Conn: c}, nil
}

type readConn struct {
	net.Conn

	read []byte // only for the goroutine of the handshake
}

func (c *readConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if len(c.read) < 64<<10 {
		c.read = append(c.read, b[:n]...)
	}
	return n, err
}

// keyNumber is the number of the key of the host keys.
const keyNumber = 7

// claimsKey tells whether a ClientHello of one record claims to be encrypted to
// the key.
func claimsKey(record []byte) bool {
	var session, suites, compression, extensions cryptobyte.String
	s := cryptobyte.String(record)
	if !s.Skip(5+4+2+32) || !s.ReadUint8LengthPrefixed(&session) || !s.ReadUint16LengthPrefixed(&suites) ||
		!s.ReadUint8LengthPrefixed(&compression) || !s.ReadUint16LengthPrefixed(&extensions) {
		return false
	}
	for !extensions.Empty() {
		var number uint16
		var body cryptobyte.String
		if !extensions.ReadUint16(&number) || !extensions.ReadUint16LengthPrefixed(&body) {
			return false
		}
		if number == echVersion {
			return len(body) > 5 && body[5] == keyNumber
		}
	}
	return false
}

// serveDNS is a resolver over HTTPS. It knows one host, hidden, and says that it
// is where keys is, with the key there: as a public resolver does of a host
// behind a CDN.
func (p *pageSite) serveDNS(w http.ResponseWriter, r *http.Request) {
	query, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4096))
	var m dnsmessage.Message
	if err == nil {
		err = m.Unpack(query)
	}
	if err != nil || len(m.Questions) != 1 {
		http.Error(w, "not a question", http.StatusBadRequest)
		return
	}
	const https = 65 // the type HTTPS (RFC 9460)
	q := m.Questions[0]
	m.Response, m.Additionals = true, nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	if at := p.inside.Load(); q.Name.String() == "hidden.example.com." && at != nil {
		switch q.Type {
		case dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(*at).As4()}}}
		case https:
			var b cryptobyte.Builder
			b.AddUint16(1) // the priority
			b.AddUint8(0)  // the target: the name itself
			b.AddUint16(1) // alpn
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("\x02h2")) })
			b.AddUint16(5) // ech
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(p.Keys) })
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.UnknownResource{Type: https, Data: b.BytesOrPanic()}}}
		}
	} else {
		m.RCode = dnsmessage.RCodeNameError
	}
	answer, err := m.Pack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/dns-message")
	_, _ = w.Write(answer)
}

// echVersion is the number of the version of ECH, and of its extension.
const echVersion = 0xfe0d

// echKey makes a key for encrypted ClientHellos and the list of configurations
// (RFC 9849, 4) that clients use it by.
func echKey(t *testing.T, publicName string) (tls.EncryptedClientHelloKey, []byte) {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var config, list cryptobyte.Builder
	config.AddUint16(echVersion)
	config.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(keyNumber)
		b.AddUint16(0x0020) // DHKEM with X25519
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) }) // HKDF-SHA256, AES-128-GCM
		b.AddUint8(0)                                                                             // the longest name: not said
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(publicName)) })
		b.AddUint16(0) // no extensions
	})
	list.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(config.BytesOrPanic()) })
	return tls.EncryptedClientHelloKey{Config: config.BytesOrPanic(), PrivateKey: key.Bytes(), SendAsRetry: true}, list.BytesOrPanic()
}
