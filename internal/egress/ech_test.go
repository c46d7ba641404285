package egress

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/crypto/cryptobyte"
)

// echKey is a key of a server for encrypted hellos, and the list of
// configurations that clients use it by.
func echKey(t testing.TB, id uint8, publicName string) (tls.EncryptedClientHelloKey, []byte) {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	list, err := strangersConfig(Host{publicName})
	if err != nil {
		t.Fatal(err)
	}
	config := bytes.Clone(list[2:])
	config[4] = id
	copy(config[9:], key.PublicKey().Bytes())
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(config) })
	return tls.EncryptedClientHelloKey{Config: config, PrivateKey: key.Bytes(), SendAsRetry: true}, b.BytesOrPanic()
}

// E085: a decoy of an encrypted hello passes to a host that has no such key, and
// a real one does not, whatever its outer name.
func TestE085DecoyOrReal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	key, list := echKey(t, 7, "ok.example.com")
	other, _ := echKey(t, 9, "ok.example.com")
	hidden, hiddenList := echKey(t, 11, "ok.example.com")
	hidden.SendAsRetry = true
	with := func(change func(*tls.Config)) *tls.Config {
		c := &tls.Config{Certificates: []tls.Certificate{w.cert}}
		change(c)
		return c
	}
	plain := with(func(*tls.Config) {})
	old := with(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	one := with(func(c *tls.Config) { c.EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{key} })
	two := with(func(c *tls.Config) { c.EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{other} })
	both := with(func(c *tls.Config) { c.EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{other, hidden} })
	decoy := addExtension(withSNI(t, "ok.example.com"), extensionECH, greaseECH()) // of key 7
	counted := map[Reason]int64{}                                                  // the decisions that were expected so far
	for name, tt := range map[string]struct {
		server *tls.Config
		hello  []byte
		passes bool
	}{
		"a host without encrypted hellos":        {plain, decoy, true},
		"a host without TLS 1.3":                 {old, decoy, true},
		"a host with another key":                {two, decoy, true},
		"a host with that key":                   {one, decoy, false},
		"a cut extension":                        {plain, addExtension(withSNI(t, "ok.example.com"), extensionECH, greaseECH()[:20]), false},
		"an inner hello":                         {plain, addExtension(withSNI(t, "ok.example.com"), extensionECH, []byte{1}), false},
		"an old form":                            {plain, addExtension(withSNI(t, "ok.example.com"), 0xfe0a, greaseECH()), false},
		"an old form beside":                     {plain, addExtension(decoy, 0xfe0a, greaseECH()), false},
		"a name of another host":                 {plain, addExtension(withSNI(t, "no.example.com"), extensionECH, greaseECH()), false},
		"a decoy in two records":                 {plain, inRecords(decoy, 40), true},
		"a host with that key, over two records": {one, inRecords(decoy, 40), false},
	} {
		w.tls.Store(tt.server)
		c := b.to("ok.example.com", 443)
		if _, err := c.Write(tt.hello); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The upstream's own word about the crafted hello may be an alert too, but it
		// is the record that counts.
		want := ReasonOK
		if !tt.passes {
			want = ReasonECHPresent
			switch name {
			case "a name of another host":
				want = ReasonSNIMismatch
			case "a cut extension": // no hello at all to the standard library
				want = ReasonHelloMalformed
			}
		}
		_ = c.Close() // a connection that was let through is recorded when it ends
		counted[want]++
		eventually(t, name+": one decision more: "+string(want), func() bool { return b.counts()[want] == counted[want] })
		if r := b.wantReason(want); !r.ECH && want != ReasonHelloMalformed {
			t.Errorf("%s: record %+v", name, r)
		}
	}
	// Real clients with a real key, whose outer name is the allowed one.
	for name, tt := range map[string]struct {
		server *tls.Config
		list   []byte
	}{"the host's key": {one, list}, "one of two keys": {both, hiddenList}} {
		w.tls.Store(tt.server)
		tc := tls.Client(b.to("ok.example.com", 443), &tls.Config{ServerName: "no.example.com", RootCAs: w.roots, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: tt.list})
		if err := tc.Handshake(); err == nil {
			t.Errorf("%s: a hidden name passes", name)
		}
		b.wantReason(ReasonECHPresent)
	}
	if seen := w.upstream(); len(seen) != 0 {
		t.Errorf("upstream saw %q", seen)
	}
	// A client that sends decoys like a browser, to the end.
	w.tls.Store(plain)
	stranger, err := strangersConfig(mustHost(t, "ok.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(b.to("ok.example.com", 443), &tls.Config{ServerName: "ok.example.com", RootCAs: w.roots, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: stranger})
	var rejected *tls.ECHRejectionError
	if err := tc.Handshake(); !errors.As(err, &rejected) {
		t.Errorf("the whole handshake: %v, want that the host took no notice", err)
	}
	b.wantReason(ReasonOK)
}

// inRecords cuts the record of a hello in two.
func inRecords(hello []byte, at int) []byte {
	record := func(b []byte) []byte {
		return append([]byte{hello[0], hello[1], hello[2], byte(len(b) >> 8), byte(len(b))}, b...)
	}
	return append(record(hello[5:5+at]), record(hello[5+at:])...)
}

// A server that does not say which keys it has is none to pass a hello to.
func TestKeysOfSilentServer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"closes": "", "speaks something else": "HTTP/1.1 400 Bad Request\r\n\r\n", "refuses": "\x15\x03\x03\x00\x02\x02\x28"} {
		client, server := net.Pipe()
		go func() {
			buf := make([]byte, 4096)
			_, _ = server.Read(buf)
			_, _ = io.WriteString(server, answer)
			_ = server.Close()
		}()
		if keys, err := keysOf(t.Context(), client, mustHost(t, "ok.example.com")); err == nil {
			t.Errorf("%s: keys %v", name, keys)
		}
		_ = client.Close()
	}
	for name, list := range map[string][]byte{"empty": {0, 0}, "cut": {0, 9, 0xfe, 0x0d}, "of old versions only": {0, 5, 0xfe, 0x0a, 0, 1, 7}, "nothing": nil} {
		if ids, err := configIDs(list); err == nil {
			t.Errorf("%s: %v", name, ids)
		}
	}
}

// FuzzECH: the number of the key is read from what the standard library takes
// for a hello with one such extension, and where that was cut does not matter.
func FuzzECH(f *testing.F) {
	decoy := addExtension(withSNI(f, "ok.example.com"), extensionECH, greaseECH())
	f.Add(decoy, 3)
	f.Add(addExtension(decoy, extensionECH, greaseECH()), 9)
	f.Add(addExtension(withSNI(f, "ok.example.com"), extensionECH, []byte{1}), 100)
	f.Add([]byte{0x16, 3, 1, 0, 0}, 0)
	f.Fuzz(func(t *testing.T, raw []byte, at int) {
		id, err := echConfigID(raw)
		h, read := readHello(bytes.NewReader(raw), maxHello)
		if read != nil {
			return
		}
		if err == nil && !h.ech {
			t.Errorf("key %d of a hello without any", id)
		}
		if size := int(raw[3])<<8 | int(raw[4]); len(h.raw) == 5+size && at > 0 && at < size {
			again, cut := echConfigID(inRecords(h.raw, at))
			if again != id || (cut == nil) != (err == nil) {
				t.Errorf("cut at %d: %d %v, whole: %d %v", at, again, cut, id, err)
			}
		}
	})
}
