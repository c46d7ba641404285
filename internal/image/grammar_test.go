package image

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// accepted and refused seed the fuzz targets too.
var accepted = map[string][]string{
	"apt": {"string", "ffmpeg", "g++", "libstdc++6", "libc6:i386", "ffmpeg=7:5.1.6-0+deb12u1", "curl/bookworm-backports",
		"python3.11", "  jq  ", "libfoo:amd64=1.0~rc1-2"},
	"cargo": {"string", "ripgrep", "ripgrep@14.1.0", "cargo_x@^1", "a@>=1.2, <2", "b@~1.2", "c@=1.2.3-rc.1+b", "d@*", "e@1.*"},
	"gem":   {"string", "rails:7.1.0", "rake:~> 13.0", "rake:>= 12", "net-http", "nokogiri:1.16.0-x86", "_x"},
	"go": {"string", "golang.org/x/tools/cmd/goimports@latest", "example.com/x", "example.com/x/...@v1.2.3", "example.com/x@v0.0.0-20240101000000-abcdefabcdef",
		"example.com/x@feature/one", "example.com/x@v2.0.0+incompatible", "example.com/x@patch"},
	"npm": {"string", "express", "express@4.18.0", "@types/node", "@types/node@^20", "a@>=1 <2 || 3.x", "b@next", "c@*", "d@1.2.3 - 2.3.4", "JSONStream"},
	"pip": {"string", "pandas", "numpy", "pandas==2.2.0", "requests[socks,security]>=2,<3", "a~=1.0", "b===weird", "c (>=1,<2)", "d == 1.*",
		`e>=1 ; python_version < "3.9" and (sys_platform == 'linux' or extra == "x/y")`, `f;'linux' in sys_platform`, `g; os_name not in "nt,java"`, "h[]"},
}

var refused = map[string][]string{
	"": {"", "   ", "-", "-x", "--index-url=http://example.com", " -r x", "--", "a\nb", "a\x00", "a\tb", "a\u00a0b", "p\u0430ndas", "ex\u200bpress",
		"http://user:secret@example.com/x", "git+https://user:secret@example.com/x", "user:secret@example.com", "a;b", "a|b", "a&&b", "$(x)", "`x`", "a>b c",
		"'a'", "\"a\"", "a b", "../x", "./x", "/x", "~/x", "a\\b", "a=", "a@", "a:", "a,b", "\xff", strings.Repeat("a", 600)},
	"apt":   {"vim-", "vim-=1", "vim=1-", "vim/sid-", "./x.deb", "x/y/z", "vim*", "vim?", "task^", "~nvim", "?installed", "Vim", "a", "vim=1/sid", "a[b]", "vim:amd64-", "vim=*"},
	"cargo": {"1a", "a@latest", "a/b", "a@1@2", "a@1.2.3 --git x", strings.Repeat("a", 65), "a@=", "a@1,"},
	"gem":   {"x.gem", "a:latest", "a:>= 1, < 2", "a -- --with-x", "a:1 2"},
	"go": {"fmt", "net/http", "cmd/go@latest", "all", "std", "example/x", "./cmd", "../x", ".", "...", "example.com/.../x", "example.com/x@none",
		"example.com/x@<v1", "example.com/x@a..b", "example.com/x y", "example.com:8080/x"},
	"npm": {"user/repo", "@scope", "@scope/a/b", "a@npm:b", "a@file:b", "a@../b", "a@b/c", "a@./b", "a@~/b", "x.tgz", "a@x.tgz", "x.TAR.GZ", ".a", "git+ssh:x",
		"@a/b.tgz@http:x", "a@ 1"},
	"pip": {"a @ http:x", "a@b", "a.whl", "a.zip", "a.tar.gz", "a==1.zip", "a; python_version", "a; x == 'y'", "a;", "a; os_name == 'x", "a[b", "a[b;c]", "a==1 --hash=sha256:0",
		"a=1", "a>=1,", "a; (os_name == 'a'", "a;" + strings.Repeat("(", 100), "e.", "a #egg=x"},
}

func TestGrammar(t *testing.T) {
	for _, m := range managerOrder {
		for _, e := range accepted[m] {
			if _, err := parseSpec(m, e); err != nil {
				t.Errorf("%s: %q refused: %v", m, e, err)
			}
		}
		for _, e := range append(refused[""], refused[m]...) {
			if m == "pip" && (e == "a:" || e == "a>b c") {
				continue
			}
			_, err := parseSpec(m, e)
			var se *SpecError
			if !errors.As(err, &se) {
				t.Errorf("%s: %q accepted", m, e)
				continue
			}
			if strings.Contains(err.Error(), "secret") || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%s: %q leaks into %q", m, e, err)
			}
		}
	}
	if _, err := parseSpec("brew", "x"); err == nil {
		t.Error("an unknown manager was accepted")
	}
}

func TestCheckPackages(t *testing.T) {
	tests := []struct {
		in   Packages
		want string
	}{
		{Packages{}, ""},
		{Packages{Pip: []string{"pandas", "--index-url=x"}}, "packages.pip[1]: options are not package specs"},
		{Packages{Npm: []string{"user/repo"}}, `packages.npm[0]: "user/repo": paths and repositories are not package specs`},
		{Packages{Gem: []string{" "}}, "packages.gem[0]: must not be blank"},
		{Packages{Apt: make([]string, 10_000)}, "packages.apt[256]: at most 256 entries are allowed"},
		{Packages{Pip: []string{"x @ user:pw@example.com"}}, "packages.pip[0]: direct references are not package specs"},
	}
	for _, tt := range tests {
		got := ""
		if err := CheckPackages(tt.in); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("CheckPackages(%.60v) = %q, want %q", fmt.Sprint(tt.in), got, tt.want)
		}
	}
}

func TestPinned(t *testing.T) {
	tests := map[string]map[string]bool{
		"apt":   {"a2": false, "a2=1": true, "a2/sid": false},
		"cargo": {"a": false, "a@1.2.3": true, "a@^1.2.3": false, "a@=1.2.3": true, "a@1.2": false},
		"gem":   {"a": false, "a:1.2": true, "a:~> 1.2": false},
		"go":    {"a.b/c": false, "a.b/c@v1.2.3": true, "a.b/c@v1": false, "a.b/c@latest": false, "a.b/c@v2.0.0+incompatible": true},
		"npm":   {"a": false, "@a/b@1.2.3": true, "a@^1.2.3": false, "a@next": false},
		"pip":   {"a": false, "a==1.2": true, "a==1.*": false, "a==1,!=2": false, "a>=1": false, "a===1; os_name=='x'": true},
	}
	for m, entries := range tests {
		for e, want := range entries {
			if s, err := parseSpec(m, e); err != nil || s.pinned != want {
				t.Errorf("%s: %q: pinned %v (%v), want %v", m, e, s.pinned, err, want)
			}
		}
	}
}

func FuzzAptSpec(f *testing.F)   { fuzzSpec(f, "apt") }
func FuzzCargoSpec(f *testing.F) { fuzzSpec(f, "cargo") }
func FuzzGemSpec(f *testing.F)   { fuzzSpec(f, "gem") }
func FuzzGoSpec(f *testing.F)    { fuzzSpec(f, "go") }
func FuzzNpmSpec(f *testing.F)   { fuzzSpec(f, "npm") }
func FuzzPipSpec(f *testing.F)   { fuzzSpec(f, "pip") }

// fuzzSpec holds every grammar to what the builder relies on: one argument,
// not an option, not a path or URL, printable, and stable under trimming.
func fuzzSpec(f *testing.F, manager string) {
	for _, m := range managerOrder {
		for _, e := range accepted[m] {
			f.Add(e)
		}
		for _, e := range refused[m] {
			f.Add(e)
		}
	}
	for _, e := range refused[""] {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, entry string) {
		s, err := parseSpec(manager, entry)
		if err != nil {
			if msg := err.Error(); !printable(msg) || strings.Contains(msg, "://") {
				t.Fatalf("%q: the refusal repeats what it must not: %q", entry, msg)
			}
			return
		}
		switch {
		case s.text != strings.Trim(entry, " ") || s.text == "" || s.text[0] == '-' || !printable(s.text):
			t.Fatalf("%q: accepted as %q", entry, s.text)
		case s.name == "" || !strings.HasPrefix(s.text, s.name):
			t.Fatalf("%q: name %q", entry, s.name)
		case strings.HasPrefix(s.text, ".") || strings.HasPrefix(s.text, "/") || strings.HasPrefix(s.text, "~"):
			t.Fatalf("%q: a path was accepted", entry)
		case manager == "apt" && strings.ContainsAny(s.text, " ;*?[]^()|&$`'\"\\<>!,@"):
			t.Fatalf("%q: apt would see more than a name", entry)
		case manager != "pip" && strings.ContainsAny(s.text, ";&$`'\"\\()!#{}") && manager != "gem":
			t.Fatalf("%q: separators outside the grammar", entry)
		case manager == "npm" && strings.Contains(s.text, "/") && !strings.HasPrefix(s.text, "@"):
			t.Fatalf("%q: npm would take a directory or a repository", entry)
		}
		if again, err := parseSpec(manager, s.text); err != nil || again != s {
			t.Fatalf("%q: not stable: %+v, then %+v (%v)", entry, s, again, err)
		}
	})
}
