package image

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Authority is a certificate authority that the host trusts beyond what its distribution ships.
type Authority struct {
	// Subject is the certificate's subject, for people.
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"` // of the certificate, lower-case hexadecimal
	// NotAfter is when the certificate expires.
	NotAfter time.Time `json:"not_after"`
	der      []byte
}

// PEM is the certificate as a PEM block.
func (a Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.der})
}

// Where distributions keep their bundle of trusted certificates, most particular first.
var bundlePaths = []string{
	"etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine, Arch
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Red Hat and its kin
	"etc/pki/tls/certs/ca-bundle.crt",                  // older Red Hat
	"etc/ssl/ca-bundle.pem",                            // SUSE
	"etc/ssl/cert.pem",                                 // Alpine's libtls
	"var/lib/ca-certificates/ca-bundle.pem",            // SUSE
}

// ExtraAuthorities lists the authorities that go into templates: those of extraFile if it is set (a PEM bundle), else
// those in the host's bundle that its distribution did not ship. Sorted by fingerprint; expired ones are left out.
func ExtraAuthorities(extraFile string) ([]Authority, error) {
	return extraAuthorities("/", extraFile)
}

func extraAuthorities(hostRoot, extraFile string) ([]Authority, error) {
	if extraFile != "" {
		b, err := os.ReadFile(extraFile)
		if err != nil {
			return nil, fmt.Errorf("reading extra authorities: %w", err)
		}
		got := parseAuthorities(b)
		if len(got) == 0 {
			return nil, fmt.Errorf("reading extra authorities: %s has no valid certificate", extraFile)
		}
		return got, nil
	}
	anchors := filepath.Join(hostRoot, "etc/pki/ca-trust/source/anchors")
	shipped := filepath.Join(hostRoot, "usr/share/ca-certificates/mozilla")
	if _, err := os.Stat(shipped); err != nil {
		// No list of what was shipped: what an administrator added is in a directory of its own.
		return readCertDirs(anchors, filepath.Join(hostRoot, "usr/local/share/ca-certificates"), filepath.Join(hostRoot, "etc/pki/trust/anchors"))
	}
	own, err := readCertDirs(shipped)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, a := range own {
		known[a.SHA256] = true
	}
	for _, name := range bundlePaths {
		b, err := os.ReadFile(filepath.Join(hostRoot, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the host's authorities: %w", err)
		}
		return slices.DeleteFunc(parseAuthorities(b), func(a Authority) bool { return known[a.SHA256] }), nil
	}
	return nil, nil
}

func readCertDirs(dirs ...string) ([]Authority, error) {
	var all []byte
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := os.ReadFile(name)
			all = append(append(all, b...), '\n')
			return err
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("reading the host's authorities: %w", err)
		}
	}
	return parseAuthorities(all), nil
}

// parseAuthorities returns the valid, unexpired certificates in PEM text, without duplicates, by fingerprint.
func parseAuthorities(b []byte) []Authority {
	var out []Authority
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" && block.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || time.Now().After(c.NotAfter) {
			continue
		}
		sum := sha256.Sum256(c.Raw)
		out = append(out, Authority{Subject: c.Subject.String(), SHA256: hex.EncodeToString(sum[:]), NotAfter: c.NotAfter.UTC(), der: c.Raw})
	}
	slices.SortFunc(out, func(a, b Authority) int { return strings.Compare(a.SHA256, b.SHA256) })
	return slices.CompactFunc(out, func(a, b Authority) bool { return a.SHA256 == b.SHA256 })
}

// writeAuthorities writes one file for each authority, named as update-ca-certificates wants it.
func writeAuthorities(dir string, cas []Authority) error {
	for _, a := range cas {
		if err := os.WriteFile(filepath.Join(dir, authorityFile(a)), a.PEM(), 0o644); err != nil {
			return fmt.Errorf("writing authorities: %w", err)
		}
	}
	return nil
}

func authorityFile(a Authority) string { return "atoll-" + a.SHA256[:16] + ".crt" }

// installAuthorities puts the authorities into a root file system without running anything of it: a file each where
// the distribution expects local ones, so that its own tools take them up whenever they run, and what is missing at
// the end of the bundle, so that they count at once. It returns the bundle's path inside the root, "" when it has none.
func installAuthorities(root *os.Root, cas []Authority) (string, error) {
	bundle, real := "", ""
	for _, name := range bundlePaths {
		if r, err := rootResolve(root, name, true); err == nil {
			if st, err := root.Stat(r); err == nil && st.Mode().IsRegular() {
				bundle, real = "/"+name, r
				break
			}
		}
	}
	if len(cas) == 0 {
		return bundle, nil
	}
	if bundle == "" {
		// Nothing in the image trusts anyone yet: with the extra ones alone, inspected TLS works.
		bundle, real = "/"+bundlePaths[0], bundlePaths[0]
	}
	anchors := "usr/local/share/ca-certificates"
	if r, err := rootResolve(root, "etc/pki/ca-trust/source/anchors", true); err == nil {
		anchors = r
	} else if r, err := rootResolve(root, anchors, true); err == nil {
		anchors = r
	}
	for _, dir := range []string{anchors, path.Dir(real)} {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("installing authorities: %w", err)
		}
	}
	have, err := root.ReadFile(real)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("installing authorities: %w", err)
	}
	trusted := parseAuthorities(have)
	for _, a := range cas {
		if err := root.WriteFile(path.Join(anchors, authorityFile(a)), a.PEM(), 0o644); err != nil {
			return "", fmt.Errorf("installing authorities: %w", err)
		}
		if slices.ContainsFunc(trusted, func(t Authority) bool { return t.SHA256 == a.SHA256 }) {
			continue
		}
		if len(have) > 0 && !bytes.HasSuffix(have, []byte("\n")) {
			have = append(have, '\n')
		}
		have = append(have, a.PEM()...)
	}
	// A new file, so that no other name of the old one is changed.
	_ = root.Remove(real)
	if err := root.WriteFile(real, have, 0o644); err != nil {
		return "", fmt.Errorf("installing authorities: %w", err)
	}
	return bundle, nil
}

// caEnv points every tool's own variable at the full bundle, since most of them replace the tool's list.
func caEnv(bundle string) []string {
	var out []string
	if bundle == "" {
		return nil
	}
	for _, k := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
		"CARGO_HTTP_CAINFO", "NPM_CONFIG_CAFILE", "NODE_EXTRA_CA_CERTS", "AWS_CA_BUNDLE"} {
		out = append(out, k+"="+bundle)
	}
	return out
}
