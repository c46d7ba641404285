package egress

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
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
// the upstream's, and the upstream goes by that number.

const (
	maxECHConfigs   = 32
	kemX25519       = 0x0020
	kdfSHA256       = 0x0001
	aeadAES128      = 0x0001
	echOuter        = 0
	echTag          = 16 // the bytes that each AEAD adds
	recordAlert     = 21
	recordHandshake = 22
	clientHelloType = 1
)

var errNoECH = errors.New("the hello has no readable encrypted ClientHello")

// outerECH is the extension of a ClientHello that carries an encrypted one. The
// slices are parts of the hello that it was read from.
type outerECH struct {
	head    []byte // form, KDF, AEAD and the key's number
	enc     []byte // what the holder of the key makes the secret from
	payload []byte // the encrypted hello
}

// id is the number of the key that the hello claims to be encrypted to.
func (e outerECH) id() uint8 { return e.head[5] }

// echConfigID is the number of the key that the one extension of a ClientHello
// claims to be encrypted to. raw is what [readHello] read. A hello that the
// standard library took and that cannot be read here to its end is an error.
func echConfigID(raw []byte) (id uint8, err error) {
	e, err := findECH(helloMessage(raw))
	if err != nil {
		return 0, err
	}
	return e.id(), nil
}

// helloMessage joins the contents of the records that begin what was read.
func helloMessage(raw []byte) (message []byte) {
	for s := cryptobyte.String(raw); !s.Empty(); {
		var kind uint8
		var version uint16
		var fragment cryptobyte.String
		if !s.ReadUint8(&kind) || !s.ReadUint16(&version) || !s.ReadUint16LengthPrefixed(&fragment) || kind != recordHandshake {
			break // the beginning of what follows the hello
		}
		message = append(message, fragment...)
	}
	return message
}

// findECH finds the one such extension in the handshake message of a ClientHello.
func findECH(message []byte) (found outerECH, err error) {
	var kind uint8
	var hello, session, suites, compression, extensions cryptobyte.String
	s := cryptobyte.String(message)
	if !s.ReadUint8(&kind) || kind != clientHelloType || !s.ReadUint24LengthPrefixed(&hello) ||
		!hello.Skip(2+32) || !hello.ReadUint8LengthPrefixed(&session) || !hello.ReadUint16LengthPrefixed(&suites) ||
		!hello.ReadUint8LengthPrefixed(&compression) || !hello.ReadUint16LengthPrefixed(&extensions) || !hello.Empty() {
		return outerECH{}, errNoECH
	}
	count := 0
	for !extensions.Empty() {
		var number uint16
		var body cryptobyte.String
		if !extensions.ReadUint16(&number) || !extensions.ReadUint16LengthPrefixed(&body) {
			return outerECH{}, errNoECH
		}
		if number != extensionECH {
			continue
		}
		count++
		var enc, payload cryptobyte.String
		if !body.ReadBytes(&found.head, 6) || found.head[0] != echOuter ||
			!body.ReadUint16LengthPrefixed(&enc) || !body.ReadUint16LengthPrefixed(&payload) || !body.Empty() || len(enc) == 0 || len(payload) == 0 {
			return outerECH{}, errNoECH
		}
		found.enc, found.payload = enc, payload
	}
	if count != 1 {
		return outerECH{}, errNoECH
	}
	return found, nil
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

// keysOf asks a server for the configurations of the keys that it decrypts a
// ClientHello with; none if it does not. The connection is of no further use. An
// error means that the server did not say.
func keysOf(ctx context.Context, conn net.Conn, host Host) ([]echConfig, error) {
	config, err := strangersConfig(host)
	if err != nil {
		return nil, err
	}
	err = tls.Client(conn, asStranger(host, config)).HandshakeContext(ctx)
	var rejected *tls.ECHRejectionError
	switch {
	case errors.As(err, &rejected) && len(rejected.RetryConfigList) == 0:
		return nil, nil // it took no notice
	case errors.As(err, &rejected):
		return echConfigs(rejected.RetryConfigList)
	case lacksTLS13(err):
		return nil, nil // without TLS 1.3 there is no encrypted ClientHello
	case err == nil:
		return nil, errors.New("the server decrypted what nobody can")
	}
	return nil, err
}

// asStranger is how a client shakes hands that has only a configuration of
// [strangersConfig].
func asStranger(host Host, config []byte) *tls.Config {
	return &tls.Config{
		ServerName:                     host.name,
		MinVersion:                     tls.VersionTLS13,
		EncryptedClientHelloConfigList: config,
		// Whose certificate it is says nothing about the keys, and the client
		// checks it by itself.
		EncryptedClientHelloRejectionVerify: func(tls.ConnectionState) error { return nil },
		VerifyPeerCertificate:               func([][]byte, [][]*x509.Certificate) error { return nil },
	}
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

// decoy tells whether the encrypted ClientHello of a hello can only be a decoy:
// the host that the connection is to has no key of its number, and decrypts
// nothing with keys of other numbers. The connection that follows is to the
// address that was asked.
func (f *flow) decoy(h hello) bool {
	id, err := echConfigID(h.raw)
	if err != nil || h.draft {
		return false
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.gateway.config.Limits.Connect)
	defer cancel()
	var keys []echConfig
	err = f.ask(func(conn net.Conn) (err error) {
		keys, err = keysOf(ctx, conn, f.host)
		return err
	})
	if err == nil && len(keys) > 0 && !slices.ContainsFunc(keys, func(k echConfig) bool { return k.id == id }) {
		err = heedsNumbers(keys, func(k echConfig, number uint8) (goesOn bool, err error) {
			err = f.ask(func(conn net.Conn) (err error) {
				goesOn, err = sendNonsense(ctx, conn, f.host, k, number)
				return err
			})
			return goesOn, err
		})
	}
	if err != nil {
		f.gateway.log.Debug("egress: does not tell its keys", "session", f.st.id, "host", f.host.name, "error", err)
		return false
	}
	return !slices.ContainsFunc(keys, func(k echConfig) bool { return k.id == id })
}

// ask makes a connection to the host for a question. Later ones are to the same
// address.
func (f *flow) ask(question func(net.Conn) error) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	f.asked = remoteIP(conn)
	return question(conn)
}
