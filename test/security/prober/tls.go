package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// clientConfig is how a TLS client behaves that was told so.
func clientConfig(t *wire.TLS) *tls.Config {
	if t == nil {
		return &tls.Config{InsecureSkipVerify: true}
	}
	c := &tls.Config{
		ServerName: t.Name, NextProtos: t.ALPN, MinVersion: t.Min, MaxVersion: t.Max,
		InsecureSkipVerify: t.NoVerify || t.Name == "" || len(t.Roots) == 0,
	}
	for _, id := range t.Curves {
		c.CurvePreferences = append(c.CurvePreferences, tls.CurveID(id))
	}
	if len(t.Roots) > 0 {
		c.RootCAs = x509.NewCertPool()
		c.RootCAs.AppendCertsFromPEM(t.Roots)
	}
	if pair, err := tls.X509KeyPair(t.Cert, t.Cert); err == nil {
		c.Certificates = []tls.Certificate{pair}
	}
	if t.Resume {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return c
}

// shake shakes hands over c. With Resume it closes c after a first exchange and
// goes on with a second connection.
func shake(r *wire.Request, c net.Conn, reply *wire.Reply) (net.Conn, error) {
	config := clientConfig(r.TLS)
	_ = c.SetDeadline(time.Now().Add(wait(r)))
	tc := tls.Client(c, config)
	if err := tc.Handshake(); err != nil {
		return tc, err
	}
	if r.TLS.Resume {
		first := *r
		exchange(&first, tc, &wire.Reply{})
		_ = tc.Close()
		again, err := net.DialTimeout("tcp4", r.Address, wait(r))
		if err != nil {
			return tc, err
		}
		_ = again.SetDeadline(time.Now().Add(wait(r)))
		tc = tls.Client(again, config)
		if err := tc.Handshake(); err != nil {
			return tc, err
		}
	}
	state := tc.ConnectionState()
	sum := sha256.Sum256(bytes.Clone(state.PeerCertificates[0].Raw))
	reply.Peer, reply.ALPN, reply.Resume = sum[:], state.NegotiatedProtocol, state.DidResume
	return tc, nil
}
