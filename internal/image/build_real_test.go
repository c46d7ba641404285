package image

import (
	"log/slog"
	"os"
	"runtime"
	"testing"
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
	return base
}

func TestRealInstalls(t *testing.T) {
	base := realBase(t)
	h := &boxHooks{}
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: openChroot(t, h), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	req := Request{Base: base, Packages: Packages{Apt: []string{"jq", "netbase"}, Cargo: []string{"data-encoding-bin"}, Go: []string{"golang.org/x/tools/cmd/stringer@v0.30.0"},
		Npm: []string{"left-pad@1.3.0", "semver"}, Pip: []string{"six==1.17.0", `typing-extensions; python_version < "3"`, "Markdown_It.Py[linkify]"}},
		Watch: func(e Event) {
			if e.Line != nil {
				t.Log(e.Line.Manager, e.Line.Text)
			}
		}}
	res, err := b.Build(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range res.Layers {
		t.Log(l.Manager, l.Duration, l.SizeBytes, l.Files, l.Versions)
	}
}
