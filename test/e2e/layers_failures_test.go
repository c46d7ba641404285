package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// backends are what the build of a source distribution does, in Python.
var backends = map[string]string{
	// A C extension that needs a library nobody installed.
	"atoll-e2e-header": `
    open("x.c", "w").write("#include <atollmissing/core.h>\nint x;\n")
    subprocess.check_call(["gcc", "-c", "x.c"])`,
	// One expression of a trillion terms.
	"atoll-e2e-memory": `
    lines = ["#define X0 a"] + [f"#define X{i} X{i-1} + X{i-1}" for i in range(1, 41)]
    open("x.c", "w").write("\n".join(lines) + "\nint f(int a) { return X40; }\n")
    subprocess.check_call(["gcc", "-c", "x.c"])`,
	"atoll-e2e-disk": `
    with open("x", "wb") as f:
        while True:
            f.write(b"x" * (1 << 20))`,
	// A compiler that crashes.
	"atoll-e2e-crash": `
    subprocess.check_call(["python3", "-c", "import os; os.kill(os.getpid(), 11)"])`,
	// A template without a compiler, as far as this build can see.
	"atoll-e2e-tools": `
    subprocess.check_call(["gcc", "-c", "x.c"], env={"PATH": "/nonexistent"})`,
	// What is neither TLS nor HTTP says no name.
	"atoll-e2e-git": `
    import socket
    socket.create_connection(("git.example.com", 9418), 10).recv(1)
    raise ConnectionError("git: connection reset")`,
	"atoll-e2e-sleep": `
    print("going to sleep", flush=True)
    time.sleep(3600)`,
	// Not a failure: a module with 32 MiB of data.
	"atoll-e2e-big": `
    import zipfile
    name = "atoll_e2e_big-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as z:
        z.writestr("atoll_e2e_big/__init__.py", "")
        z.writestr("atoll_e2e_big/data", bytes(range(256)) * (32 << 12))
        info = "atoll_e2e_big-1.0.dist-info/"
        z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: atoll-e2e-big\nVersion: 1.0\n")
        z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(info + "RECORD", "")
    return name`,
	"atoll-e2e-forks": `
    children = []
    while True:
        children.append(subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))`,
}

// addSources puts source distributions on the mirror's package index. Their
// build system is in them, so that no other package is needed.
func (m *mirror) addSources(t *testing.T) {
	t.Helper()
	for name, does := range backends {
		m.addSource(t, name, does)
	}
}

// addSource puts one source distribution on the package index; does is what
// its build does.
func (m *mirror) addSource(t *testing.T, name, does string) {
	t.Helper()
	root := strings.ReplaceAll(name, "-", "_") + "-1.0"
	metadata := fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: 1.0\n", name)
	packed := tarball(t,
		file{root + "/PKG-INFO", metadata},
		file{root + "/pyproject.toml", "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n"},
		file{root + "/backend.py", fmt.Sprintf(`import os, subprocess, time
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    os.mkdir(f"{directory}/%[1]s.dist-info")
    open(f"{directory}/%[1]s.dist-info/METADATA", "w").write(%[2]q)
    return "%[1]s.dist-info"
def build_wheel(directory, config_settings=None, metadata_directory=None):%[3]s
`, root, metadata, does)})
	archive := root + ".tar.gz"
	m.put("/files/"+archive, packed)
	m.put("/simple/"+name+"/", fmt.Appendf(nil, `<!DOCTYPE html><html><body><a href="/files/%s">%s</a></body></html>`, archive, archive))
}

// TestLayersFail makes builds fail in every way that a package or a registry
// can bring about, and holds what people are told against the words here.
func TestLayersFail(t *testing.T) {
	m := newMirror(t)
	m.addSources(t)
	m.put("/simple/atoll-e2e-redirect/", []byte(`<!DOCTYPE html><html><body><a href="/moved/atoll_e2e_redirect-1.0.tar.gz">atoll_e2e_redirect-1.0.tar.gz</a></body></html>`))
	m.put("/simple/atoll-e2e-moved/", []byte(`<!DOCTYPE html><html><body><a href="http://moved.example.com/atoll_e2e_moved-1.0.tar.gz">atoll_e2e_moved-1.0.tar.gz</a></body></html>`))
	const limits = `
packages:
  memory: 512MiB
  disk: 192MiB
  processes: 300
  max_parallel: 4
`
	patient, hurried := newServer(t, m.config(limits)), newServer(t, m.config(limits+"  manager_timeout: 25s\n"))
	tests := []struct {
		server   *server
		name     string
		packages object
		kind     string
		pkg      string
		message  []string // parts of the line that people see
		tail     string   // what the tool's own words must have
	}{
		{patient, "unknown", object{"npm": []string{"left-pad", "@atoll-run/no-such-package"}}, "package_not_found", "@atoll-run/no-such-package",
			[]string{`npm: no package "@atoll-run/no-such-package": npm`}, "404"},
		{patient, "version", object{"npm": []string{"left-pad", "semver@99.1"}}, "version_not_found", "semver@99.1",
			[]string{`npm: no version matches "semver@99.1": npm`}, "semver@99.1"},
		{patient, "conflict", object{"pip": []string{"six==1.16.0", "six==1.17.0"}}, "conflict", "",
			[]string{"pip: the requirements do not fit together: "}, "six"},
		{patient, "refused host", object{"pip": []string{"six", "atoll-e2e-moved"}}, "host_refused", "",
			[]string{"pip: the build was kept from moved.example.com: only the template's registries can be reached", `the configuration needs the line registries: {"*": {pip: ["+moved.example.com"]}}, and atoll reload`}, "moved.example.com"},
		{patient, "redirect to a refused host", object{"pip": []string{"atoll-e2e-redirect"}}, "host_refused", "atoll-e2e-redirect",
			[]string{"pip: the build was kept from moved.example.com: only the template's registries can be reached", `["+moved.example.com"]`}, "moved.example.com"},
		{patient, "refused port", object{"pip": []string{"atoll-e2e-git"}}, "host_refused", "atoll-e2e-git",
			[]string{"pip: the build was kept from git.example.com: only the template's registries can be reached", `["+git.example.com:9418"]`}, "reset"},
		{patient, "crash", object{"pip": []string{"atoll-e2e-crash"}}, "install_error", "atoll-e2e-crash",
			[]string{`pip: building "atoll-e2e-crash" failed: a program that it ran was ended by SIGSEGV: `}, "SIGSEGV"},
		{patient, "no compiler", object{"pip": []string{"atoll-e2e-tools"}}, "toolchain_missing", "atoll-e2e-tools",
			[]string{`pip: building "atoll-e2e-tools" failed: `, "No such file or directory: 'gcc' (a compiler or build tool that the template lacks; an apt package"}, "gcc"},
		{patient, "header", object{"pip": []string{"six", "atoll-e2e-header"}}, "install_error", "atoll-e2e-header",
			[]string{`pip: building "atoll-e2e-header" failed: `, "atollmissing/core.h: No such file or directory"}, "core.h"},
		{patient, "dead registry", object{"npm": []string{"@dead/x"}}, "registry_unreachable", "@dead/x",
			[]string{"npm: the registry cannot be reached: "}, ""},
		{hurried, "slow registry", object{"npm": []string{"@slow/x"}}, "timeout", "@slow/x",
			[]string{"npm: not done after 25s"}, ""},
		{patient, "full disk", object{"pip": []string{"atoll-e2e-disk"}}, "disk_full", "atoll-e2e-disk",
			[]string{"pip: the disk of the build is full"}, ""},
		{patient, "memory", object{"pip": []string{"atoll-e2e-memory"}}, "out_of_memory", "atoll-e2e-memory",
			[]string{"pip: the build is out of memory, at the limit of packages.memory"}, ""},
		{hurried, "time", object{"pip": []string{"atoll-e2e-sleep"}}, "timeout", "atoll-e2e-sleep",
			[]string{"pip: not done after 25s"}, ""},
		{patient, "processes", object{"pip": []string{"atoll-e2e-forks"}}, "too_many_processes", "atoll-e2e-forks",
			[]string{"pip: the build has too many processes, at the limit of packages.processes"}, ""},
	}
	agents := map[*server]string{patient: patient.agent(), hurried: hurried.agent()}
	for s, agent := range agents {
		s.must(s.session(agent, s.environment(mirrored(object{}))), "true") // the template is there now
	}
	var wg sync.WaitGroup
	for _, tt := range tests {
		wg.Go(func() {
			begin, s, agent := time.Now(), tt.server, agents[tt.server]
			env := s.environment(mirrored(tt.packages))
			id := s.session(agent, env)
			b := s.built(env)
			if b.Status != "failed" || b.Error == nil {
				t.Errorf("%s: %+v", tt.name, b)
				return
			}
			e := *b.Error
			t.Logf("%s: %v: %s", tt.name, time.Since(begin).Round(time.Second), e.Message)
			tail := fmt.Sprint(e.Tail)
			if e.Kind != tt.kind || e.Package != tt.pkg || e.ExitCode == 0 || !strings.Contains(tail, tt.tail) {
				t.Errorf("%s: kind %q, package %q, exit code %d, tail:\n%s", tt.name, e.Kind, e.Package, e.ExitCode, tail)
			}
			for _, part := range tt.message {
				if !strings.Contains(e.Message, part) {
					t.Errorf("%s: the message has no %q: %s\n%s", tt.name, part, e.Message, tail)
				}
			}
			s.checkTold(id, e.Message)
		})
	}
	right := map[*server][]string{} // the layers that are built in spite of all
	wg.Go(func() { patient.checkCancelled() })
	wg.Go(func() { right[patient] = patient.checkFlaky(m, agents[patient]) })
	wg.Wait()
	for s := range agents {
		if keys := committed(t, s); !slices.Equal(keys, right[s]) {
			t.Errorf("failed builds left layers: %v, want %v", keys, right[s])
		}
		waitFor(t, 30*time.Second, "the builders to be gone", func() bool { return len(builders(t, s)) == 0 })
		for _, rest := range []string{"layers/.scratch", "layers/.trash"} {
			if left, err := os.ReadDir(filepath.Join(s.Dir, rest)); err != nil || len(left) > 0 {
				t.Errorf("%s has %v %v", rest, left, err)
			}
		}
	}
	// The same server builds what is right.
	env := patient.environment(mirrored(object{"pip": []string{"six==1.17.0"}}))
	patient.must(patient.session(agents[patient], env), "python3 -c 'import six'")
}

// checkTold: a session that waited for a build that failed hears of it without
// asking, its commands answer the same, and both have the build's words.
func (s *server) checkTold(session, message string) {
	s.t.Helper()
	var told event
	waitFor(s.t, 2*time.Minute, "the session to be told", func() bool {
		log, _ := s.events(session)
		i := slices.IndexFunc(log, func(e event) bool { return e.Type == "session.error" })
		if i >= 0 {
			told = log[i]
		}
		return i >= 0
	})
	var answer struct{ Error struct{ Message string } }
	var raw string
	if code := s.try("POST", "/atoll/v1/sessions/"+session+"/exec?stream=false", object{"shell": "true"}, &raw); code != 409 {
		s.t.Errorf("exec answers %d %s", code, raw)
	}
	decode(s.t, raw, &answer)
	want := "The packages of the environment could not be installed. " + message
	if answer.Error.Message != want || told.Error.Message != want || told.Error.Type != "unknown_error" {
		s.t.Errorf("the build says %q,\nexec %q,\nthe event %+v", message, answer.Error.Message, told.Error)
	}
}

// checkCancelled: a build that nobody wants any more ends, and says so.
func (s *server) checkCancelled() {
	s.t.Helper()
	env := s.environment(mirrored(object{"npm": []string{"@slow/cancelled"}}))
	var b build
	waitFor(s.t, 5*time.Minute, "the install to run", func() bool {
		s.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &b)
		return len(b.Layers) == 1 && b.Layers[0].State == "building"
	})
	s.call("POST", "/v1/environments/"+env+"/archive", nil, nil)
	if b = s.built(env); b.Error == nil || b.Error.Kind != "cancelled" || b.Error.Message != "npm: the build was cancelled" {
		s.t.Errorf("the build of an archived environment: %+v %+v", b, b.Error)
	}
}

// checkFlaky: a registry that is broken for a while is asked again, and the log
// says so. It returns the layer that was built at last.
func (s *server) checkFlaky(m *mirror, agent string) []string {
	s.t.Helper()
	m.addNpm(s.t, "/flaky/", "@flaky/x", object{"main": "index.js"}, file{"package/index.js", "module.exports = 'at last'\n"})
	m.mu.Lock()
	m.broken = 6 // npm itself asks three times in each of two attempts
	m.mu.Unlock()
	env := s.environment(mirrored(object{"npm": []string{"@flaky/x"}}))
	id := s.session(agent, env)
	b := s.built(env)
	if b.Status != "ready" {
		s.t.Errorf("a registry that was broken twice: %+v %+v", b, b.Error)
		return nil
	}
	if got := s.must(id, "cd /tmp && node -p 'require(\"@flaky/x\")'"); got != "at last" {
		s.t.Errorf("the package says %q", got)
	}
	log := s.mustAtoll("build", "--log", env)
	for _, attempt := range []string{"npm: attempt 1: npm: the registry cannot be reached: ", "npm: attempt 2: npm: the registry cannot be reached: ", " s\n"} {
		if !strings.Contains(log, attempt) {
			s.t.Errorf("the log has no %q:\n%s", attempt, log)
		}
	}
	return []string{b.Layers[0].Key}
}

// builders lists what builder sandboxes a data directory has.
func builders(t *testing.T, s *server) (found []string) {
	t.Helper()
	for _, dir := range []string{"sandboxes", "networks"} {
		entries, err := os.ReadDir(filepath.Join(s.Dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), "build-") {
				found = append(found, dir+"/"+e.Name())
			}
		}
	}
	slices.Sort(found)
	return found
}
