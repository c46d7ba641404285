package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

func sumOf(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

// TestChild is the body of processes that other tests start and kill.
func TestChild(t *testing.T) {
	text := os.Getenv("ATOLL_TEST_CHILD")
	if text == "" {
		t.Skip("for other tests")
	}
	var d Declaration
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	ts, err := NewTemplates(TemplatesConfig{CacheDir: os.Getenv("ATOLL_TEST_CACHE"), Declarations: []Declaration{d}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), d.Name, stdoutProgress{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("digest " + b.Digest)
}

type stdoutProgress struct{}

func (stdoutProgress) Stage(name string) { fmt.Println("stage " + name) }
func (stdoutProgress) Percent(float64)   {}
func (stdoutProgress) Log(line string)   { fmt.Println("log " + line) }

// startChild runs TestChild in a process of its own.
func startChild(t *testing.T, cache string, d Declaration) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), "ATOLL_TEST_CHILD="+string(text), "ATOLL_TEST_CACHE="+cache)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, out
}

func TestTarballTemplate(t *testing.T) {
	needRoot(t)
	t.Parallel()
	plain := archive(t, dir("etc"), file("etc/x", "y"), file(".wh.kept", "whiteouts are for images"))
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []io.WriteCloser{w, z} {
		if _, err := c.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	kinds := map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()}
	for name, tool := range map[string]string{"xz": "xz", "bzip2": "bzip2"} {
		cmd := exec.Command(tool, "-c")
		cmd.Stdin = bytes.NewReader(plain)
		if kinds[name], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	for kind, b := range kinds {
		t.Run(kind, func(t *testing.T) {
			cache := t.TempDir()
			writeFiles(t, cache, map[string][]byte{"a.tar": b, "short.tar": b[:len(b)/2]})
			ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: []Declaration{
				{Name: "x", Tarball: &Tarball{Path: filepath.Join(cache, "a.tar"), SHA256: sumOf(b)}},
				{Name: "wrong", Tarball: &Tarball{Path: filepath.Join(cache, "a.tar"), SHA256: strings.Repeat("0", 64)}},
				{Name: "short", Tarball: &Tarball{Path: filepath.Join(cache, "short.tar"), SHA256: sumOf(b[:len(b)/2])}},
			}})
			if err != nil {
				t.Fatal(err)
			}
			base, err := ts.Ensure(t.Context(), "x", nil)
			if err != nil {
				t.Fatal(err)
			}
			got := listTree(t, base.Dir)
			if got["etc/x"] != "-rw-r--r-- y" || got[".wh.kept"] == "" {
				t.Errorf("tree is %v", got)
			}
			if _, err := ts.Ensure(t.Context(), "wrong", nil); err == nil || !strings.Contains(err.Error(), "as declared") {
				t.Errorf("wrong sum: %v", err)
			}
			if _, err := ts.Ensure(t.Context(), "short", nil); err == nil {
				t.Error("a cut archive was accepted")
			}
			if left := globDirs(filepath.Join(cache, "scratch", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	needRoot(t)
	t.Parallel()
	var served atomic.Int64
	body := archive(t, file("x", "y"))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	cache, cas := t.TempDir(), t.TempDir()
	open := func(env string, ca string) *Templates {
		ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, ExtraCAFile: ca, Declarations: []Declaration{
			{Name: "x", Tarball: &Tarball{URL: srv.URL, SHA256: sumOf(body)}, Env: map[string]string{"A": env}}}})
		if err != nil {
			t.Fatal(err)
		}
		return ts
	}
	ensure := func(ts *Templates) *Base {
		b, err := ts.Ensure(t.Context(), "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, ok := open("1", "").Lookup("x"); ok {
		t.Error("a version before any build")
	}
	if m, err := open("1", "").Show("x"); err != nil || m.Built || m.Template != "x" {
		t.Errorf("before any build: %+v, %v", m, err)
	}
	first := ensure(open("1", ""))
	if again := ensure(open("1", "")); again.Digest != first.Digest || !again.CreatedAt.Equal(first.CreatedAt) {
		t.Error("built again")
	}
	if again, err := open("1", "").Rebuild(t.Context(), "x", nil); err != nil || again.Digest != first.Digest {
		t.Errorf("the same source made another version: %v", err)
	}
	second := ensure(open("2", ""))
	writeFiles(t, cas, map[string][]byte{"ca.pem": makeCA(t, "company", first.CreatedAt.AddDate(1, 0, 0))})
	third := ensure(open("2", filepath.Join(cas, "ca.pem")))
	if first.Digest == second.Digest || second.Digest == third.Digest {
		t.Error("another declaration or authority is not another version")
	}
	if b, ok := open("1", "").Lookup("x"); !ok || b.Digest != first.Digest {
		t.Error("Lookup prefers another declaration's version")
	}
	if n := len(open("1", "").BaseDirs()); n != 3 || served.Load() != 1 {
		t.Errorf("%d versions, %d downloads", n, served.Load())
	}
	pem, err := os.ReadFile(filepath.Join(third.Dir, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil || subjects(parseAuthorities(pem)) != "CN=company" {
		t.Errorf("bundle: %v", err)
	}
	if list, err := open("1", "").List(); err != nil || len(list) != 5 { // and four that come with the program
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := open("1", "").Ensure(t.Context(), "nope", nil); err == nil {
		t.Error("built a template that is not declared")
	}
}

// TestOneBuild: goroutines and processes that want the same template at once build it once.
func TestOneBuild(t *testing.T) {
	needRoot(t)
	t.Parallel()
	var served atomic.Int64
	body := archive(t, file("x", "y"))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	d := Declaration{Name: "x", Tarball: &Tarball{URL: srv.URL, SHA256: sumOf(body)}}
	cache := t.TempDir()
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: []Declaration{d}})
	if err != nil {
		t.Fatal(err)
	}
	digests := make([]string, 6)
	var wg sync.WaitGroup
	for i := range digests {
		wg.Go(func() {
			if i%2 == 0 {
				b, err := ts.Ensure(t.Context(), "x", nil)
				if err != nil {
					t.Error(err)
					return
				}
				digests[i] = b.Digest
				return
			}
			cmd, out := startChild(t, cache, d)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			_, after, _ := strings.Cut(out.String(), "digest ")
			digests[i], _, _ = strings.Cut(after, "\n")
		})
	}
	wg.Wait()
	for _, d := range digests {
		if d == "" || d != digests[0] {
			t.Errorf("digests differ: %v", digests)
		}
	}
	if n := len(ts.BaseDirs()); n != 1 || served.Load() != 1 {
		t.Errorf("%d versions, %d downloads", n, served.Load())
	}
}

// TestKilledBuild kills a process in the middle of a download; the next build removes its scratch space and
// downloads only what is missing.
func TestKilledBuild(t *testing.T) {
	needRoot(t)
	t.Parallel()
	reg := newRegistry(t)
	ref := push(t, reg.Listener.Addr().String(), v1.Config{}, archive(t, file("one", "1")), archive(t, file("two", "2")))
	target, err := url.Parse(reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	blobs, last, stall := map[string]int{}, "", true
	stalled, release := make(chan struct{}), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			mu.Lock()
			blobs[r.URL.Path]++
			last = r.URL.Path
			hang := stall && len(blobs) == 3 // the configuration, layer one, layer two
			mu.Unlock()
			if hang {
				whole := httptest.NewRecorder()
				httputil.NewSingleHostReverseProxy(target).ServeHTTP(whole, r)
				w.Header().Set("Content-Length", strconv.Itoa(whole.Body.Len()))
				_, _ = w.Write(whole.Body.Bytes()[:whole.Body.Len()/2])
				w.(http.Flusher).Flush()
				close(stalled)
				<-release
				return
			}
		}
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
	}))
	defer front.Close()
	let := sync.OnceFunc(func() { close(release) })
	defer let()
	cache := t.TempDir()
	_, rest, _ := strings.Cut(ref, "/")
	d := Declaration{Name: "x", OCI: &OCI{Ref: front.Listener.Addr().String() + "/" + rest, PlainHTTP: true}}
	cmd, out := startChild(t, cache, d)
	<-stalled
	eventually(t, "the download begins", func() error {
		if len(globDirs(filepath.Join(cache, "scratch", "*", "part-*"))) == 0 {
			return errNotYet
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	let()
	if left := globDirs(filepath.Join(cache, "scratch", "*")); len(left) != 1 {
		t.Errorf("killed too early or too late: %v\n%s", left, out)
	}
	mu.Lock()
	stall, blobs[last] = false, 0
	layerTwo := last
	mu.Unlock()
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: []Declaration{d}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := listTree(t, b.Dir)
	if got["one"] != "-rw-r--r-- 1" || got["two"] != "-rw-r--r-- 2" {
		t.Errorf("tree is %v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	repeated := 0
	for path, n := range blobs {
		if path != layerTwo && n > 1 {
			repeated++
		}
	}
	if repeated > 1 || blobs[layerTwo] != 1 { // the configuration is read again
		t.Errorf("downloads: %v", blobs)
	}
	if left := globDirs(filepath.Join(cache, "scratch", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestLearnOnce: what a box tells is stored beside the version, and no second box is opened for it.
func TestLearnOnce(t *testing.T) {
	needRoot(t)
	t.Parallel()
	body := archive(t, file("x", "y"))
	cache := t.TempDir()
	writeFiles(t, cache, map[string][]byte{"a.tar": body})
	box := &scriptedBox{answers: map[string]string{
		"npm --version":                 "9.2.0\n",
		"npm config list --json":        `{"registry":"https://npm.example.com/","@a:registry":"http://scoped.example.com:4873","proxy":null}`,
		"gem --version":                 "3.6.7\n",
		"gem sources --list":            "*** CURRENT SOURCES ***\n\nhttps://gems.example.com/\n",
		"tool -V":                       "Tool version 3.5a (x)\n",
		"go version":                    "go version go1.24.4 linux/amd64\n",
		"go env -json GOPROXY GOSUMDB":  "broken",
		"probe npm":                     "",
		"probe go":                      "",
		"apt-get --version":             "apt 3.0.4 (amd64)\n",
		"apt-get --print-uris update":   "'http://deb.example.com/d/dists/s/InRelease' x 0 \n'http://deb.example.com/d/dists/s2/InRelease' x 0 \n",
		"apt-config dump":               "Acquire::http::Proxy \"http://proxy.example.com:3128\";\n",
		"python3 -m pip --version":      "pip 25.1.1 from x\n",
		"python3 -m pip config list":    "global.extra-index-url='https://extra.example.com/simple https://two.example.com/'\n:env:.cert='/x'\n",
		"python3 -c from pip._internal": "https://pip.example.com/simple\n",
		"probe apt":                     "",
		"probe pip":                     "",
	}, meets: map[string][]Contact{
		"npm": {{Host: "files.example.com", Port: 443, Allowed: true, Count: 1}, {Host: "npm.example.com", Port: 443, Allowed: true, Count: 2}},
		"pip": {{Host: "10.0.0.7", Port: 443, Allowed: false, Count: 1}},
	}}
	opened := 0
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, OpenBox: func(_ context.Context, s BoxSpec) (Box, error) {
		if opened++; opened == 1 {
			return nil, errors.New("no box yet")
		}
		if !s.Observe || len(s.Layers) != 1 {
			t.Errorf("spec %+v", s)
		}
		return box, nil
	}, RegistryOverrides: map[string]map[string][]string{"*": {"npm": {"other.example.com:8080"}, "apt": {"+more.example.com"}}, "x": {"npm": {"+files2.example.com"}}},
		Declarations: []Declaration{{Name: "x", Tarball: &Tarball{Path: filepath.Join(cache, "a.tar"), SHA256: sumOf(body)}, Runtimes: map[string][]string{"tool": {"tool", "-V"}, "none": {"none"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ts.Ensure(t.Context(), "x", nil); err == nil || !strings.Contains(err.Error(), "no box yet") {
		t.Fatalf("without a box: %v", err)
	}
	var b *Base
	for range 2 {
		if b, err = ts.Ensure(t.Context(), "x", nil); err != nil {
			t.Fatal(err)
		}
	}
	if opened != 2 || !box.closed {
		t.Errorf("%d boxes, closed %v", opened, box.closed)
	}
	if diff := cmp.Diff(map[string]string{"apt": "3.0.4", "gem": "3.6.7", "go": "1.24.4", "npm": "9.2.0", "pip": "25.1.1"}, b.Managers); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"tool": "3.5a"}, b.Runtimes); diff != "" {
		t.Error(diff)
	}
	want := []Registry{
		{"apt", "deb.example.com", 0, "asked"}, {"apt", "more.example.com", 0, "operator"}, {"apt", "proxy.example.com", 3128, "asked"},
		{"gem", "gems.example.com", 0, "asked"},
		{"npm", "files.example.com", 0, "observed"}, {"npm", "files2.example.com", 0, "operator"}, {"npm", "npm.example.com", 0, "asked"}, {"npm", "scoped.example.com", 4873, "asked"},
		{"pip", "extra.example.com", 0, "asked"}, {"pip", "pip.example.com", 0, "asked"}, {"pip", "two.example.com", 0, "asked"},
	}
	if diff := cmp.Diff(want, b.Registries); diff != "" {
		t.Error(diff)
	}
	m, err := ts.Show("x")
	if err != nil {
		t.Fatal(err)
	}
	warnings := strings.Join(m.Warnings, "\n")
	for _, want := range []string{"gem probe", "egress.exempt", "reading go's environment", "runtime none does not tell"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("%q is not in the warnings:\n%s", want, warnings)
		}
	}
}

// scriptedBox answers commands by their words; what it does not know is missing, and an unknown probe fails.
type scriptedBox struct {
	answers map[string]string
	meets   map[string][]Contact
	reached []Contact
	closed  bool
}

func (s *scriptedBox) Run(_ context.Context, c BoxCommand) (BoxExit, error) {
	line := strings.Join(c.Args[4:], " ")
	if script, ok := strings.CutPrefix(line, "/bin/sh -c dir="); ok {
		for _, manager := range managerOrder {
			if strings.Contains(script, tools()[manager].probe) {
				line = "probe " + manager
				s.reached = append(s.reached, s.meets[manager]...)
			}
		}
	}
	if strings.HasPrefix(line, "python3 -c from pip._internal") {
		line = "python3 -c from pip._internal"
	}
	text, ok := s.answers[line]
	switch {
	case !ok && strings.HasPrefix(line, "probe "):
		fmt.Fprintln(c.Output, "ERROR: unreachable")
		return BoxExit{Code: 1}, nil
	case !ok:
		return BoxExit{Code: 127}, nil
	}
	fmt.Fprint(c.Stdout, text)
	return BoxExit{}, nil
}

func (s *scriptedBox) Reached() []Contact                      { return s.reached }
func (s *scriptedBox) Usage(context.Context) (BoxUsage, error) { return BoxUsage{}, nil }
func (s *scriptedBox) Tree(context.Context) (string, error)    { return "", errors.New("none") }
func (s *scriptedBox) Close(context.Context) error             { s.closed = true; return nil }
