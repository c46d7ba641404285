package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/atolltest"
	"github.com/klauspost/compress/zstd"
)

// TestSessionsShareNothing proves that two sessions of one environment have
// their own files and their own processes.
func TestSessionsShareNothing(t *testing.T) {
	s := newServer(t, "")
	env := s.environment(object{"base_template": "slim"})
	agent := s.agent()
	one, two := s.session(agent, env), s.session(agent, env)

	s.must(one, "echo secret > /workspace/mine && echo x > /usr/bin/mine && rm /etc/debian_version && (sleep 1000 & )")
	if got := s.exec(two, "cat /workspace/mine /usr/bin/mine"); got.Code == 0 {
		t.Errorf("the second session reads the first one's file: %q", got.Stdout)
	}
	s.must(two, "test -f /etc/debian_version")
	if out := s.must(one, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); !strings.Contains(out, "sleep 1000") {
		t.Errorf("the first session does not see its own process: %q", out)
	}
	if out := s.must(two, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(out, "sleep 1000") {
		t.Errorf("the second session sees the first one's process: %q", out)
	}
	three := s.session(agent, env)
	s.must(three, "test -f /etc/debian_version && test ! -e /usr/bin/mine")
}

// TestInside checks what a command finds: working directory, host name, user,
// directories, environment.
func TestInside(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	for _, tt := range []struct{ shell, want string }{
		{"pwd", "/workspace"},
		{"id -u", "0"},
		{"hostname", "atoll"},
		{"ls -d /mnt/session/uploads /mnt/session/outputs", "/mnt/session/outputs\n/mnt/session/uploads"},
		{"env -i /bin/bash -c 'command -v python3'", "/usr/bin/python3"},
		{"awk '{print $6, $1}' /proc/net/if_inet6", "lo 00000000000000000000000000000001"},
		{`python3 -c 'import socket as s; l = s.create_server(("::1", 0), family=s.AF_INET6); s.create_connection(l.getsockname()[:2], 5); print("bound")'`, "bound"},
		{"dmesg | head -1 | grep -o gVisor", "gVisor"},
	} {
		if got := s.must(id, tt.shell); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.shell, got, tt.want)
		}
	}
	if out := s.must(id, "cat /proc/self/mountinfo /proc/1/environ /proc/self/environ | tr '\\0' '\\n'"); strings.Contains(out, atolltest.Key) || strings.Contains(out, s.Dir) {
		t.Errorf("the server's key or a path of the host is visible inside: %s", out)
	}
	t.Run("E223", func(t *testing.T) { s.checkNothingOfTheServer(t, id) })
}

// insideScript looks for the server from inside: its files by name and by what
// they hold, sockets of any kind, and its API on every address of the host.
const insideScript = `import glob, os, socket, sys
port, addresses = int(sys.argv[1]), sys.argv[2].split()
for top, names, files in os.walk("/"):
    names[:] = [n for n in names if os.path.join(top, n) not in ("/proc", "/sys", "/usr", "/dev/fd")]
    for n in files:
        if n in ("network.json", "default.key") or n.endswith((".sock", ".db", ".db-wal")):
            print("file", os.path.join(top, n))
if os.path.exists("/proc/net/unix"):
    for line in open("/proc/net/unix").read().splitlines()[1:]:
        if "/" in line or "@" in line: print("socket", line)
for address in addresses + ["127.0.0.1", "0.0.0.0", "169.254.100.1", "::1"]:
    try:
        c = socket.create_connection((address, port), 5)
        c.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = c.recv(1000)
        if said: print("answer", address, said)
    except OSError: pass
print("done")
`

// checkNothingOfTheServer: no policy, no control socket and no API is inside.
func (s *server) checkNothingOfTheServer(t *testing.T, session string) {
	t.Helper()
	s.put(session, "/workspace/look.py", []byte(insideScript))
	var hosts []string
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		hosts = append(hosts, a.(*net.IPNet).IP.String())
	}
	port := s.URL[strings.LastIndex(s.URL, ":")+1:]
	if got := s.must(session, "python3 look.py "+port+" '"+strings.Join(hosts, " ")+"'"); got != "done" {
		t.Errorf("of the server there is inside:\n%s", got)
	}
}

// TestFiles moves files through the API.
func TestFiles(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	send := func(method, path, contentType string, body io.Reader) (int, []byte) {
		t.Helper()
		req, err := http.NewRequest(method, s.URL+"/atoll/v1/sessions/"+id+"/files?path="+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("authorization", "Bearer "+atolltest.Key)
		req.Header.Set("content-type", contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, b
	}
	const octets = "application/octet-stream"
	data := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	if code, b := send("PUT", "/workspace/a/b/data.bin", octets, bytes.NewReader(data)); code != 200 {
		t.Fatalf("PUT: %d %s", code, b)
	}
	if got := s.must(id, "stat -c %s a/b/data.bin"); got != "1600000" {
		t.Errorf("inside the file has %s bytes, want 1600000", got)
	}
	if code, b := send("GET", "a/b/data.bin", octets, nil); code != 200 || !bytes.Equal(b, data) {
		t.Errorf("GET: %d, %d bytes", code, len(b))
	}
	s.must(id, "echo hello > a/hello; ln -s /etc/passwd a/link")
	code, b := send("GET", "/workspace/a", octets, nil)
	if code != 200 {
		t.Fatalf("GET of a directory: %d %s", code, b)
	}
	names := map[string]byte{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[strings.TrimPrefix(strings.TrimSuffix(h.Name, "/"), "./")] = h.Typeflag
	}
	if names["hello"] != tar.TypeReg || names["link"] != tar.TypeSymlink || names["b/data.bin"] != tar.TypeReg {
		t.Errorf("tar of the directory has %v", names)
	}
	var zipped, squeezed bytes.Buffer
	squeeze, err := zstd.NewWriter(&squeezed)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gzip.NewWriter(&zipped), squeeze} {
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// What was read is put back as it was, links that lead out included.
	for kind, body := range map[string]*bytes.Buffer{"application/gzip": &zipped, "application/zstd": &squeezed} {
		into := "/workspace/" + strings.ReplaceAll(kind, "/", "-")
		if code, b := send("PUT", into, kind, body); code != 200 {
			t.Fatalf("PUT of %s: %d %s", kind, code, b)
		}
		if got := s.must(id, "cd "+into+" && cat hello && readlink link && stat -c %s b/data.bin"); got != "hello\n/etc/passwd\n1600000" {
			t.Errorf("%s put back: %q", kind, got)
		}
	}
	for path, want := range map[string]string{"/proc/version": "Linux version ", "/proc/cpuinfo": "processor\t: 0\n", "/proc/self/status": "Name:\t"} {
		if code, b := send("GET", path, octets, nil); code != 200 || !strings.Contains(string(b), want) {
			t.Errorf("GET %s: %d %.100q", path, code, b)
		}
	}
	if code, b := send("DELETE", "/workspace/a", octets, nil); code != 200 && code != 204 {
		t.Errorf("DELETE: %d %s", code, b)
	}
	if code, _ := send("GET", "/workspace/a", octets, nil); code != 404 {
		t.Errorf("GET after DELETE: %d, want 404", code)
	}
	if code, b := send("GET", "/proc/kmsg%00", octets, nil); code != 400 && code != 404 {
		t.Errorf("NUL in a path: %d %s", code, b)
	}
}

// TestExecEnds covers time-outs, background children and signals.
func TestExecEnds(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	run := func(body object) result {
		t.Helper()
		var out result
		s.call("POST", "/atoll/v1/sessions/"+id+"/exec?stream=false", body, &out)
		return out
	}
	got := run(object{"shell": "echo started; sleep 4321 & sleep 4322", "timeout_ms": 1000})
	if !got.TimedOut || !strings.Contains(got.Stdout, "started") {
		t.Errorf("time-out: got %+v", got)
	}
	waitFor(t, 10*time.Second, "the whole process group to be gone", func() bool {
		return !strings.Contains(s.exec(id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").Stdout, "sleep 432")
	})
	if got := run(object{"command": []string{"/bin/sh", "-c", "cat; exit 3"}, "stdin": "piped"}); got.Stdout != "piped" || got.Code != 3 {
		t.Errorf("stdin and exit code: got %+v", got)
	}
	if got := run(object{"shell": "kill -TERM $$"}); got.Signal != "SIGTERM" {
		t.Errorf("signal: got %+v", got)
	}
	if got := run(object{"shell": "echo $A$PWD", "env": object{"A": "b"}, "cwd": "/tmp"}); got.Stdout != "b/tmp\n" {
		t.Errorf("env and cwd: got %+v", got)
	}
	var raw string
	if code := s.try("POST", "/atoll/v1/sessions/"+id+"/exec", object{"command": []string{"/no/such"}}, &raw); code != 400 {
		t.Errorf("a program that is not there: %d %s", code, raw)
	}
	if code := s.try("POST", "/atoll/v1/sessions/"+id+"/exec", object{"shell": "printf 'a\\377'; echo e >&2; exit 7"}, &raw); code != 200 ||
		!strings.Contains(raw, `"base64"`) || !strings.Contains(raw, `"stderr"`) || !strings.Contains(raw, `"code":7`) {
		t.Errorf("stream: %d %s", code, raw)
	}
}

// TestLimits runs what exceeds each limit, next to a session that must not notice.
func TestLimits(t *testing.T) {
	s := newServer(t, "limits:\n  memory: 256MiB\n  disk: 64MiB\n  processes: 64\n  cpus: 1\n")
	env := s.environment(object{"base_template": "slim"})
	agent := s.agent()
	bad, good := s.session(agent, env), s.session(agent, env)
	s.must(good, "true")

	got := s.exec(bad, "dd if=/dev/zero of=/workspace/fill bs=1M count=200")
	if got.Code == 0 || !strings.Contains(got.Stderr, "No space left on device") {
		t.Errorf("disk: got %+v", got)
	}
	s.must(bad, "rm /workspace/fill && echo again > /workspace/x")

	got = s.exec(bad, "for i in $(seq 200); do sleep 30 & done; wait")
	if !strings.Contains(got.Stderr, "fork") && !strings.Contains(got.Stderr, "Resource temporarily unavailable") {
		t.Errorf("processes: got %+v", got)
	}
	var raw string
	code := s.try("POST", "/atoll/v1/sessions/"+bad+"/exec?stream=false", object{"command": []string{"python3", "-c", "x = bytearray(600 << 20); print(len(x))"}}, &raw)
	// Either the one process is ended, or the whole sandbox, and then the
	// caller is told.
	killed := code == 200 && !strings.Contains(raw, `"code":0`)
	told := code == 409 && strings.Contains(raw, "out of memory")
	if !killed && !told {
		t.Errorf("600 MiB in a sandbox of 256 MiB: %d %s", code, raw)
	}
	s.must(bad, "echo fresh")
	s.must(good, "echo unharmed")
}

// TestRestart kills the server with SIGKILL: what was acknowledged is there, the
// sandbox runs on with its files, processes and network.
func TestRestart(t *testing.T) {
	s := newServer(t, "")
	env := s.environment(object{"base_template": "slim", "networking": object{"type": "limited", "allowed_hosts": []string{"allowed.example.com"}}})
	agent := s.agent()
	id := s.session(agent, env)
	s.must(id, "echo kept > /workspace/f; (setsid sleep 5555 >/dev/null 2>&1 &)")
	var gone struct{ ID string }
	s.call("POST", "/v1/sessions", object{"agent": agent, "environment_id": env}, &gone)
	s.kill9()
	if got := s.must(id, "cat /workspace/f"); got != "kept" {
		t.Errorf("file after restart: %q", got)
	}
	if out := s.must(id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); !strings.Contains(out, "sleep 5555") {
		t.Errorf("the process did not survive: %q", out)
	}
	if got := s.exec(id, "curl -s -o /dev/null -w '%{http_code}' http://refused.example.com/"); got.Stdout != "403" {
		t.Errorf("network after restart: %+v", got)
	}
	s.must(gone.ID, "true")
	var page struct{ Data []struct{ ID string } }
	s.call("GET", "/v1/environments", nil, &page)
	if len(page.Data) != 1 || page.Data[0].ID != env {
		t.Errorf("environments after restart: %+v", page)
	}
	s.call("POST", "/v1/sessions/"+gone.ID+"/archive", nil, nil)
	s.Stop(syscall.SIGTERM)
	s.Start()
	if got := s.must(id, "cat /workspace/f"); got != "kept" {
		t.Errorf("file after an orderly restart: %q", got)
	}
}
