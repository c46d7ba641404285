package egress

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// Browsers put an encrypted ClientHello into every hello, most of the time a
// decoy with random bytes (GREASE, RFC 9849, 6.2). Nobody but the holder of the
// key can tell one from a real one, and a real one may name a host that is not
// allowed, which a CDN would serve behind an allowed one. What can be known is
// which keys the upstream has: a server that cannot decrypt what it is sent
// answers with the configurations that it would decrypt. The gateway asks it so,
// and passes a hello on only if the number of the key that it claims is none of
// the upstream's.

const (
	maxECHConfigs   = 32
	kemX25519       = 0x0020
	kdfSHA256       = 0x0001
	aeadAES128      = 0x0001
	echOuter        = 0
	recordHandshake = 22
	clientHelloType = 1
)

var errNoECH = errors.New("the hello has no readable encrypted ClientHello")

// echConfigID is the number of the key that the one extension of a ClientHello
// claims to be encrypted to. raw is what [readHello] read. A hello that the
// standard library took and that cannot be read here to its end is an error.
func echConfigID(raw []byte) (id uint8, err error) {
	var message []byte
	for s := cryptobyte.String(raw); !s.Empty(); { // the records' contents, one after the other
		var kind uint8
		var version uint16
		var fragment cryptobyte.String
		if !s.ReadUint8(&kind) || !s.ReadUint16(&version) || !s.ReadUint16LengthPrefixed(&fragment) || kind != recordHandshake {
			break // the beginning of what follows the hello
		}
		message = append(message, fragment...)
	}
	var kind uint8
	var hello, session, suites, compression, extensions cryptobyte.String
	s := cryptobyte.String(message)
	if !s.ReadUint8(&kind) || kind != clientHelloType || !s.ReadUint24LengthPrefixed(&hello) ||
		!hello.Skip(2+32) || !hello.ReadUint8LengthPrefixed(&session) || !hello.ReadUint16LengthPrefixed(&suites) ||
		!hello.ReadUint8LengthPrefixed(&compression) || !hello.ReadUint16LengthPrefixed(&extensions) || !hello.Empty() {
		return 0, errNoECH
	}
	found := 0
	for !extensions.Empty() {
		var number uint16
		var body cryptobyte.String
		if !extensions.ReadUint16(&number) || !extensions.ReadUint16LengthPrefixed(&body) {
			return 0, errNoECH
		}
		if number != extensionECH {
			continue
		}
		found++
		var form uint8
		var kdf, aead uint16
		var enc, payload cryptobyte.String
		if !body.ReadUint8(&form) || form != echOuter || !body.ReadUint16(&kdf) || !body.ReadUint16(&aead) || !body.ReadUint8(&id) ||
			!body.ReadUint16LengthPrefixed(&enc) || !body.ReadUint16LengthPrefixed(&payload) || !body.Empty() || len(enc) == 0 || len(payload) == 0 {
			return 0, errNoECH
		}
	}
	if found != 1 {
		return 0, errNoECH
	}
	return id, nil
}

// strangersConfig is a list of one configuration with a key that nobody has.
func strangersConfig(host Host) ([]byte, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 1)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(extensionECH)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(id[0])
			b.AddUint16(kemX25519)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(kdfSHA256); b.AddUint16(aeadAES128) })
			b.AddUint8(uint8(min(len(host.name), 255)))
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(host.name)) })
			b.AddUint16(0) // no extensions
		})
	})
	return b.Bytes()
}

// configIDs are the numbers of the keys in a list of configurations, of any
// version: one that cannot be read to its end is an error.
func configIDs(list []byte) ([]uint8, error) {
	var out []uint8
	s := cryptobyte.String(list)
	var configs cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&configs) || !s.Empty() {
		return nil, errors.New("the list of configurations is malformed")
	}
	for !configs.Empty() {
		var version uint16
		var body cryptobyte.String
		var id uint8
		if !configs.ReadUint16(&version) || !configs.ReadUint16LengthPrefixed(&body) {
			return nil, errors.New("a configuration is malformed")
		}
		if version == extensionECH {
			if !body.ReadUint8(&id) {
				return nil, errors.New("a configuration is malformed")
			}
			out = append(out, id)
		}
	}
	if len(out) == 0 || len(out) > maxECHConfigs {
		return nil, fmt.Errorf("%d configurations in the list", len(out))
	}
	return out, nil
}

// keysOf asks a server for the numbers of the keys that it decrypts a
// ClientHello with; none if it does not. The connection is of no further use. An
// error means that the server did not say.
func keysOf(ctx context.Context, conn net.Conn, host Host) ([]uint8, error) {
	config, err := strangersConfig(host)
	if err != nil {
		return nil, err
	}
	client := tls.Client(conn, &tls.Config{
		ServerName:                     host.name,
		MinVersion:                     tls.VersionTLS13,
		EncryptedClientHelloConfigList: config,
		// Whose certificate it is says nothing about the keys, and the client
		// checks it by itself.
		EncryptedClientHelloRejectionVerify: func(tls.ConnectionState) error { return nil },
		VerifyPeerCertificate:               func([][]byte, [][]*x509.Certificate) error { return nil },
	})
	err = client.HandshakeContext(ctx)
	var rejected *tls.ECHRejectionError
	switch {
	case errors.As(err, &rejected) && len(rejected.RetryConfigList) == 0:
		return nil, nil // it took no notice
	case errors.As(err, &rejected):
		return configIDs(rejected.RetryConfigList)
	case lacksTLS13(err):
		return nil, nil // without TLS 1.3 there is no encrypted ClientHello
	case err == nil:
		return nil, errors.New("the server decrypted what nobody can")
	}
	return nil, err
}

// lacksTLS13 tells whether a handshake failed because the server said by an alert
// that it has no TLS 1.3. Package tls hands a peer's alert out by its text alone.
func lacksTLS13(err error) bool {
	var said *net.OpError
	return errors.As(err, &said) && said.Op == "remote error" && said.Err.Error() == alertProtocolVersion.Error()
}

// alertProtocolVersion is a server's alert that it has no version that the
// client has (RFC 8446, 6).
const alertProtocolVersion = tls.AlertError(70)

// decoy tells whether the encrypted ClientHello of a hello can only be a decoy,
// as the host that the connection is to has no such key. The connection that
// follows is to the address that was asked.
func (f *flow) decoy(h hello) bool {
	id, err := echConfigID(h.raw)
	if err != nil || h.draft {
		return false
	}
	log := f.gateway.log
	conn, err := f.dial()
	if err != nil {
		log.Debug("egress: not asked for its keys", "session", f.st.id, "host", f.host.name, "error", err)
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(f.ctx, f.gateway.config.Limits.Connect)
	defer cancel()
	keys, err := keysOf(ctx, conn, f.host)
	if err != nil {
		log.Debug("egress: does not tell its keys", "session", f.st.id, "host", f.host.name, "error", err)
		return false
	}
	f.asked = remoteIP(conn)
	return !slices.Contains(keys, id)
}
