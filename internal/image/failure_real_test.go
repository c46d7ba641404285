package image

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestRealFailures makes the real tools fail on purpose, against the template's
// registries, and reads what a user is told.
func TestRealFailures(t *testing.T) {
	base := realBase(t)
	tests := []struct {
		name     string
		packages Packages
		kind     Kind
		pkg      string
		index    int
		says     string
	}{
		{"pip unknown", Packages{Pip: []string{"six", "atoll-no-such-distribution"}}, KindPackageNotFound, "atoll-no-such-distribution", 1, `pip: no matching distribution for "atoll-no-such-distribution": ERROR: No matching distribution found`},
		{"pip version", Packages{Pip: []string{"six==99.1"}}, KindVersionNotFound, "six==99.1", 0, "from versions"},
		{"pip conflict", Packages{Pip: []string{"six==1.16.0", "six==1.17.0"}}, KindConflict, "", -1, "do not fit together"},
		{"npm unknown", Packages{Npm: []string{"left-pad", "@atoll-run/no-such-package"}}, KindPackageNotFound, "@atoll-run/no-such-package", 1, "npm: no package"},
		{"npm version", Packages{Npm: []string{"left-pad@99.1.0", "semver"}}, KindVersionNotFound, "left-pad@99.1.0", 0, "npm: no version matches"},
		{"apt unknown", Packages{Apt: []string{"jq", "atoll.no.such"}}, KindPackageNotFound, "atoll.no.such", 1, `apt: no package "atoll.no.such"`},
		{"apt version", Packages{Apt: []string{"jq=99"}}, KindVersionNotFound, "jq=99", 0, "was not found"},
		{"apt conflict", Packages{Apt: []string{"exim4-daemon-light", "postfix"}}, KindConflict, "", -1, "do not fit together"},
		{"apt remove", Packages{Apt: []string{"systemd-standalone-sysusers", "systemd"}}, KindConflict, "", -1, "do not fit together"},
		{"cargo unknown", Packages{Cargo: []string{"atoll-no-such-crate"}}, KindPackageNotFound, "atoll-no-such-crate", 0, "cargo: no crate"},
		{"cargo version", Packages{Cargo: []string{"itoa@99.1.0"}}, KindVersionNotFound, "itoa@99.1.0", 0, "cargo: no such version"},
		{"cargo library", Packages{Cargo: []string{"itoa"}}, KindInstallError, "itoa", 0, "has no program to install"},
		{"go unknown", Packages{Go: []string{"example.com/atoll/nothing"}}, KindPackageNotFound, "example.com/atoll/nothing", 0, "go: no package"},
		{"go word", Packages{Go: []string{"string"}}, KindPackageNotFound, "string", 0, "go: no package"},
		{"go version", Packages{Go: []string{"golang.org/x/tools/cmd/stringer@v0.99999.0"}}, KindVersionNotFound, "golang.org/x/tools/cmd/stringer@v0.99999.0", 0, "go: no such version"},
		{"go inner", Packages{Go: []string{"golang.org/x/text/nothing@v0.20.0"}}, KindPackageNotFound, "golang.org/x/text/nothing@v0.20.0", 0, "go: no package"},
		{"go library", Packages{Go: []string{"golang.org/x/text/width@v0.20.0"}}, KindInstallError, "golang.org/x/text/width@v0.20.0", 0, "is not a program"},
	}
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: openChroot(t, &boxHooks{}), MaxParallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			run, err := b.Start(Request{Base: base, Packages: tt.packages})
			if err != nil {
				t.Fatal(err)
			}
			_, err = run.Wait(t.Context())
			var f *Failure
			if !errors.As(err, &f) {
				t.Fatalf("got %v, want a failure", err)
			}
			if f.Kind != tt.kind || f.Package != tt.pkg || f.Index != tt.index || !strings.Contains(f.Message, tt.says) || strings.Contains(f.Message, "\n") {
				t.Errorf("got %s %q [%d]: %s\n%s", f.Kind, f.Package, f.Index, f.Message, run.Log().Text())
			}
			t.Log(f.Message)
		})
	}
}

// TestDeadRegistries points pip at registries that do not work.
func TestDeadRegistries(t *testing.T) {
	base := realBase(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hang.Close()
	var calls atomic.Int64
	flaky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) <= 2 { // the first attempt and the question why it failed
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		serveWheel(w, r)
	}))
	defer flaky.Close()
	with := func(index string) *Base {
		other := *base
		other.Digest = "base of " + index
		other.Env = append(slices.Clone(base.Env), "PIP_INDEX_URL="+index, "PIP_RETRIES=0", "PIP_DEFAULT_TIMEOUT=1")
		return &other
	}
	h := &boxHooks{}
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: openChroot(t, h), Backoff: []time.Duration{time.Millisecond}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	list := Packages{Pip: []string{"tiny"}}
	for _, index := range []string{"http://" + closed.Addr().String() + "/simple", hang.URL} {
		_, err := b.Build(t.Context(), Request{Base: with(index), Packages: list})
		var f *Failure
		if !errors.As(err, &f) || f.Kind != KindRegistryUnreachable || f.Attempts != 2 {
			t.Errorf("%s: got %+v, %v; want 2 attempts, unreachable", index, f, err)
		}
		t.Log(err)
	}
	res, err := b.Build(t.Context(), Request{Base: with(flaky.URL), Packages: list})
	if err != nil {
		t.Fatal(err)
	}
	res.Release()
	if got := enter(t, base, res.Layers, "python3", "-c", "import tiny; print(tiny.word)"); got != "hello" {
		t.Errorf("import says %q", got)
	}

	// A refusal explains what the tool cannot know.
	h.reached = []Contact{{Host: "files.example.com", Port: 443, Count: 3}}
	_, err = b.Build(t.Context(), Request{Base: with("http://" + closed.Addr().String() + "/simple"), Packages: list})
	var f *Failure
	if !errors.As(err, &f) || f.Kind != KindHostRefused || f.Attempts != 1 || !strings.Contains(f.Message, "files.example.com") || !strings.Contains(f.Message, `registries: {"*": {pip: ["+files.example.com"]}}`) {
		t.Errorf("got %v", err)
	}
}
