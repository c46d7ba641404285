package egress

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
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
	again := with(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} })
	for name, server := range map[string]*tls.Config{"a host without encrypted hellos": plain, "a host that asks for another hello": again} {
		w.tls.Store(server)
		stranger, err := strangersConfig(mustHost(t, "ok.example.com"))
		if err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(b.to("ok.example.com", 443), &tls.Config{ServerName: "ok.example.com", RootCAs: w.roots, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: stranger})
		var rejected *tls.ECHRejectionError
		if err := tc.Handshake(); !errors.As(err, &rejected) {
			t.Errorf("%s: the whole handshake: %v, want that the host took no notice", name, err)
		}
		b.wantReason(ReasonOK)
	}
}

// E085: a real hello under a number that is no key's. Some servers try all of
// their keys: no decoy passes to those, as nobody can tell it from such a hello.
func TestE085OtherNumber(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	key, list := echKey(t, 7, "ok.example.com")
	config := &tls.Config{Certificates: []tls.Certificate{w.cert}, EncryptedClientHelloKeys: []tls.EncryptedClientHelloKey{key}}
	w.tls.Store(config)
	right, other := renumbered(t, key, list, 7), renumbered(t, key, list, 9)
	say := func(hello []byte, want Reason) {
		t.Helper()
		before := b.counts()[want]
		c := b.to("ok.example.com", 443)
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		_ = c.Close()
		eventually(t, "one decision more: "+string(want), func() bool { return b.counts()[want] == before+1 })
	}
	hidden := func(want int) {
		t.Helper()
		if seen := w.upstream(); len(seen) != want {
			t.Errorf("upstream saw %q, want %d hellos", seen, want)
		}
	}
	decoy := addExtension(withSNI(t, "ok.example.com"), extensionECH, greaseECH()) // of key 7
	decoy[bytes.Index(decoy, greaseECH())+5] = 8
	w.trial.Store(true)
	say(other, ReasonECHPresent)
	say(right, ReasonECHPresent)
	say(decoy, ReasonECHPresent)
	hidden(0)
	w.trial.Store(false)
	say(other, ReasonOK) // nobody decrypts it
	say(right, ReasonECHPresent)
	say(decoy, ReasonOK)
	hidden(0)
	// That the hellos are real ones: this server decrypts them where they arrive.
	for _, tt := range []struct {
		hello []byte
		trial bool
		seen  int
	}{{right, false, 1}, {other, false, 0}, {other, true, 1}} {
		w.trial.Store(tt.trial)
		c, err := net.Dial("tcp", netip.AddrPortFrom(w.addr, 443).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(tt.hello); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		_ = c.Close()
		hidden(tt.seen)
	}
	// Keys that a server names and does not have, or of an unknown kind, say nothing.
	lost, _ := echKey(t, 7, "ok.example.com")
	lost.PrivateKey = key.PrivateKey
	strange, _ := echKey(t, 7, "ok.example.com")
	strange.Config[6] = 0x21
	for _, k := range []tls.EncryptedClientHelloKey{lost, strange} {
		w.tls.Store(&tls.Config{Certificates: config.Certificates, EncryptedClientHelloKeys: []tls.EncryptedClientHelloKey{k}})
		say(decoy, ReasonECHPresent)
	}
}

// renumbered is the hello of a real client to the hidden host, encrypted to a
// key under any number.
func renumbered(t *testing.T, key tls.EncryptedClientHelloKey, list []byte, number uint8) []byte {
	t.Helper()
	raw := clientHello(t, &tls.Config{ServerName: hiddenName, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: list})
	message := helloMessage(raw)
	e, err := findECH(message)
	if err != nil {
		t.Fatal(err)
	}
	kem, err := hpke.NewKEM(kemX25519)
	if err != nil {
		t.Fatal(err)
	}
	private, err := kem.NewPrivateKey(key.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := hpke.NewRecipient(e.enc, private, hpke.HKDFSHA256(), hpke.AES128GCM(), append([]byte("tls ech\x00"), key.Config...))
	if err != nil {
		t.Fatal(err)
	}
	payload := bytes.Clone(e.payload)
	clear(e.payload)
	inner, err := recipient.Open(message[4:], payload)
	if err != nil {
		t.Fatal(err)
	}
	configs, err := echConfigs(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := configs[0].seal(message, e, number, inner); err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(raw[:5]), message...)
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
		if configs, err := echConfigs(list); err == nil {
			t.Errorf("%s: %v", name, configs)
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
