package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pages serves fixed content by path. "/./" in a path, as apt asks it of a flat
// repository, is "/".
type pages map[string][]byte

func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	content, ok := p[strings.Replace(r.URL.Path, "/./", "/", 1)]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/") {
		w.Header().Set("Content-Type", "text/html")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// file is one entry of an archive.
type file struct{ name, content string }

func tarball(t *testing.T, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	w := tar.NewWriter(packed)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t *testing.T, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, f := range files {
		e, err := w.Create(f.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(e, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// addRegistries gives the site a package of the name atoll-probe, version
// 1.0.0, for each package manager, in the protocol of its registry.
func (s *site) addRegistries(t *testing.T) {
	t.Helper()
	s.hosts["pip"] = pipIndex(t)
	s.hosts["npm"] = npmRegistry(t)
	s.hosts["crates"] = cargoRegistry(t)
	s.hosts["proxy"] = goProxy(t)
	s.hosts["deb"] = aptRepository(t)
	s.hosts["git"] = gitServer(t)
}

// pipIndex is a simple repository (PEP 503) with a wheel.
func pipIndex(t *testing.T) http.Handler {
	t.Helper()
	const name, info = "atoll_probe-1.0.0-py3-none-any.whl", "atoll_probe-1.0.0.dist-info/"
	wheel := zipped(t,
		file{"atoll_probe.py", "VALUE = 'pip works'\n"},
		file{info + "METADATA", "Metadata-Version: 2.1\nName: atoll-probe\nVersion: 1.0.0\n"},
		file{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		file{info + "RECORD", "atoll_probe.py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"})
	return pages{
		"/simple/atoll-probe/": fmt.Appendf(nil, `<!DOCTYPE html><a href="/files/%s#sha256=%x">%s</a>`, name, sha256.Sum256(wheel), name),
		"/files/" + name:       wheel,
	}
}

// npmRegistry is a package document and its tarball.
func npmRegistry(t *testing.T) http.Handler {
	t.Helper()
	about := `{"name":"atoll-probe","version":"1.0.0","main":"index.js"}`
	packed := tarball(t, file{"package/package.json", about}, file{"package/index.js", "module.exports = 'npm works'\n"})
	sum := sha512.Sum512(packed)
	document, err := json.Marshal(object{
		"name": "atoll-probe", "dist-tags": object{"latest": "1.0.0"},
		"versions": object{"1.0.0": object{
			"name": "atoll-probe", "version": "1.0.0", "main": "index.js",
			"dist": object{
				"tarball":   "https://npm.example.com/atoll-probe/-/atoll-probe-1.0.0.tgz",
				"integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages{"/atoll-probe": document, "/atoll-probe/-/atoll-probe-1.0.0.tgz": packed}
}

// cargoRegistry is a sparse index and its crate.
func cargoRegistry(t *testing.T) http.Handler {
	t.Helper()
	crate := tarball(t,
		file{"atoll-probe-1.0.0/Cargo.toml", "[package]\nname = \"atoll-probe\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"},
		file{"atoll-probe-1.0.0/src/lib.rs", "pub const VALUE: &str = \"cargo works\";\n"})
	line := fmt.Appendf(nil, `{"name":"atoll-probe","vers":"1.0.0","deps":[],"cksum":"%x","features":{},"yanked":false}`+"\n", sha256.Sum256(crate))
	return pages{
		"/index/config.json":          []byte(`{"dl":"https://crates.example.com/dl/{crate}-{version}.crate"}`),
		"/index/at/ol/atoll-probe":    line,
		"/dl/atoll-probe-1.0.0.crate": crate,
	}
}

// goProxy is the module proxy protocol.
func goProxy(t *testing.T) http.Handler {
	t.Helper()
	const mod = "module example.com/atoll-probe\n\ngo 1.21\n"
	const root = "example.com/atoll-probe@v1.0.0/"
	packed := zipped(t, file{root + "go.mod", mod}, file{root + "probe.go", "// Package probe is there.\npackage probe\n\nconst Value = \"go works\"\n"})
	const base = "/example.com/atoll-probe/@v/"
	return pages{
		base + "list":        []byte("v1.0.0\n"),
		base + "v1.0.0.info": []byte(`{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z"}`),
		base + "v1.0.0.mod":  []byte(mod),
		base + "v1.0.0.zip":  packed,
	}
}

// aptRepository is a flat repository with one package and the sums that apt
// checks; the test's source line trusts it.
func aptRepository(t *testing.T) http.Handler {
	t.Helper()
	control := "Package: atoll-probe\nVersion: 1.0.0\nArchitecture: all\nMaintainer: Test <test@example.com>\nDescription: apt works\n"
	var deb bytes.Buffer
	deb.WriteString("!<arch>\n")
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar.gz", tarball(t, file{"./control", control})},
		{"data.tar.gz", tarball(t, file{"./usr/share/atoll-probe", "apt works\n"})},
	} {
		fmt.Fprintf(&deb, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", f.name, 1700000000, 0, 0, "100644", len(f.data))
		deb.Write(f.data)
		if len(f.data)%2 == 1 {
			deb.WriteByte('\n')
		}
	}
	packages := fmt.Appendf(nil, "%sFilename: ./atoll-probe.deb\nSize: %d\nSHA256: %x\n", control, deb.Len(), sha256.Sum256(deb.Bytes()))
	release := fmt.Appendf(nil, "Suite: probe\nDate: %s\nSHA256:\n %x %d Packages\n",
		time.Now().UTC().Format(time.RFC1123), sha256.Sum256(packages), len(packages))
	return pages{"/Release": release, "/Packages": packages, "/atoll-probe.deb": deb.Bytes()}
}

// gitServer is git's own smart HTTP back end on a repository that takes pushes.
func gitServer(t *testing.T) http.Handler {
	t.Helper()
	dir := t.TempDir()
	repository := filepath.Join(dir, "probe.git")
	run := func(args ...string) string {
		out, err := exec.Command("git", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("init", "--quiet", "--bare", "--initial-branch=main", repository)
	run("-C", repository, "config", "http.receivepack", "true")
	return &cgi.Handler{
		Path: filepath.Join(run("--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
}
