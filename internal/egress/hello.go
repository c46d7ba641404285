package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"time"
)

const (
	extensionECH      = 0xfe0d // encrypted ClientHello, as standardised
	extensionECHFirst = 0xfe08 // its drafts 8 to 12 had a number each, up to that
	extensionECH7     = 0xff02 // draft 7
	extensionESNI     = 0xffce // the encrypted server name, its forerunner
)

// hidesName tells whether an extension of a ClientHello may carry an encrypted
// server name, in any form that a server somewhere may still read.
func hidesName(extension uint16) bool {
	return extension >= extensionECHFirst && extension <= extensionECH || extension == extensionECH7 || extension == extensionESNI
}

// hello is what a ClientHello tells.
type hello struct {
	sni   string
	ech   bool   // carries an encrypted hello or name, of any age, or a decoy that looks like one
	draft bool   // carries one of an age that no browser sends as a decoy
	raw   []byte // every byte that was read, to be sent on
}

var errHello = errors.New("malformed ClientHello")

// readHello reads a ClientHello with the parser of the standard library, which
// takes it over any number of records and segments and refuses duplicate
// extensions, several names and a trailing dot. It reads at most limit
// bytes; the caller sets the deadline. What was read is returned with an error
// too.
func readHello(r io.Reader, limit int) (hello, error) {
	var h hello
	var read bytes.Buffer
	seen := false
	peek := &peekConn{Reader: io.TeeReader(io.LimitReader(r, int64(limit)), &read)}
	server := tls.Server(peek, &tls.Config{
		MinVersion: tls.VersionTLS10, // not spoken; only so that no hello is turned away here
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			seen, h.sni = true, info.ServerName
			h.ech = slices.ContainsFunc(info.Extensions, hidesName)
			h.draft = slices.ContainsFunc(info.Extensions, func(e uint16) bool { return hidesName(e) && e != extensionECH })
			return nil, errHello // enough; this side never answers
		},
	})
	err := server.Handshake()
	h.raw = read.Bytes()
	if !seen {
		if err == nil {
			err = errHello
		}
		return h, errors.Join(errHello, err)
	}
	return h, nil
}

// peekConn lets the TLS parser read and nothing else: its alert on the
// deliberate abort must not reach the client.
type peekConn struct{ io.Reader }

func (*peekConn) Write(b []byte) (int, error)      { return len(b), nil }
func (*peekConn) Close() error                     { return nil }
func (*peekConn) LocalAddr() net.Addr              { return nil }
func (*peekConn) RemoteAddr() net.Addr             { return nil }
func (*peekConn) SetDeadline(time.Time) error      { return nil }
func (*peekConn) SetReadDeadline(time.Time) error  { return nil }
func (*peekConn) SetWriteDeadline(time.Time) error { return nil }

// checkHello compares what the hello says with the name the address stands for.
func checkHello(h hello, err error, host Host, allowECH bool) (reason Reason, claimed string) {
	if err != nil {
		return ReasonHelloMalformed, ""
	}
	if h.sni == "" {
		return ReasonSNIMissing, ""
	}
	name, err := Canonical(h.sni)
	switch {
	case err != nil:
		return ReasonSNIMismatch, InvalidHost
	case name != host:
		return ReasonSNIMismatch, name.name
	case h.ech && !allowECH:
		return ReasonECHPresent, ""
	}
	return ReasonOK, ""
}

// accessDenied is the fatal alert access_denied. It comes before a handshake,
// so it needs no certificate, and clients show it in words.
func accessDenied() []byte { return []byte{0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 49} }
