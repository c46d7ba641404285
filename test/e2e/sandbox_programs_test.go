package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program is one row of the table in docs/sandbox.md: a program that people run
// in sandboxes, and what came of it.
type program struct {
	name, try string // the row's name; a script for a shell
	says      string // what the script's output contains
	outcome   string // for the row: "works", or what does not and the way round
}

// programsFrom are the packages that the programs come from.
var programsFrom = object{
	"type": "packages",
	"apt": []string{
		"bubblewrap", "chromium", "crun", "docker-cli", "docker.io", "firefox-esr", "gdb", "podman", "postgresql", "python3-pytest-xdist",
		"redis-server", "strace", "sudo",
	},
	"go":  []string{"github.com/go-delve/delve/cmd/dlv@latest"}, // Debian's is too old for the template's Go
	"npm": []string{"vite"},
	"pip": []string{"jupyterlab", "playwright"},
}

var programs = []program{
	{"Redis server", `redis-server --daemonize yes >/dev/null; for i in $(seq 50); do redis-cli ping 2>/dev/null && break; sleep 0.2; done; redis-cli shutdown nosave`, "PONG", "works"},
	{"PostgreSQL server", `su postgres -c 'd=$(ls -d /usr/lib/postgresql/*/bin); $d/initdb -D /tmp/pg >/dev/null && $d/pg_ctl -D /tmp/pg -w -o "-k /tmp" start >/dev/null && psql -h /tmp -Atc "select 6*7" && $d/pg_ctl -D /tmp/pg stop >/dev/null'`, "42",
		"works, as a user other than root (`su postgres`)"},
	{"Chromium", `chromium --headless --no-sandbox --disable-gpu --dump-dom 'data:text/html,<b id=x></b><script>x.textContent=6*7</script>' 2>/dev/null`, ">42<", "works, with `--no-sandbox`: the sandbox is around it"},
	{"Playwright", `cat > /tmp/pw.py <<'E'
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    b = p.chromium.launch(executable_path='/usr/bin/chromium', args=['--no-sandbox'])
    page = b.new_page()
    page.goto('data:text/html,<b id=x></b><script>x.textContent=6*7</script>')
    print('read', page.inner_text('#x'))
    b.close()
E
python3 /tmp/pw.py 2>&1`, "read 42", "works, with Debian's Chromium as `executable_path` and `--no-sandbox`"},
	{"Firefox", `timeout 60 firefox-esr --headless --screenshot /tmp/shot.png 'data:text/html,hello' >/tmp/firefox.log 2>&1; test -s /tmp/shot.png && echo shot || echo none`, "none", "does not: gVisor lacks a call that it needs. Use Chromium"},
	{"strace", `strace -f -e trace=openat true 2>&1 | grep -q openat && echo traced`, "traced", "works"},
	{"gdb", `printf 'int main(){int x=42;return x;}' > /tmp/g.c && gcc -g -o /tmp/g /tmp/g.c && gdb -batch -ex 'break main' -ex run /tmp/g 2>&1`, "Breakpoint 1, main ()", "works"},
	{"gdb, attaching", `sleep 100 & gdb -batch -p $! -ex 'info threads' 2>&1; kill $!`, "Using host libthread_db", "works, to processes of the same user"},
	{"Delve (dlv)", `mkdir -p /tmp/d && cd /tmp/d && printf 'module d\n' > go.mod && printf 'package main\n\nfunc main() {\n\tx := 42\n\tprintln(x)\n}\n' > main.go && printf 'break main.main\ncontinue\nnext\nnext\nprint x+1\nexit\n' > cmds && HOME=/root dlv debug --init cmds --allow-non-terminal-interactive </dev/null 2>&1`, "\n43\n", "works, from the module `github.com/go-delve/delve`: Debian's is too old for the template's Go"},
	{"tmux", `tmux -L t new -d -s s 'echo inside; sleep 5'; sleep 1; tmux -L t capture-pane -p -t s; tmux -L t kill-server`, "inside", "works"},
	{"sudo", `su nobody -s /bin/sh -c 'sudo -n id' 2>&1; echo 'nobody ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/nobody; su nobody -s /bin/sh -c 'sudo -n id -u'`, "\n0", "works"},
	{"pytest -n", `mkdir -p /tmp/p && cd /tmp/p && printf 'import pytest\n@pytest.mark.parametrize("i", range(20))\ndef test(i): pass\n' > test_a.py && python3 -m pytest -q -n 2 2>&1`, "20 passed", "works"},
	{"Vite", `mkdir -p /tmp/v && cd /tmp/v && echo '<h1>hello</h1>' > index.html; vite --port 5173 > vite.log 2>&1 & for i in $(seq 200); do curl -fs localhost:5173 | grep hello && break; sleep 0.2; done; kill $!; vite build 2>&1`, "built in", "works, server and build"},
	{"Jupyter", `mkdir -p /tmp/nb && cd /tmp/nb && printf '{"cells":[{"cell_type":"code","id":"a","metadata":{},"execution_count":null,"outputs":[],"source":"print(6*7)"}],"metadata":{"kernelspec":{"name":"python3","display_name":"p"}},"nbformat":4,"nbformat_minor":5}' > n.ipynb && jupyter nbconvert --execute --to notebook --stdout n.ipynb 2>/dev/null | grep -A1 '"text"' | tr -d ' \n'; jupyter lab --allow-root --no-browser --port 8899 --IdentityProvider.token=x > lab.log 2>&1 & for i in $(seq 300); do curl -fs 'localhost:8899/api/status?token=x' >/dev/null && echo served && break; sleep 0.2; done; kill $!`, `"text":["42\n"served`, "works, as root with `--allow-root`"},
	{"bubblewrap", `bwrap --ro-bind / / true; bwrap --unshare-user --ro-bind / / echo as root; su nobody -s /bin/sh -c 'bwrap --ro-bind / / echo as nobody'`, "as root\nas nobody\n", "works, as root with `--unshare-user`"},
	{"podman", `mkdir -p /tmp/r/bin && cp /bin/echo /tmp/r/bin && tar -C /tmp/r -c . | podman --storage-driver=vfs import - tiny >/dev/null 2>&1; podman --storage-driver=vfs images --noheading 2>&1; podman --storage-driver=vfs --runtime=crun run --rm --network=host --cgroups=disabled tiny /bin/echo hi 2>&1`, "Operation not permitted: OCI permission denied",
		"imports and exports images with `--storage-driver=vfs`; as plain root no container starts. Make a template of the image"},
	{"dockerd", `dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs > /tmp/dockerd.log 2>&1 & for i in $(seq 200); do docker info >/dev/null 2>&1 && echo up && break; sleep 0.2; done; mkdir -p /tmp/e && tar -C /tmp/e -c . | docker import - tiny 2>&1; kill $!`, "up\nError response from daemon: unshare: operation not permitted",
		"starts with `--iptables=false --ip6tables=false --bridge=none --storage-driver=vfs`, and cannot unpack an image. Make a template of the image"},
	{"JVM", `mkdir -p /tmp/j && cd /tmp/j && printf 'public class A { public static void main(String[] a) { System.out.println(6*7 + " " + Runtime.getRuntime().availableProcessors()); } }' > A.java && java A.java`, "42 ", "works"},
}

// TestSandboxPrograms tries each program of docs/sandbox.md, and compares the
// page's table with what is tried here.
func TestSandboxPrograms(t *testing.T) {
	s := newServer(t, "")
	session := s.session(s.agent(), s.environment(object{"packages": programsFrom, "networking": object{"type": "unrestricted"}}))
	for _, p := range programs {
		r := s.exec(session, p.try)
		if out := r.Stdout + r.Stderr; !strings.Contains(out, p.says) {
			t.Errorf("%s: want %q (%s), got code %d %.600q", p.name, p.says, p.outcome, r.Code, out)
		} else {
			t.Logf("%s: %.100q", p.name, out)
		}
	}
}

// TestSandboxProgramsTable holds the table of docs/sandbox.md to what
// TestSandboxPrograms tries.
func TestSandboxProgramsTable(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "sandbox.md"))
	if err != nil {
		t.Fatal(err)
	}
	table := "| program | in a sandbox of `base` |\n|---|---|\n"
	for _, p := range programs {
		table += "| " + p.name + " | " + p.outcome + " |\n"
	}
	if !strings.Contains(string(page), "\n\n"+table+"\n") {
		t.Errorf("docs/sandbox.md does not have this table:\n%s", table)
	}
}
