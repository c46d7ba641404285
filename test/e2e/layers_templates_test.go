package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// pythonSays prints, for each name, the version that the module says, the one of its metadata and the one that pip lists,
// and whether the module is the distribution's.
const pythonSays = `
import importlib, importlib.metadata, json, subprocess, sys
listed = {p["name"].lower(): p["version"] for p in json.loads(subprocess.run([sys.executable, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout)}
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    print(name, module.__version__, importlib.metadata.version(name), listed[name], "/dist-packages/" in module.__file__ and "/usr/lib/" in module.__file__)
`

// pythonVersion holds the versions of a package in a session against each other and
// returns the one they agree on, and whether the module is the distribution's.
func (s *server) pythonVersion(session, name string) (version, distribution string) {
	s.t.Helper()
	said := s.must(session, "python3 -c '"+pythonSays+"' "+name)
	f := strings.Fields(said)
	for i := range f {
		f[i], _, _ = strings.Cut(f[i], "+") // Debian's metadata has its own mark: 2.2.3+dfsg
	}
	if len(f) != 5 || f[1] != f[2] || f[1] != f[3] {
		s.t.Errorf("%s: the module, its metadata and pip do not agree: %q", name, said)
		return "", ""
	}
	return f[1], f[4]
}

// TestLayersOnCodeInterpreter lists what the template has already, what it has in another release, and what needs newer
// releases of what it has: all of it is a good outcome, and everything agrees about the versions.
func TestLayersOnCodeInterpreter(t *testing.T) {
	s := newServer(t, "")
	agent := s.agent()
	on := func(packages object) (string, build) {
		t.Helper()
		env := s.environment(object{"base_template": "code_interpreter", "packages": packages})
		b := s.builtAtLast(agent, env)
		for _, l := range b.Layers {
			for _, p := range l.Packages {
				if p.Requested && p.Version == "" {
					t.Errorf("%s %s has no version", l.Manager, p.Name)
				}
			}
		}
		return s.session(agent, env), b
	}
	plain, _ := on(object{})
	was, _ := s.pythonVersion(plain, "requests")

	t.Run("there already", func(t *testing.T) {
		id, b := on(object{"apt": []string{"git", "curl"}, "pip": []string{"pandas", "numpy"}})
		if len(b.Layers) != 2 || len(b.Layers[0].Packages) != 2 || len(b.Layers[1].Packages) < 2 {
			t.Fatalf("layers: %+v", b.Layers)
		}
		for _, name := range []string{"pandas", "numpy"} {
			if _, distribution := s.pythonVersion(id, name); distribution != "True" {
				t.Errorf("%s: it is not the template's", name)
			}
		}
		if got := s.must(id, "python3 -c 'import pandas; print(pandas.DataFrame({1: [2, 3]})[1].sum())'"); got != "5" {
			t.Errorf("pandas says %q", got)
		}
	})
	t.Run("wheel", func(t *testing.T) {
		id, _ := on(object{"pip": []string{"wheel"}})
		s.pythonVersion(id, "wheel")
	})
	t.Run("older", func(t *testing.T) {
		id, _ := on(object{"pip": []string{"requests==2.31.0"}})
		if got, _ := s.pythonVersion(id, "requests"); got != "2.31.0" {
			t.Errorf("requests %s", got)
		}
	})
	t.Run("newer", func(t *testing.T) {
		id, _ := on(object{"pip": []string{"requests>" + was}})
		if got, distribution := s.pythonVersion(id, "requests"); got == was || distribution == "True" {
			t.Errorf("requests %s, was %s", got, was)
		}
	})
	t.Run("newer than the template's modules", func(t *testing.T) {
		id, _ := on(object{"pip": []string{"poetry"}})
		if got := s.must(id, "poetry --version && mkdir p && cd p && poetry init -n --name p && poetry check"); !strings.Contains(got, "Poetry (version ") || !strings.Contains(got, "All set!") {
			t.Errorf("poetry says %q", got)
		}
	})
	t.Run("in a session", func(t *testing.T) {
		for _, version := range []string{"2.31.0", "2.32.5", "2.28.2"} {
			s.must(plain, "pip install -q requests=="+version)
			if got, _ := s.pythonVersion(plain, "requests"); got != version {
				t.Errorf("requests %s, want %s", got, version)
			}
		}
	})
}

// TestHermes runs what agent runtimes do first on the template for them.
func TestHermes(t *testing.T) {
	s := newServer(t, "")
	agent := s.agent()
	env := s.environment(object{"base_template": "hermes"})
	b := s.builtAtLast(agent, env)
	if len(b.Layers) != 2 || b.Layers[0].Manager != "apt" || b.Layers[1].Manager != "pip" {
		t.Fatalf("layers: %+v", b.Layers)
	}
	id := s.session(agent, env)
	for _, tt := range []struct{ shell, says string }{
		{"uv --version", "uv "},
		{"uv venv -q runtime && uv pip install -q --python runtime/bin/python six && runtime/bin/python -c 'import six; print(six.moves.range(3))'", "range(0, 3)"},
		{"uv init -q --bare --name project && uv add -q idna && uv run python -c 'import idna; print(idna.encode(\"a\"))'", "b'a'"},
		{"uvx --quiet cowsay -t moo", "moo"},
		{"node -p '1 + 1'; npm --version; rg --version; git --version; ffmpeg -version", "ffmpeg version"},
		{"xvfb-run -a sh -c 'echo display $DISPLAY'", "display :"},
		{"fc-list | grep -c -e Liberation -e Emoji", ""},
	} {
		if got := s.must(id, tt.shell); !strings.Contains(got, tt.says) {
			t.Errorf("%s: %q, want %q in it", tt.shell, got, tt.says)
		}
	}
	// What Playwright looks for before it starts a browser.
	for _, library := range []string{"libnss3.so", "libgbm.so.1", "libasound.so.2", "libatk-bridge-2.0.so.0", "libcups.so.2", "libxkbcommon.so.0", "libgtk-3.so.0", "libdbus-glib-1.so.2"} {
		if r := s.exec(id, "python3 -c 'import ctypes; ctypes.CDLL(\""+library+"\")'"); r.Code != 0 {
			t.Errorf("%s: %s", library, r.Stderr)
		}
	}
	// An environment's own packages lie above the template's.
	more := s.environment(object{"base_template": "hermes", "packages": object{"pip": []string{"six==1.17.0"}}})
	if b := s.builtAtLast(agent, more); len(b.Layers) != 3 || b.CacheHits != 2 {
		t.Errorf("with a list: %+v", b)
	}
	if got := s.must(s.session(agent, more), "uv --version && python3 -c 'import six; print(six.__version__)'"); !strings.HasSuffix(got, "1.17.0") {
		t.Errorf("with a list: %q", got)
	}
}

// TestAptRecommends: whether recommended packages are installed is the environment's choice, which is kept, shown and
// changed as any other.
func TestAptRecommends(t *testing.T) {
	s := newServer(t, "")
	agent := s.agent()
	config := object{"base_template": "slim", "packages": object{"apt": []string{"fortune-mod"}}}
	env := s.environment(config)
	without := s.builtAtLast(agent, env)
	const there = "dpkg-query -W -f '${db:Status-Status}' fortunes-min"
	if r := s.exec(s.session(agent, env), there); r.Code == 0 && r.Stdout == "installed" {
		t.Error("a recommended package is there though nobody asked for it")
	}
	var shown struct {
		Config struct {
			AptRecommends *bool `json:"apt_recommends"`
		}
	}
	s.call("GET", "/v1/environments/"+env, nil, &shown)
	if shown.Config.AptRecommends != nil {
		t.Error("the field is shown though it was not set")
	}
	for value, says := range map[any]string{"yes": "boolean", 1: "boolean"} {
		var raw string
		if code := s.try("POST", "/v1/environments/"+env, object{"config": object{"type": "cloud", "apt_recommends": value}}, &raw); code != 400 ||
			!strings.Contains(raw, "config.apt_recommends") && !strings.Contains(raw, "config.cloud.apt_recommends") || !strings.Contains(raw, says) {
			t.Errorf("%v: %d %s", value, code, raw)
		}
	}
	s.call("POST", "/v1/environments/"+env, object{"config": object{"type": "cloud", "apt_recommends": true}}, &shown)
	if shown.Config.AptRecommends == nil || !*shown.Config.AptRecommends {
		t.Error("the field is not shown")
	}
	with := s.builtAtLast(agent, env)
	if with.Layers[0].Key == without.Layers[0].Key {
		t.Error("one layer for both")
	}
	id := s.session(agent, env)
	if got := s.must(id, there); got != "installed" {
		t.Errorf("a recommended package: %q", got)
	}
	if got := s.must(id, "/usr/games/fortune"); got == "" {
		t.Error("no fortune")
	}
	// A list that apt has no part in is the same layer with and without.
	var keys []string
	for _, on := range []bool{false, true} {
		b := s.builtAtLast(agent, s.environment(object{"base_template": "base", "apt_recommends": on, "packages": object{"pip": []string{"six"}}}))
		keys = append(keys, b.Layers[0].Key)
	}
	if keys[0] != keys[1] {
		t.Errorf("pip's layers: %v", keys)
	}
}

// TestGoStandardLibrary: the first program of a user, root or not, and its first test compile nothing but themselves.
func TestGoStandardLibrary(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{}))
	s.must(id, `mkdir -m 777 /srv/hello && cd /srv/hello && printf 'module hello\n\ngo 1.21\n' > go.mod &&
printf 'package main\n\nimport (\n\t"fmt"\n\t"net/http"\n)\n\nfunc main() { fmt.Println("hello", http.StatusOK) }\n' > main.go &&
printf 'package main\n\nimport (\n\t"net/http/httptest"\n\t"testing"\n)\n\nfunc TestMain1(t *testing.T) { _ = httptest.NewRecorder() }\n' > main_test.go &&
useradd --create-home gopher`)
	for user, as := range map[string]string{"root": "bash -c", "gopher": "su gopher -c"} {
		for command, steps := range map[string]int{ // of the compiler and of vet, which go -x shows; an earlier command may have taken one
			"go run -x .":               1,
			"CGO_ENABLED=0 go run -x .": 1,
			// The package with its test, the test's main, and vet.
			"go test -x .": 3,
		} {
			out := "/tmp/out." + user
			got := s.must(id, fmt.Sprintf(`cd /srv/hello && %s '%s > %s 2>&1; tail -1 %[3]s; grep -c -E "/(compile|vet) .*(-p [a-z]|vet.cfg)" %[3]s || true'`, as, command, out))
			last, counted, _ := strings.Cut(got, "\n")
			if n, err := strconv.Atoi(counted); err != nil || n > steps || last != "hello 200" && !strings.HasPrefix(last, "ok") {
				t.Errorf("%s, %s: %q, want at most %d steps\n%s", user, command, got, steps, tail([]byte(s.must(id, "cat "+out)), 3000))
			}
		}
	}
	// What root compiles from now on lies beside it, and what the user compiles in the user's own cache.
	if got := s.must(id, "su gopher -c 'readlink /root/.cache/go-build; ls -d ~/.cache/go-build && find ~/.cache/go-build -type l | head -1 | xargs readlink'"); !strings.Contains(got, "/home/gopher/.cache/go-build\n/usr/local/lib/atoll/go-build/") {
		t.Errorf("the user's cache: %q", got)
	}
}

// TestBackports: of further suites a template has what its declaration names and nothing else, and an environment's list
// follows the same rule.
func TestBackports(t *testing.T) {
	s := newServer(t, "")
	agent := s.agent()
	env := s.environment(object{"packages": object{"apt": []string{"rust-src", "figlet"}}})
	if b := s.builtAtLast(agent, env); b.Status != "ready" {
		t.Fatalf("build: %+v", b)
	}
	id := s.session(agent, env)
	if got := s.must(id, `dpkg-query -W -f '${source:Package} ${Version}\n' | sed -n 's/ .*~bpo.*//p' | sed 's/golang-1.*/golang/' | sort -u | xargs`); got != "golang golang-defaults rustc" {
		t.Errorf("sources of packages from backports: %s", got)
	}
}
