package image

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// realBase is the default template, in the shared cache. ATOLL_TEST_ROOT names
// another root with the six managers, for quick work on these tests.
func realBase(t *testing.T) *Base {
	t.Helper()
	needRoot(t)
	if dir := os.Getenv("ATOLL_TEST_ROOT"); dir != "" {
		const bundle = "/etc/ssl/certs/ca-certificates.crt"
		return &Base{Template: "test", Digest: "test of " + dir, Dir: dir, Arch: runtime.GOARCH,
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SSL_CERT_FILE=" + bundle, "PIP_CERT=" + bundle,
				"NPM_CONFIG_CAFILE=" + bundle, "CARGO_HTTP_CAINFO=" + bundle, "NODE_PATH=/usr/local/lib/node_modules"},
			Managers: map[string]string{"apt": "3", "cargo": "1", "gem": "3", "go": "1", "npm": "9", "pip": "25"}}
	}
	ts, err := NewTemplates(TemplatesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	base, err := ts.Ensure(t.Context(), "base", logProgress{t})
	if err != nil {
		t.Fatal(err)
	}
	copied := *base
	copied.Managers = map[string]string{"apt": "3", "cargo": "1", "gem": "3", "go": "1", "npm": "9", "pip": "25"}
	return &copied
}

// TestRealInstalls installs with all six managers, and uses what came of it as
// a session does: by a plain shell, with nothing set up.
func TestRealInstalls(t *testing.T) {
	base := realBase(t)
	gemrc := gemSource(t, base)
	h := &boxHooks{}
	open := openChroot(t, h)
	dir := t.TempDir()
	d := downloads(t, 0)
	b, err := NewBuilder(BuilderConfig{LayersDir: dir, Downloads: d, OpenBox: func(ctx context.Context, spec BoxSpec) (Box, error) {
		spec.Layers = slices.Insert(slices.Clone(spec.Layers), 1, gemrc)
		return open(ctx, spec)
	}})
	must(t, err)
	defer b.Close()
	list := Packages{Apt: []string{"figlet", "netbase"}, Cargo: []string{"data-encoding-bin"}, Gem: []string{"atoll-tiny:~> 1.0"}, Go: []string{"golang.org/x/example/hello@latest"},
		Npm: []string{"left-pad@1.3.0", "semver@^7"}, Pip: []string{"six==1.17.0", `typing-extensions; python_version < "3"`, "Markdown_It.Py[linkify]>=3"}}
	run, err := b.Start(Request{Base: base, Packages: list})
	must(t, err)
	res, err := run.Wait(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, run.Log().Text())
	}
	defer res.Release()
	for i, want := range []struct{ manager, name, version string }{
		{"apt", "figlet", "2."}, {"cargo", "data-encoding-bin", "0."}, {"gem", "atoll-tiny", "1.0"}, {"go", "golang.org/x/example/hello", "v"},
		{"npm", "left-pad", "1.3.0"}, {"pip", "six", "1.17.0"}} {
		l := res.Layers[i]
		t.Logf("%s: %v, %d bytes, %d files, %v", l.Manager, l.Duration.Round(time.Millisecond), l.SizeBytes, l.Files, l.Versions)
		if l.Manager != want.manager || l.Hit || !slices.ContainsFunc(l.Versions, func(v PackageVersion) bool {
			return v.Requested && v.Name == want.name && strings.HasPrefix(v.Version, want.version)
		}) {
			t.Errorf("layer %d: %s %v, want %v", i, l.Manager, l.Versions, want)
		}
	}
	for _, l := range res.Layers {
		for _, name := range []string{"tmp", "etc/resolv.conf", "etc/hosts", "var/lib/apt", "var/cache/apt", "usr/sbin/policy-rc.d", "root"} {
			if _, err := os.Lstat(l.Dir + "/" + name); err == nil && name != "var/lib/apt" {
				t.Errorf("the %s layer has /%s", l.Manager, name)
			}
		}
	}
	for _, tt := range [][2]string{
		{"figlet -f term hi", "hi"}, {"command -v data-encoding", "/usr/local/bin/data-encoding"}, {"atoll-tiny", "tiny"}, {"hello", "Hello, world!"},
		{`cd /tmp && node -e 'console.log(require("left-pad")(1, 3, 0))'`, "001"}, {"semver 1.2.3", "1.2.3"},
		{`python3 -c 'import six, markdown_it, linkify_it; print(six.__version__)'`, "1.17.0"}, {"dpkg -s figlet | grep Status", "Status: install ok installed"},
	} {
		if got := enter(t, base, res.Layers, "bash", "-c", tt[0]); got != tt[1] {
			t.Errorf("%s: got %q, want %q", tt[0], got, tt[1])
		}
	}

	opened := h.opened.Load()
	again, err := b.Build(t.Context(), Request{Base: base, Packages: list})
	must(t, err)
	if h.opened.Load() != opened || !slices.Equal(again.Keys(), res.Keys()) {
		t.Error("the second build installed something")
	}
	list.Pip = []string{"six"}
	other, err := b.Build(t.Context(), Request{Base: base, Packages: list})
	must(t, err)
	if h.opened.Load() != opened+1 || !slices.Equal(other.Keys()[:5], res.Keys()[:5]) || other.Keys()[5] == res.Keys()[5] {
		t.Error("another pip list must reuse the five layers below")
	}
	// The store is the truth: a builder that starts later finds all of it.
	later, err := NewBuilder(BuilderConfig{LayersDir: dir, OpenBox: open})
	must(t, err)
	defer later.Close()
	start := time.Now()
	found, err := later.Build(t.Context(), Request{Base: base, Packages: list})
	must(t, err)
	t.Logf("a hit of six layers took %v", time.Since(start))
	if !slices.Equal(found.Keys(), other.Keys()) {
		t.Error("a later builder found other layers")
	}
}

// gemSource serves a gem on loopback and returns a layer whose configuration
// names it as the only source.
func gemSource(t *testing.T, base *Base) string {
	t.Helper()
	const script = `set -e
mkdir -p /srv/gems/gems /srv/gems/quick/Marshal.4.8 /build/bin /build/lib
cd /build
printf '#!/usr/bin/env ruby\nputs "tiny"\n' > bin/atoll-tiny
chmod 755 bin/atoll-tiny
ruby -rrubygems/package -rzlib -e '
spec = Gem::Specification.new { |s| s.name = "atoll-tiny"; s.version = "1.0"; s.summary = "x"; s.authors = ["x"]; s.files = ["bin/atoll-tiny"]; s.executables = ["atoll-tiny"] }
Gem::Package.build(spec)
dump = Marshal.dump([["atoll-tiny", Gem::Version.new("1.0"), "ruby"]])
%w[specs latest_specs].each { |n| File.binwrite("/srv/gems/#{n}.4.8.gz", Gem::Util.gzip(dump)) }
File.binwrite("/srv/gems/prerelease_specs.4.8.gz", Gem::Util.gzip(Marshal.dump([])))
File.binwrite("/srv/gems/quick/Marshal.4.8/atoll-tiny-1.0.gemspec.rz", Gem.deflate(Marshal.dump(spec)))
'
mv atoll-tiny-1.0.gem /srv/gems/gems/`
	box, err := openChroot(t, &boxHooks{})(t.Context(), BoxSpec{Layers: []string{base.Dir}, Env: append(slices.Clone(base.Env), "HOME=/tmp")})
	must(t, err)
	t.Cleanup(func() { box.Close(context.Background()) })
	var out bytes.Buffer
	exit, err := box.Run(t.Context(), BoxCommand{Args: []string{"bash", "-c", script}, Dir: "/", Output: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("building a gem: %v %v %s", exit, err, out.String())
	}
	upper, err := box.Tree(t.Context())
	must(t, err)
	server := httptest.NewServer(http.FileServer(http.Dir(upper + "/srv/gems")))
	t.Cleanup(server.Close)
	layer := t.TempDir()
	must(t, os.Chmod(layer, 0o755))
	write(t, layer+"/etc/gemrc", "---\n:sources:\n- "+server.URL+"/\n", 0o644)
	return layer
}
