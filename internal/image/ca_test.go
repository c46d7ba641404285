package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// makeCA returns a new authority as PEM.
func makeCA(t *testing.T, name string, until time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0),
		NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func writeFiles(t *testing.T, root string, files map[string][]byte) {
	t.Helper()
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func subjects(cas []Authority) string {
	var out []string
	for _, a := range cas {
		out = append(out, a.Subject)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestExtraAuthorities(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(time.Hour)
	shipped, extra, old := makeCA(t, "shipped", later), makeCA(t, "extra", later), makeCA(t, "old", time.Now().Add(-time.Hour))
	bundle := slices.Concat([]byte("# words\n"), shipped, extra, old, extra)

	debian := t.TempDir()
	writeFiles(t, debian, map[string][]byte{"usr/share/ca-certificates/mozilla/a.crt": shipped, "etc/ssl/certs/ca-certificates.crt": bundle})
	got, err := extraAuthorities(debian, "")
	if err != nil || subjects(got) != "CN=extra" {
		t.Errorf("Debian: %q, %v", subjects(got), err)
	}
	redhat := t.TempDir()
	writeFiles(t, redhat, map[string][]byte{"etc/pki/ca-trust/source/anchors/x.pem": extra, "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": bundle})
	if got, err := extraAuthorities(redhat, ""); err != nil || subjects(got) != "CN=extra" {
		t.Errorf("Red Hat: %q, %v", subjects(got), err)
	}
	if got, err := extraAuthorities(t.TempDir(), ""); err != nil || len(got) != 0 {
		t.Errorf("nothing there: %v, %v", got, err)
	}
	if got, err := extraAuthorities(debian, filepath.Join(debian, "usr/share/ca-certificates/mozilla/a.crt")); err != nil || subjects(got) != "CN=shipped" {
		t.Errorf("a configured file: %q, %v", subjects(got), err)
	}
	writeFiles(t, debian, map[string][]byte{"bad.pem": []byte("nothing")})
	if _, err := extraAuthorities(debian, filepath.Join(debian, "bad.pem")); err == nil {
		t.Error("a configured file without certificates was accepted")
	}
}

func TestInstallAuthorities(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(time.Hour)
	own, extra := makeCA(t, "own", later), makeCA(t, "extra", later)
	cas := parseAuthorities(extra)
	for _, c := range []struct{ name, anchors, bundle, link string }{
		{"debian", "usr/local/share/ca-certificates", "etc/ssl/certs/ca-certificates.crt", ""},
		{"redhat", "etc/pki/ca-trust/source/anchors", "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", ""},
		{"linked out of the root", "usr/local/share/ca-certificates", "etc/ssl/certs/ca-certificates.crt", "/elsewhere/bundle"},
	} {
		dir := t.TempDir()
		at := c.bundle
		if c.link != "" {
			at = strings.TrimPrefix(c.link, "/")
			writeFiles(t, dir, map[string][]byte{filepath.Join(filepath.Dir(c.bundle), "x"): nil})
			if err := os.Symlink(c.link, filepath.Join(dir, c.bundle)); err != nil {
				t.Fatal(err)
			}
		}
		writeFiles(t, dir, map[string][]byte{at: own[:len(own)-1], filepath.Join(c.anchors, "x"): nil})
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for range 2 { // the second time changes nothing
			bundle, err := installAuthorities(root, cas)
			if err != nil || bundle != "/"+c.bundle {
				t.Fatalf("%s: %q, %v", c.name, bundle, err)
			}
		}
		b, err := os.ReadFile(filepath.Join(dir, at))
		if err != nil || subjects(parseAuthorities(b)) != "CN=extra CN=own" || strings.Count(string(b), "BEGIN") != 2 {
			t.Errorf("%s: the bundle has %q, %v", c.name, subjects(parseAuthorities(b)), err)
		}
		if _, err := os.Stat(filepath.Join(dir, c.anchors, authorityFile(cas[0]))); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// An image without any bundle gets one with the extra authorities; without those it is left alone.
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if bundle, err := installAuthorities(root, nil); err != nil || bundle != "" || caEnv(bundle) != nil {
		t.Errorf("nothing to do: %q, %v", bundle, err)
	}
	if bundle, err := installAuthorities(root, cas); err != nil || bundle == "" {
		t.Errorf("a bare image: %q, %v", bundle, err)
	}
}
