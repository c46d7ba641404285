package security

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// pki is what the internet's servers have to show.
type pki struct {
	roots []byte // PEM of the authority
	pool  *x509.CertPool
	good  tls.Certificate // for everything below example.com and example.org
	wrong tls.Certificate // for another name
	old   tls.Certificate // expired
	mine  []byte          // PEM of a client's certificate and key
}

var certificates = sync.OnceValue(func() *pki {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the internet's authority"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	must(err)
	p := &pki{roots: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pool: x509.NewCertPool()}
	p.pool.AppendCertsFromPEM(p.roots)
	serial := int64(1)
	leaf := func(until time.Time, names ...string) (tls.Certificate, []byte) {
		serial++
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
			NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, c, authority, own.Public(), key)
		must(err)
		secret, err := x509.MarshalPKCS8PrivateKey(own)
		must(err)
		text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}, text
	}
	later := time.Now().Add(24 * time.Hour)
	p.good, _ = leaf(later, "example.com", "*.example.com", "example.org", "*.example.org", "*.wild.example.com")
	p.wrong, _ = leaf(later, "somebody.else.example.net")
	p.old, _ = leaf(time.Now().Add(-time.Hour), "ok.example.com")
	_, p.mine = leaf(later, "client")
	return p
})

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// upstream is how a stand's part of the internet serves HTTP.
type upstream struct {
	conns  chan net.Conn
	server *http.Server
	ended  chan struct{}
	open   atomic.Int64 // connections that are served
}

func newUpstream(s *stand) *upstream {
	u := &upstream{conns: make(chan net.Conn), ended: make(chan struct{})}
	u.server = &http.Server{
		Handler:                      http.HandlerFunc(s.serveHTTP),
		DisableGeneralOptionsHandler: true,
		MaxHeaderBytes:               1 << 20,
		ErrorLog:                     log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				u.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				u.open.Add(-1)
			}
		},
	}
	go func() { _ = u.server.Serve(u) }()
	return u
}

// Accept, Close and Addr make it the server's listener.
func (u *upstream) Accept() (net.Conn, error) {
	select {
	case c := <-u.conns:
		return c, nil
	case <-u.ended:
		return nil, net.ErrClosed
	}
}

func (u *upstream) Close() error {
	close(u.ended)
	return nil
}

func (u *upstream) Addr() net.Addr { return &net.TCPAddr{} }

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	r    io.Reader
	done chan struct{}
	once sync.Once
}

func (c *prefixed) Read(b []byte) (int, error) { return c.r.Read(b) }
func (c *prefixed) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// serveWeb serves TLS or plain HTTP.
func serveWeb(s *stand, c net.Conn) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		s.saw("connected, silent")
		return
	}
	p := &prefixed{Conn: c, r: io.MultiReader(bytes.NewReader(first), c), done: make(chan struct{})}
	var conn net.Conn = p
	if first[0] == 0x16 {
		conn = tls.Server(p, s.tlsConfig())
	}
	select {
	case s.web.conns <- conn:
		<-p.done
	case <-s.web.ended:
	}
}

func (s *stand) tlsConfig() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS10, NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.RequestClientCert,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			switch h.ServerName {
			case "wrong.example.com":
				return &certificates().wrong, nil
			case "old.example.com":
				return &certificates().old, nil
			}
			return &certificates().good, nil
		},
	}
	config.SetSessionTicketKeys([][32]byte{s.ticketKey}) // one key for all servers, so that clients can resume
	return config
}

// serveHTTP notes each request and answers it.
func (s *stand) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
		if len(r.TLS.PeerCertificates) > 0 {
			scheme = "https+cert"
		}
	}
	s.saw("%s %s %s%s %d", r.Method, scheme, r.Host, r.RequestURI, len(body))
	if err != nil {
		return
	}
	w.Header().Set("X-Upstream", "yes")
	switch {
	case r.URL.Path == "/echo":
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	case r.URL.Path == "/headers":
		_ = r.Header.Write(w)
	case r.URL.Path == "/204":
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/304":
		w.WriteHeader(http.StatusNotModified)
	case r.URL.Path == "/trailer":
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "body "+r.Trailer.Get("X-Up"))
		w.Header().Set("X-Sum", "trailing")
	case r.URL.Path == "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-time.After(time.Duration(i) * time.Millisecond)
		}
	case strings.HasPrefix(r.URL.Path, "/redirect/"):
		http.Redirect(w, r, "http://"+strings.TrimPrefix(r.URL.Path, "/redirect/")+"/", http.StatusFound)
	case r.URL.Path == "/early":
		w.WriteHeader(http.StatusTeapot)
	default:
		fmt.Fprintf(w, "hello from %s", r.Host)
	}
}

// serveBanner speaks first and echoes then.
func serveBanner(s *stand, c net.Conn) {
	if _, err := io.WriteString(c, "220 server first\r\n"); err != nil {
		return
	}
	var got bytes.Buffer
	_, _ = io.Copy(c, io.TeeReader(c, &got))
	_ = c.(*net.TCPConn).CloseWrite()
	s.saw("banner %d %q", addrPort(c.LocalAddr()).Port(), got.String())
}

// netConn is what upstreams serve.
type netConn = net.Conn

// sendFrom sends one datagram from an address of the internet. The calling
// thread is in its namespace.
func sendFrom(from, to netip.AddrPort) error {
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("from another peer"))
	return err
}
