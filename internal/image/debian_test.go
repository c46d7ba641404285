package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHostAptSources(t *testing.T) {
	t.Parallel()
	etc := t.TempDir()
	files := map[string]string{
		"sources.list": "# deb http://old.example.com/debian bookworm main\n" +
			"deb [arch=amd64 signed-by=/k.gpg] http://one.example.com/debian bookworm main contrib # why\n" +
			"deb-src http://one.example.com/debian bookworm main\n",
		"sources.list.d/debian.sources": "Types: deb deb-src\nURIs: http://two.example.com/debian\n# a comment\nSuites: bookworm\n bookworm-updates\n" +
			"Components: main\nSigned-By: /k2.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://no.example.com/\nSuites: x\n\n" +
			"Types: deb\nURIs: http://two.example.com/security\nSuites: bookworm-security\nComponents: main\nSigned-By:\n -----BEGIN PGP\n .\n x\n",
		"sources.list.d/off.sources.disabled": "broken",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(etc, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := hostAptSources(etc)
	if err != nil {
		t.Fatal(err)
	}
	want := []aptSource{
		{uri: "http://one.example.com/debian", suite: "bookworm", components: []string{"main", "contrib"}, signedBy: "/k.gpg"},
		{uri: "http://two.example.com/debian", suite: "bookworm", components: []string{"main"}, signedBy: "/k2.gpg"},
		{uri: "http://two.example.com/debian", suite: "bookworm-updates", components: []string{"main"}, signedBy: "/k2.gpg"},
		{uri: "http://two.example.com/security", suite: "bookworm-security", components: []string{"main"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(aptSource{})); diff != "" {
		t.Fatal(diff)
	}
	lines, err := debianLines(&Debian{Suite: "trixie"}, got, "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	wantLines := []string{
		"deb [signed-by=/k.gpg] http://one.example.com/debian trixie main",
		"deb [signed-by=/k2.gpg] http://two.example.com/debian trixie-updates main",
		"deb http://two.example.com/security trixie-security main",
	}
	if diff := cmp.Diff(wantLines, lines); diff != "" {
		t.Error(diff)
	}
	lines, err = debianLines(&Debian{Suite: "trixie", Suites: map[string][]string{"trixie-backports": {"src:rustc"}}}, got, "bookworm")
	wantLines = append(wantLines, "deb [signed-by=/k.gpg] http://one.example.com/debian trixie-backports main")
	if diff := cmp.Diff(wantLines, lines); diff != "" || err != nil {
		t.Error(diff, err)
	}
	lines, err = debianLines(&Debian{Suite: "s", Suites: map[string][]string{"t": {"a1"}}, Mirror: "https://own.example.com/d", SecurityMirror: "https://own.example.com/sec"}, nil, "")
	wantLines = []string{"deb https://own.example.com/d s main", "deb https://own.example.com/sec s-security main", "deb https://own.example.com/d t main"}
	if diff := cmp.Diff(wantLines, lines); diff != "" || err != nil {
		t.Error(diff, err)
	}
	lines, err = debianLines(&Debian{Suite: "sid", Mirror: "https://own.example.com/d", Keyring: "/own.gpg", Components: []string{"main", "x"}}, nil, "")
	if diff := cmp.Diff([]string{"deb [signed-by=/own.gpg] https://own.example.com/d sid main x"}, lines); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := debianLines(&Debian{Suite: "trixie"}, nil, "noble"); err == nil || !strings.Contains(err.Error(), "set debian.mirror") {
		t.Errorf("no archive on the host: %v", err)
	}
	secret := []aptSource{{uri: "https://user:secret@m.example.com/debian", suite: "bookworm", components: []string{"main"}}}
	if _, err := debianLines(&Debian{Suite: "trixie"}, secret, "bookworm"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a mirror with credentials: %v", err)
	}
}

func TestHostAptOptions(t *testing.T) {
	t.Parallel()
	keep, env := hostAptOptions([]byte(`Acquire::http::Proxy "http://proxy.example.com:3128";
Acquire::https::Proxy "http://user:pw@proxy.example.com:3128";
Acquire::Check-Date "false";
APT::Update::Post-Invoke:: "rm -rf /";
Acquire::http::Proxy::m.example.com "DIRECT";
`))
	if diff := cmp.Diff([]string{`Acquire::http::Proxy "http://proxy.example.com:3128"`, `Acquire::Check-Date "false"`,
		`Acquire::http::Proxy::m.example.com "DIRECT"`}, keep); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"https_proxy=http://user:pw@proxy.example.com:3128"}, env); diff != "" {
		t.Error(diff)
	}
}

func FuzzAptSources(f *testing.F) {
	f.Add("deb [a=b] http://m.example.com s main\n")
	f.Add("Types: deb\nURIs: http://m.example.com\nSuites: s\nComponents: main\n x\n")
	f.Fuzz(func(t *testing.T, text string) {
		one, _ := parseOneLine(strings.NewReader(text))
		many, _ := parseDeb822(strings.NewReader(text))
		for _, s := range append(one, many...) {
			if s.uri == "" || s.suite == "" {
				t.Errorf("a source without URI or suite: %+v", s)
			}
		}
		lines, err := debianLines(&Debian{Suite: "trixie"}, append(one, many...), "s")
		for _, l := range lines {
			if err == nil && strings.ContainsAny(l, "\n\x00") {
				t.Errorf("a source line with a line end: %q", l)
			}
		}
	})
}

// mmdebstrap breaks when descriptors that it inherits push its own beyond 9.
func TestBootstrapInheritsOneDescriptor(t *testing.T) {
	lock, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for range 8 { // as a parent leaves them: not closed on exec
		fd, err := syscall.Dup(int(lock.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
	}
	cmd := exec.Command("sh", "-c", "cd /proc/$$/fd && echo *")
	passLock(cmd, lock)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, fd := range strings.Fields(string(out)) {
		if n, err := strconv.Atoi(fd); err == nil && n > 2 && n < 10 || fd == "63" {
			held = append(held, fd)
		}
	}
	// 3 is the directory that the shell lists: the lowest that was free.
	if diff := cmp.Diff([]string{"3", "63"}, held); diff != "" {
		t.Errorf("descriptors of the bootstrap (-want +got):\n%s", diff)
	}
}
