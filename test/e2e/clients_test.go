package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/atolltest"
)

// put writes a file into a session.
func (s *server) put(session, path string, content []byte) {
	s.t.Helper()
	req, err := http.NewRequest("PUT", s.URL+"/atoll/v1/sessions/"+session+"/files?path="+path, bytes.NewReader(content))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("x-api-key", atolltest.Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		s.t.Fatalf("writing %s: %s", path, resp.Status)
	}
}

// A client is a program that people run in a sandbox, with nothing set for Atoll.
type client struct {
	name  string
	shell string // must exit 0
	want  string // regular expression of what it says; (?m), each line anchored
}

// allowedClients reach the site, each in its own protocol.
func allowedClients(blobSum string) []client {
	return []client{
		{"curl", "curl -sS https://www.example.com/", "^hello over HTTP/2.0$"},
		{"curl, HTTP/1.1", "curl -sS --http1.1 https://www.example.com/", "^hello over HTTP/1.1$"},
		{"curl, redirect from port 80", "curl -sSL http://www.example.com/", "^hello over HTTP/2.0$"},
		{"curl, event stream", "curl -sSN https://www.example.com/events", "^data: 2$"},
		{"curl, 64 MiB down", "curl -sS https://www.example.com/blob | tee /tmp/blob | sha256sum", "^" + blobSum},
		{"curl, 64 MiB up", "curl -sS -T /tmp/blob https://www.example.com/sum", fmt.Sprintf("^%d %s <nil>$", blobSize, blobSum)},
		{"wget", "wget -qO- https://www.example.com/", "^hello over HTTP/1.1$"},
		{"git", `set -e; cd /tmp; export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x@example.com GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@example.com
git clone -q https://git.example.com/probe.git one; cd one; git checkout -q -B main
head -c 3000000 /dev/urandom > data; echo 'git works' > note; git add .; git commit -qm first; git push -q origin main
git clone -q https://git.example.com/probe.git ../two; cmp data ../two/data
echo more >> note; git commit -qam second; git push -q origin main; cd ../two; git pull -q; cat note`, "^git works\nmore$"},
		{"pip", "pip install -q --index-url https://pip.example.com/simple atoll-probe && python3 -c 'import atoll_probe; print(atoll_probe.VALUE)'", "^pip works$"},
		// In a directory with nothing in it, as on any machine: the project is made there, and / is left alone.
		{"npm", `set -e; mkdir -p /tmp/npm/new; cd /tmp/npm/new; npm install --registry https://npm.example.com/ atoll-probe >&2
ls; ls node_modules; readlink /node_modules; echo 'import WebSocket from "ws"; console.log(typeof WebSocket)' > x.mjs; node x.mjs
node -p 'require("ws").WebSocket.name + " " + require("atoll-probe")'`,
			"^node_modules\npackage-lock.json\npackage.json\natoll-probe\n/usr/local/lib/node_modules\nfunction\nWebSocket npm works$"},
		{"cargo", `set -e; mkdir -p /tmp/cargo/src /tmp/cargo/.cargo; cd /tmp/cargo
printf '[registries.probe]\nindex = "sparse+https://crates.example.com/index/"\n' > .cargo/config.toml
printf '[package]\nname = "x"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\natoll-probe = { version = "1", registry = "probe" }\n' > Cargo.toml
echo 'fn main() { println!("{}", atoll_probe::VALUE) }' > src/main.rs
cargo run -q`, "^cargo works$"},
		{"go", `set -e; mkdir /tmp/go; cd /tmp/go; export GOPROXY=https://proxy.example.com GONOSUMDB=example.com
go mod init x; go get example.com/atoll-probe@latest; cat "$(go list -m -f '{{.Dir}}' example.com/atoll-probe)/probe.go"`, `^const Value = "go works"$`},
		{"apt", `set -e; echo 'deb [trusted=yes] https://deb.example.com/ ./' > /tmp/probe.list
apt="apt-get -qq -o Dir::Etc::sourcelist=/tmp/probe.list -o Dir::Etc::sourceparts=-"
$apt update; $apt install atoll-probe; cat /usr/share/atoll-probe`, "^apt works$"},
		{"Python", "python3 python.py https://www.example.com/", "^urllib hello over HTTP/1.1\nrequests hello over HTTP/1.1\nhttpx hello over HTTP/2.0\naiohttp hello over HTTP/1.1$"},
		{"gRPC and WebSocket, Python", "python3 rpc.py grpc.example.com ws.example.com", "^unary True\nstream 100\nwebsocket closed 1000$"},
		{"fetch and WebSocket, Node", "node node.mjs https://www.example.com/ ws.example.com", "^fetch hello over HTTP/1.1\nwebsocket closed 1000$"},
		{"Java", "java Probe.java https://www.example.com/", "^java hello over HTTP/2.0$"},
		{"Ruby", `ruby -ropen-uri -e 'puts URI.open("https://www.example.com/").read'`, "^hello over HTTP/1.1$"},
		{"PHP", `php -r 'echo file_get_contents("https://www.example.com/"), "\n";'`, "^hello over HTTP/1.1$"},
	}
}

// refusedClients want a host that is not allowed. What they say has to be about
// access that was denied, or an alert; never a time-out or a network that broke.
// Retries are off: they are the client's own pauses.
func refusedClients() []client {
	const url = "https://refused.example.com/"
	return []client{
		{"curl", "! curl -sS " + url + " 2>&1", "access denied"},
		{"wget", "! wget -q --tries=1 -O- " + url + " 2>&1; wget --tries=1 -O- " + url + " 2>&1 | cat", "(?i)access was denied|fatal alert"},
		{"git", "! git clone " + url + "x.git /tmp/refused 2>&1", "(?i)access was denied|access denied|fatal alert"},
		{"pip", "! pip install --retries 0 --index-url " + url + "simple x 2>&1", "(?i)access.denied"},
		{"npm", "! npm view --fetch-retries 0 --registry " + url + " x 2>&1", "(?i)access denied"},
		{"cargo", `set -e; mkdir -p /tmp/refused-crate/src /tmp/refused-crate/.cargo; cd /tmp/refused-crate; : > src/lib.rs
printf '[registries.probe]\nindex = "sparse+` + url + `index/"\n' > .cargo/config.toml
printf '[package]\nname = "x"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\natoll-probe = { version = "1", registry = "probe" }\n' > Cargo.toml
! CARGO_NET_RETRY=0 cargo fetch 2>&1`, "(?i)access denied"},
		{"go", "cd /tmp && ! GOPROXY=" + url + " GONOSUMDB=example.com go list -m example.com/other@latest 2>&1", "(?i)access denied"},
		{"apt", `echo 'deb [trusted=yes] ` + url + ` ./' > /tmp/refused.list
! apt-get -o Acquire::Retries=0 -o APT::Update::Error-Mode=any -o Dir::Etc::sourcelist=/tmp/refused.list -o Dir::Etc::sourceparts=- update 2>&1`, "(?i)access was denied|access denied|fatal alert"},
		{"Python", "python3 python.py " + url, "(?i)^urllib error .*access.denied.*\nrequests error .*access.denied.*\nhttpx error .*access.denied.*\naiohttp error .*access.denied.*$"},
		{"gRPC and WebSocket, Python", "python3 rpc.py refused.example.com refused.example.com", "(?i)^unary error UNAVAILABLE .*access.denied.*\nstream error UNAVAILABLE .*access.denied.*\nwebsocket error .*access.denied.*$"},
		{"fetch and WebSocket, Node", "node node.mjs " + url + " refused.example.com", "(?i)^fetch error .*access denied.*\nwebsocket error .*access denied"},
		{"Java", "java Probe.java " + url, "(?i)^java error .*access_denied"},
		{"Ruby", `! ruby -ropen-uri -e 'puts URI.open("` + url + `").read' 2>&1`, "(?i)access denied"},
		{"PHP", `php -r 'var_dump(file_get_contents("` + url + `"));' 2>&1`, "(?i)access denied"},
	}
}

// TestClients runs real clients inside one sandbox, as people run them, against
// a TLS site whose authority was put among the system's: what is allowed works
// in every protocol, and what is not is refused in words (E089).
func TestClients(t *testing.T) {
	site := newSite(t)
	site.addRegistries(t)
	s := newServer(t, site.config())
	agent := s.agent()
	env := s.environment(object{
		"packages":   object{"pip": []string{"requests", "httpx[http2]", "aiohttp", "grpcio", "websockets"}, "npm": []string{"ws"}},
		"networking": object{"type": "limited", "allowed_hosts": site.names()},
	})
	s.builtAtLast(agent, env)
	id := s.session(agent, env)
	s.put(id, "/usr/local/share/ca-certificates/site.crt", site.CA)
	s.must(id, "update-ca-certificates")
	for _, name := range []string{"python.py", "rpc.py", "node.mjs", "Probe.java"} {
		content, err := os.ReadFile(filepath.Join("testdata/clients", name))
		if err != nil {
			t.Fatal(err)
		}
		s.put(id, "/workspace/"+name, content)
	}
	h := sha256.New()
	if err := blob(h); err != nil {
		t.Fatal(err)
	}
	for _, c := range allowedClients(fmt.Sprintf("%x", h.Sum(nil))) {
		t.Run(c.name, func(t *testing.T) { s.runClient(t, id, c) })
	}
	t.Run("on record", func(t *testing.T) {
		for name := range site.hosts {
			if site.asked(name) == 0 {
				t.Errorf("nobody asked %s", name)
			}
		}
		var log struct{ Data []egressRecord }
		s.call("GET", "/atoll/v1/sessions/"+id+"/egress?verdict=refused", nil, &log)
		for _, r := range log.Data {
			t.Errorf("an allowed client was refused: %+v", r)
		}
	})
	for _, c := range refusedClients() {
		t.Run("E089 "+c.name, func(t *testing.T) {
			before := s.refusals(id, "refused.example.com")
			s.runClient(t, id, c)
			if s.refusals(id, "refused.example.com") == before {
				t.Error("the refusal is not on record")
			}
		})
	}
}

// runClient runs a client and holds what it says against what is wanted.
func (s *server) runClient(t *testing.T, session string, c client) {
	t.Helper()
	var r struct {
		result
		Millis int `json:"duration_ms"`
	}
	s.call("POST", "/atoll/v1/sessions/"+session+"/exec?stream=false", object{"command": []string{"bash", "-c", c.shell}, "timeout_ms": 120000}, &r)
	t.Logf("%d ms: %s", r.Millis, strings.TrimSpace(string(tail([]byte(r.Stdout), 600))))
	if r.Code != 0 || r.TimedOut || !regexp.MustCompile("(?m)"+c.want).MatchString(r.Stdout) {
		t.Errorf("%s\nexit %d, wanted %q\nstdout: %s\nstderr: %s", c.shell, r.Code, c.want, tail([]byte(r.Stdout), 3000), tail([]byte(r.Stderr), 3000))
	}
}

// egressRecord is a decision as the API shows it.
type egressRecord struct {
	Host, Protocol, Verdict, Reason string
	ClaimedHost                     string `json:"claimed_host"`
	ECH                             bool   // with an encrypted name, or a decoy
	Count                           int
}

// refusals counts the TLS connections that asked for a host and were refused
// because of its name.
func (s *server) refusals(session, host string) int {
	s.t.Helper()
	var log struct{ Data []egressRecord }
	s.call("GET", "/atoll/v1/sessions/"+session+"/egress?verdict=refused&limit=1000", nil, &log)
	n := 0
	for _, r := range log.Data {
		if r.ClaimedHost == host && r.Protocol == "tls" && r.Reason == "name_not_allowed" {
			n += r.Count
		}
	}
	return n
}
