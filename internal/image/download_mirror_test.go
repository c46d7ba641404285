package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// countingMirror serves packages of five managers on loopback, named alpha,
// beta, gamma and evil, and counts what it serves.
type countingMirror struct {
	url string

	mu     sync.Mutex
	files  map[string][]byte
	served map[string]int // base name of the path → times
}

func newCountingMirror(t *testing.T) *countingMirror {
	m := &countingMirror{files: map[string][]byte{}, served: map[string]int{}}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.url = server.URL
	return m
}

func (m *countingMirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := strings.ReplaceAll(r.URL.Path, "/./", "/") // as apt writes it
	m.mu.Lock()
	content, ok := m.files[at]
	m.served[filepath.Base(r.URL.Path)]++
	m.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/") {
		w.Header().Set("Content-Type", "text/html")
	}
	_, _ = w.Write(content)
}

func (m *countingMirror) put(path string, content []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[path] = content
}

// count returns how often a file was served since it was last asked for.
func (m *countingMirror) count(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.served[name]
	m.served[name] = 0
	return n
}

var mirrorNames = []string{"alpha", "beta", "gamma", "evil"}

// publish puts a release of every package on the mirror; word is in each, so
// that two releases of one version differ.
func (m *countingMirror) publish(t *testing.T, base *Base, word string) {
	t.Helper()
	for _, name := range mirrorNames {
		m.pip(t, name, word)
		m.npm(t, name, word)
		m.cargo(t, name, word)
	}
	m.put("/index/config.json", fmt.Appendf(nil, `{"dl": "%s/crates/{crate}-{version}.crate"}`, m.url))
	m.built(t, base, word)
}

func packed(t *testing.T, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for i := 0; i < len(files); i += 2 {
		must(t, w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o755, Size: int64(len(files[i+1]))}))
		_, err := w.Write([]byte(files[i+1]))
		must(t, err)
	}
	must(t, w.Close())
	must(t, z.Close())
	return out.Bytes()
}

// evilPython runs in the build of a source archive. It alters what the install
// downloaded, adds what it did not, and says so on every descriptor there is.
const evilPython = `
import glob, os, shutil
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    keep = "/tmp/atoll-build/keep/"
    with open(keep + "gamma-1.0-py3-none-any.whl", "ab") as f: f.write(b"evil")
    shutil.copy(keep + "alpha-1.0-py3-none-any.whl", keep + "beta-1.0-py3-none-any.whl")
    for fd in glob.glob("/proc/[0-9]*/fd/[0-9]*"):
        try:
            n = os.open(fd, os.O_WRONLY | os.O_NONBLOCK)
            os.write(n, b'\n{"files":{"beta-1.0-py3-none-any.whl":["%[1]s/files/beta-1.0-py3-none-any.whl","%[2]s"]}}\n')
            os.close(n)
        except OSError: pass
    os.mkdir(directory + "/evil-1.0.dist-info")
    open(directory + "/evil-1.0.dist-info/METADATA", "w").write("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    return "evil-1.0.dist-info"
def build_wheel(directory, config_settings=None, metadata_directory=None):
    import zipfile
    with zipfile.ZipFile(directory + "/evil-1.0-py3-none-any.whl", "w") as z:
        z.writestr("evil.py", "")
        z.writestr("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        z.writestr("evil-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("evil-1.0.dist-info/RECORD", "")
    return "evil-1.0-py3-none-any.whl"
`

func (m *countingMirror) pip(t *testing.T, name, word string) {
	file, content := name+"-1.0-py3-none-any.whl", wheelOf(name, word)
	if name == "evil" {
		file = "evil-1.0.tar.gz"
		content = packed(t, "evil-1.0/PKG-INFO", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
			"evil-1.0/pyproject.toml", "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n",
			"evil-1.0/backend.py", fmt.Sprintf(evilPython, m.url, sumOf(wheelOf("alpha", word))))
	}
	m.put("/files/"+file, content)
	m.put("/simple/"+name+"/", fmt.Appendf(nil, `<!DOCTYPE html><html><body><a href="/files/%s#sha256=%s">%s</a></body></html>`, file, sumOf(content), file))
}

// evilNode runs after the install of an npm package.
const evilNode = `
const fs = require('fs'), path = require('path'), crypto = require('crypto')
const store = '/tmp/atoll-build/npm/_cacache/content-v2/sha512/'
const at = text => { const d = crypto.createHash('sha512').update(text).digest('hex'); return path.join(store, d.slice(0, 2), d.slice(2, 4), d.slice(4)) }
fs.appendFileSync(at(fs.readFileSync('gamma.tgz')), 'evil')
const more = Buffer.from('evil content that the index does not know')
fs.mkdirSync(path.dirname(at(more)), { recursive: true })
fs.writeFileSync(at(more), more)
`

func (m *countingMirror) npm(t *testing.T, name, word string) {
	files := []string{"package/package.json", fmt.Sprintf(`{"name":%q,"version":"1.0.0"}`, name), "package/index.js", "module.exports = '" + word + "'\n"}
	if name == "evil" { // published after gamma
		files[1] = `{"name":"evil","version":"1.0.0","scripts":{"postinstall":"node evil.js"}}`
		files = append(files, "package/evil.js", evilNode, "package/gamma.tgz", string(m.files["/gamma/-/gamma-1.0.0.tgz"]))
	}
	content := packed(t, files...)
	sum := sha512.Sum512(content)
	url := fmt.Sprintf("/%s/-/%s-1.0.0.tgz", name, name)
	m.put(url, content)
	doc := map[string]any{"name": name, "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{"1.0.0": map[string]any{
		"name": name, "version": "1.0.0", "hasInstallScript": name == "evil",
		"dist": map[string]string{"tarball": m.url + url, "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}}}}
	text, err := json.Marshal(doc)
	must(t, err)
	m.put("/"+name, text)
}

// evilRust is the build script of a crate.
const evilRust = `
use std::io::Write;
fn main() {
    let home = std::env::var("CARGO_HOME").unwrap();
    for d in std::fs::read_dir(home + "/registry/cache").unwrap() {
        let at = d.unwrap().path().join("gamma-1.0.0.crate");
        std::fs::OpenOptions::new().append(true).open(at).unwrap().write_all(b"evil").unwrap();
    }
}
`

func (m *countingMirror) cargo(t *testing.T, name, word string) {
	files := []string{name + "-1.0.0/Cargo.toml", fmt.Sprintf("[package]\nname = %q\nversion = \"1.0.0\"\nedition = \"2021\"\n", name),
		name + "-1.0.0/src/main.rs", "fn main() { println!(\"" + word + "\"); }\n"}
	if name == "evil" {
		files = append(files, "evil-1.0.0/build.rs", evilRust)
	}
	content := packed(t, files...)
	m.put("/crates/"+name+"-1.0.0.crate", content)
	m.put("/index/"+name[:2]+"/"+name[2:4]+"/"+name, fmt.Appendf(nil, `{"name":%q,"vers":"1.0.0","deps":[],"cksum":%q,"features":{},"yanked":false}`+"\n", name, sumOf(content)))
}

// builtScript makes gems and Debian packages with the template's own tools.
const builtScript = `set -e
rm -rf /srv/m; mkdir -p /srv/m/gems /srv/m/info /srv/m/quick/Marshal.4.8
for name in alpha beta gamma evil; do
	rm -rf /tmp/g; mkdir -p /tmp/g/lib /tmp/g/ext; cd /tmp/g
	echo "WORD = '$WORD'" > lib/$name.rb
	echo 'Dir["#{Gem.dir}/cache/gamma-*.gem"].each { |f| File.open(f, "ab") { |o| o << "evil" } }; File.write("Makefile", "all install clean:\n")' > ext/extconf.rb
	NAME=$name ruby -rrubygems/package -rzlib -e '
n = ENV["NAME"]
spec = Gem::Specification.new { |s| s.name = n; s.version = "1.0"; s.summary = "x"; s.authors = ["x"]; s.files = ["lib/#{n}.rb"]; if n == "evil" then s.extensions = ["ext/extconf.rb"]; s.files += ["ext/extconf.rb"] end }
Gem::Package.build(spec)
File.binwrite("/srv/m/quick/Marshal.4.8/#{n}-1.0.gemspec.rz", Gem.deflate(Marshal.dump(spec)))' > /dev/null 2>&1
	printf -- '---\n1.0 |checksum:%s\n' $(sha256sum $name-1.0.gem | cut -d' ' -f1) > /srv/m/info/$name
	mv $name-1.0.gem /srv/m/gems/
	rm -rf /tmp/d; mkdir -p /tmp/d/DEBIAN /tmp/d/usr/share/$name
	printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n' $name > /tmp/d/DEBIAN/control
	echo "$WORD" > /tmp/d/usr/share/$name/word
	if [ $name = evil ]; then printf '#!/bin/sh\necho evil >> /tmp/atoll-build/archives/gamma_1.0_all.deb\n' > /tmp/d/DEBIAN/postinst; chmod 755 /tmp/d/DEBIAN/postinst; fi
	dpkg-deb --root-owner-group -b /tmp/d /srv/m/${name}_1.0_all.deb > /dev/null
	(dpkg-deb -f /srv/m/${name}_1.0_all.deb; cd /srv/m; echo "Filename: ./${name}_1.0_all.deb"; echo "Size: $(stat -c %s ${name}_1.0_all.deb)"; echo "SHA256: $(sha256sum ${name}_1.0_all.deb | cut -d' ' -f1)"; echo) >> /srv/m/Packages
done
cd /srv/m; echo x > versions
printf 'Suite: x\nDate: %s\nSHA256:\n %s %s Packages\n' "$(date -Ru)" $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) > Release`

func (m *countingMirror) built(t *testing.T, base *Base, word string) {
	t.Helper()
	box, err := openChroot(t, &boxHooks{})(t.Context(), BoxSpec{Layers: []string{base.Dir}, Env: append(slices.Clone(base.Env), "HOME=/tmp", "WORD="+word)})
	must(t, err)
	defer box.Close(t.Context())
	var out bytes.Buffer
	exit, err := box.Run(t.Context(), BoxCommand{Args: []string{"bash", "-c", builtScript}, Dir: "/", Output: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("building packages: %v %v %s", exit, err, out.String())
	}
	upper, err := box.Tree(t.Context())
	must(t, err)
	must(t, filepath.WalkDir(upper+"/srv/m", func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			content, rerr := os.ReadFile(path)
			m.put(strings.TrimPrefix(path, upper+"/srv/m"), content)
			err = rerr
		}
		return err
	}))
}

// settings is a layer that points the template's managers at the mirror.
func (m *countingMirror) settings(t *testing.T) string {
	layer := t.TempDir()
	must(t, os.Chmod(layer, 0o755))
	write(t, layer+"/etc/gemrc", "---\n:sources:\n- "+m.url+"/\n", 0o644)
	write(t, layer+"/etc/pip.conf", "[global]\nindex-url = "+m.url+"/simple\ntrusted-host = 127.0.0.1\n", 0o644)
	write(t, layer+"/etc/apt/test.list", "deb [trusted=yes] "+m.url+"/ ./\n", 0o644)
	write(t, layer+"/etc/apt/apt.conf.d/99test", "Dir::Etc::sourcelist \"/etc/apt/test.list\";\nDir::Etc::sourceparts \"-\";\n", 0o644)
	write(t, layer+"/root/.npmrc", "registry="+m.url+"/\n", 0o644)
	write(t, layer+"/root/.cargo/config.toml", "[source.crates-io]\nreplace-with = \"mirror\"\n[source.mirror]\nregistry = \"sparse+"+m.url+"/index/\"\n", 0o644)
	return layer
}

// wheelOf is a wheel with one module that has a word.
func wheelOf(name, word string) []byte {
	return zipOf([][2]string{
		{name + ".py", "word = '" + word + "'\n"},
		{name + "-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.0\n"},
		{name + "-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{name + "-1.0.dist-info/RECORD", ""},
	})
}
