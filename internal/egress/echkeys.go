package egress

import (
	"context"
	"crypto/hpke"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// The number that an encrypted ClientHello claims decides only if the server goes
// by it. A server may also try all of its keys, whatever the number is (RFC 9849,
// 7.1: trial decryption): then a real hello of any number would be decrypted.
// Which of the two it is can be seen from outside. The server's own key is known,
// so nonsense can be encrypted to it: a server that decrypts it ends the
// handshake with an alert, one that does not goes on with the outer hello.

// echConfig is a configuration by which clients encrypt to a server's key.
type echConfig struct {
	id  uint8
	raw []byte // the whole, version and length included

	key  hpke.PublicKey // nil: of a kind that nothing is encrypted to here
	kdf  hpke.KDF
	aead hpke.AEAD
}

// echConfigs are the configurations of a list, those of old versions left out.
// One whose number cannot be read is an error.
func echConfigs(list []byte) ([]echConfig, error) {
	var out []echConfig
	s := cryptobyte.String(list)
	var configs cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&configs) || !s.Empty() {
		return nil, errors.New("the list of configurations is malformed")
	}
	for !configs.Empty() {
		before := configs
		var version uint16
		var body cryptobyte.String
		if !configs.ReadUint16(&version) || !configs.ReadUint16LengthPrefixed(&body) {
			return nil, errors.New("a configuration is malformed")
		}
		if version != extensionECH {
			continue
		}
		c := echConfig{raw: before[:len(before)-len(configs)]}
		if !body.ReadUint8(&c.id) {
			return nil, errors.New("a configuration is malformed")
		}
		c.readKey(body)
		out = append(out, c)
	}
	if len(out) == 0 || len(out) > maxECHConfigs {
		return nil, fmt.Errorf("%d configurations in the list", len(out))
	}
	return out, nil
}

// readKey reads what follows the number, as far as it is known here.
func (c *echConfig) readKey(s cryptobyte.String) {
	var kem uint16
	var key, suites cryptobyte.String
	if !s.ReadUint16(&kem) || kem != kemX25519 || !s.ReadUint16LengthPrefixed(&key) || !s.ReadUint16LengthPrefixed(&suites) {
		return
	}
	for !suites.Empty() {
		var kdf, aead uint16
		if !suites.ReadUint16(&kdf) || !suites.ReadUint16(&aead) {
			return
		}
		var err error
		if c.kdf, err = hpke.NewKDF(kdf); err != nil {
			continue
		}
		if c.aead, err = hpke.NewAEAD(aead); err != nil || aead == hpke.ExportOnly().ID() {
			continue
		}
		k, err := hpke.NewKEM(kem)
		if err != nil {
			return
		}
		if public, err := k.NewPublicKey(key); err == nil {
			c.key = public
		}
		return
	}
}

// heedsNumbers returns an error unless a server with these keys decrypts what
// claims the number of a key, and nothing else. send encrypts nonsense to a key,
// under a number, and tells whether the server goes on with the outer hello.
func heedsNumbers(keys []echConfig, send func(k echConfig, number uint8) (goesOn bool, err error)) error {
	at := slices.IndexFunc(keys, func(k echConfig) bool { return k.key != nil })
	if at < 0 {
		return errors.New("no key of a known kind")
	}
	k := keys[at]
	// Only a server that decrypts it under the right number says something by not
	// decrypting it under another.
	if goesOn, err := send(k, k.id); err != nil || goesOn {
		return errors.Join(err, errors.New("the server does not decrypt with a key that it named"))
	}
	if goesOn, err := send(k, otherNumber(keys)); err != nil || !goesOn {
		return errors.Join(err, errors.New("the server tries its keys, whatever the number"))
	}
	return nil
}

// otherNumber is a number that none of at most maxECHConfigs keys has.
func otherNumber(keys []echConfig) uint8 {
	for {
		number := uint8(rand.N(256))
		if !slices.ContainsFunc(keys, func(k echConfig) bool { return k.id == number }) {
			return number
		}
	}
}

// sendNonsense sends a hello whose encrypted one is nonsense, encrypted to a key
// under a number, and tells whether the server goes on. The connection is of no
// further use. An error means that the server said neither.
func sendNonsense(ctx context.Context, conn net.Conn, host Host, k echConfig, number uint8) (goesOn bool, err error) {
	config, err := strangersConfig(host)
	if err != nil {
		return false, err
	}
	var wire helloConn
	_ = tls.Client(&wire, asStranger(host, config)).HandshakeContext(ctx) // nobody answers
	message := helloMessage(wire.written)
	e, err := findECH(message)
	if err != nil {
		return false, err
	}
	nonsense := slices.Repeat([]byte{0xff}, len(e.payload)-echTag)
	if err := k.seal(message, e, number, nonsense); err != nil {
		return false, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return false, err
	}
	record := binary.BigEndian.AppendUint16([]byte{recordHandshake, 3, 1}, uint16(len(message)))
	if _, err := conn.Write(append(record, message...)); err != nil {
		return false, err
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return false, err
	}
	switch first[0] {
	case recordHandshake:
		return true, nil
	case recordAlert:
		return false, nil
	}
	return false, fmt.Errorf("a record of type %d", first[0])
}

// seal encrypts to the key, under a number, in place of what the extension e of a
// hello has. The length stays: inner is echTag bytes shorter than e.payload.
func (c echConfig) seal(message []byte, e outerECH, number uint8, inner []byte) error {
	enc, sender, err := hpke.NewSender(c.key, c.kdf, c.aead, append([]byte("tls ech\x00"), c.raw...))
	if err != nil {
		return err
	}
	if len(enc) != len(e.enc) || len(inner)+echTag != len(e.payload) {
		return errors.New("the hello has no place for it")
	}
	binary.BigEndian.PutUint16(e.head[1:], c.kdf.ID())
	binary.BigEndian.PutUint16(e.head[3:], c.aead.ID())
	e.head[5] = number
	copy(e.enc, enc)
	clear(e.payload) // as it is while it is authenticated
	sealed, err := sender.Seal(message[4:], inner)
	if err != nil {
		return err
	}
	copy(e.payload, sealed)
	return nil
}

// helloConn takes what a client says first, and ends.
type helloConn struct {
	net.Conn // nil: nothing else is called

	written []byte
}

func (c *helloConn) Write(b []byte) (int, error) {
	c.written = append(c.written, b...)
	return len(b), nil
}
func (c *helloConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *helloConn) Close() error                     { return nil }
func (c *helloConn) SetWriteDeadline(time.Time) error { return nil }
func (c *helloConn) SetDeadline(time.Time) error      { return nil }
