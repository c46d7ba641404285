package image

import (
	"os"
	"testing"
)

// realBase is a Debian root with the six managers, made once per machine.
func realBase(t *testing.T) *Base {
	t.Helper()
	needRoot(t)
	dir := os.Getenv("ATOLL_TEST_ROOT")
	return &Base{Template: "test", Digest: "test-digest", Dir: dir, Arch: "amd64",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
			"NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt", "CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt", "PIP_CERT=/etc/ssl/certs/ca-certificates.crt"},
		Managers: map[string]string{"apt": "3", "cargo": "1", "gem": "3", "go": "1", "npm": "9", "pip": "25"}}
}

func TestRealInstalls(t *testing.T) {
	base := realBase(t)
	h := &boxHooks{}
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: openChroot(t, h)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	req := Request{Base: base, Packages: Packages{Apt: []string{"jq", "netbase"}, Cargo: []string{"itoa-cli@0.1.0"}, Go: []string{"golang.org/x/tools/cmd/stringer@v0.30.0"},
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
