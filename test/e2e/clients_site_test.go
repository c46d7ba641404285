package e2e

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	wirebytes "encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// blobSize is what the large transfers of the site move.
const blobSize = 64 << 20

// site is a TLS site with one name for each protocol, on an address of loopback
// that exemptions open. Its authority is made for the test: a client that shows
// no error has seen the site's own certificate.
type site struct {
	Address string
	CA      []byte // PEM

	hosts     map[string]http.Handler // name below example.com → what it serves
	elsewhere map[string]string       // name below example.com → the other address that it is at

	certificate tls.Certificate // of every name

	mu   sync.Mutex // guards what follows
	seen map[string]int
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{hosts: map[string]http.Handler{}, elsewhere: map[string]string{}, seen: map[string]int{}}
	s.certificate, s.CA = siteCertificate(t)
	var plain, secure net.Listener
	waitFor(t, time.Second, "a loopback address with both ports free", func() bool {
		s.Address = fmt.Sprintf("127.%d.%d.%d", 192+mrand.IntN(60), mrand.IntN(256), 1+mrand.IntN(250))
		var err error
		if plain, err = net.Listen("tcp", s.Address+":80"); err != nil {
			return false
		}
		if secure, err = net.Listen("tcp", s.Address+":443"); err != nil {
			plain.Close()
		}
		return err == nil
	})
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{Handler: s, ErrorLog: quiet, TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.certificate}}}
	redirect := &http.Server{ErrorLog: quiet, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+r.Host+r.RequestURI, http.StatusMovedPermanently)
	})}
	var ending sync.WaitGroup
	ending.Go(func() { _ = server.ServeTLS(secure, "", "") }) // ends when it is closed
	ending.Go(func() { _ = redirect.Serve(plain) })
	t.Cleanup(func() { server.Close(); redirect.Close(); ending.Wait() })
	s.hosts["www"] = http.HandlerFunc(serveWWW)
	s.hosts["ws"] = http.HandlerFunc(serveWebSocket)
	s.hosts["grpc"] = http.HandlerFunc(serveGRPC)
	return s
}

// siteCertificate makes an authority and a certificate of it for the site's
// names, as separate ones: some clients refuse an authority that is a server.
func siteCertificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	make := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			parent, signer = template, key
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Atoll test site"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}
	ca, signer := make(authority, nil, nil)
	leaf, key := make(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "example.com"}, DNSNames: []string{"*.example.com"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, authority, signer)
	return tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})
}

// names are the site's host names, as an environment's allowed_hosts.
func (s *site) names() []string {
	var out []string
	for name := range s.hosts {
		out = append(out, name+".example.com")
	}
	return out
}

// config is a server configuration under which the names are at the site, or
// where they are in its place.
func (s *site) config() string {
	at := maps.Clone(s.elsewhere)
	for name := range s.hosts {
		at[name] = cmp.Or(at[name], s.Address)
	}
	hosts, exempt := "", ""
	for name, address := range at {
		hosts += fmt.Sprintf("    %s.example.com: [%s]\n", name, address)
		exempt += fmt.Sprintf("    - {host: %s.example.com, cidr: %s/32}\n", name, address)
	}
	return "egress:\n  hosts:\n" + hosts + "  exempt:\n" + exempt
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, _, _ := strings.Cut(r.Host, ".")
	s.mu.Lock()
	s.seen[name]++
	s.mu.Unlock()
	if h, ok := s.hosts[name]; ok {
		h.ServeHTTP(w, r)
		return
	}
	http.NotFound(w, r)
}

// asked is how many requests a name got.
func (s *site) asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[name]
}

// blob writes the same blobSize bytes every time.
func blob(w io.Writer) error {
	source := mrand.NewChaCha8([32]byte{1})
	_, err := io.CopyN(w, source, blobSize)
	return err
}

// serveWWW is a small API: its protocol, an echo, a large file, a stream.
func serveWWW(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		fmt.Fprintf(w, "hello over %s", r.Proto)
	case "/echo":
		_, _ = io.Copy(w, r.Body)
	case "/sum":
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
	case "/blob":
		_ = blob(w) // a client that leaves is the client's matter
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			select { // a pause, as event streams have them
			case <-r.Context().Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	default:
		http.NotFound(w, r)
	}
}

// serveWebSocket echoes messages, and ends the connection when it is told to.
func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: []string{"*.example.com"}})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(4 << 20)
	for {
		kind, data, err := c.Read(context.Background())
		if err != nil {
			return
		}
		if string(data) == "bye" {
			_ = c.Close(websocket.StatusNormalClosure, "bye")
			return
		}
		if c.Write(context.Background(), kind, data) != nil {
			return
		}
	}
}

// serveGRPC answers each message of a call with the same message: with one for
// unary calls, with as many as there are for streams. It is gRPC's HTTP/2
// protocol written out: five bytes before each message, the status in trailers.
func serveGRPC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	status := "0"
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(r.Body, head); err != nil {
			if !errors.Is(err, io.EOF) {
				status = "13"
			}
			break
		}
		message := make([]byte, min(wirebytes.BigEndian.Uint32(head[1:]), 4<<20))
		if _, err := io.ReadFull(r.Body, message); err != nil {
			return
		}
		if _, err := w.Write(append(head, message...)); err != nil {
			return
		}
		_ = flush.Flush()
	}
	w.Header().Set("Grpc-Status", status)
}
