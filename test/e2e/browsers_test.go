package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// chromium opens the page behind it and prints it, or why there is none.
const chromium = "chromium --headless --no-sandbox --disable-gpu 2>&1 --dump-dom "

// browsers open the page of the site, or what they can of it.
func browsers() []client {
	page := []string{"page h2", `style rgb\(1, 2, 3\)`, "picture 42", "other host hello over HTTP/2.0", "refused host error Failed to fetch", "websocket closed 1000"}
	everyHello := "^chrome 200 3 hello.*\nedge 200 3 hello.*\nsafari 200 3 hello.*\nfirefox 200 3 hello.*\ntor145 200 3 hello"
	return []client{
		{"Chromium", chromium + "https://page.example.com/", strings.Join(page, "<br>")},
		{"Playwright", "python3 in_playwright.py https://page.example.com/ https://page.example.com/",
			"^status 200\n" + strings.Join(page, "\n") + "\\s+status 200\n" + strings.Join(page, "\n")},
		{"Bun", "bun in_bun.ts https://api.example.com/ ws.example.com", "^fetch 200 hello over HTTP/1.1\nwebsocket closed 1000$"},
		{"curl with browsers' hellos", "python3 with_curl.py https://api.example.com/", everyHello},
		// One decoy in 256 claims the number of the host's key by chance, and is refused.
		{"curl with browsers' hellos, a host with a key", "for i in 1 2 3; do python3 with_curl.py https://keys.example.com/ >out; grep -q error out || break; done; cat out", everyHello},
		{"Node, HTTP/2", `node -e 'const c = require("http2").connect("https://api.example.com/"), r = c.request({":path": "/"}); r.setEncoding("utf8"); r.on("data", (d) => console.log(d)); r.on("end", () => c.close())'`, "^hello over HTTP/2.0$"},
		{"uv, with rustls", `uv pip install -q --target /tmp/uv --index-url https://pip.example.com/simple atoll-probe && PYTHONPATH=/tmp/uv python3 -c 'import atoll_probe; print(atoll_probe.VALUE)'`, "^pip works$"},
		{"curl, TLS 1.2", "curl -sS --tls-max 1.2 https://api.example.com/", "^hello over HTTP/2.0$"},
		{"OpenSSL, a hello larger than a packet", "openssl s_client -brief -groups X25519MLKEM768 -connect api.example.com:443 -servername api.example.com </dev/null 2>&1", "^Negotiated TLS1.3 group: X25519MLKEM768$"},
		{"OpenSSL, a second hello", "openssl s_client -brief -groups brainpoolP512r1tls13:P-521 -connect api.example.com:443 -servername api.example.com </dev/null 2>&1", "^Verification: OK$"},
	}
}

// refusedBrowsers want a host that is not allowed.
func refusedBrowsers() []client {
	const words = "access to refused.example.com was refused by the network policy"
	return []client{
		{"Chromium", chromium + "https://refused.example.com/", "Page load failed: net::ERR_SSL_PROTOCOL_ERROR"},
		{"Playwright", "python3 in_playwright.py https://refused.example.com/ http://refused.example.com/", "(?s)^error .*ERR_SSL_PROTOCOL_ERROR.*^status 403\n.*" + words},
		{"Bun", "bun in_bun.ts https://refused.example.com/ refused.example.com", "(?i)^fetch error .*\nwebsocket error "},
		{"curl with browsers' hellos", "python3 with_curl.py https://refused.example.com/", "^chrome error .*ACCESS_DENIED.*\nedge error .*ACCESS_DENIED.*\nsafari error .*ACCESS_DENIED.*\nfirefox error .*ACCESS_DENIED.*\ntor145 error .*ACCESS_DENIED"},
	}
}

// hiddenBrowsers have the key of the host keys from elsewhere, and encrypt the
// name of the hidden host to it: refused, or let through.
func hiddenBrowsers(keys []byte, refused bool) []client {
	curl, page := []string{"chrome", "firefox", "tor145"}, "hello from behind"
	for i := range curl {
		curl[i] += " 200 3 hello from behind"
		if refused {
			curl[i] = strings.Replace(curl[i], "200 3 hello from behind", "error .*ACCESS_DENIED.*", 1)
			page = "Page load failed: net::ERR_SSL_PROTOCOL_ERROR"
		}
	}
	return []client{
		{"curl with browsers' hellos", "python3 with_curl.py https://hidden.example.com/ " + base64.StdEncoding.EncodeToString(keys) + " keys.example.com", "^" + strings.Join(curl, "\n")},
		{"Chromium", `mkdir -p /etc/chromium/policies/managed
echo '{"DnsOverHttpsMode": "secure", "DnsOverHttpsTemplates": "https://doh.example.com/"}' > /etc/chromium/policies/managed/doh.json
` + chromium + "https://hidden.example.com/", page},
	}
}

// TestBrowsers runs browsers, and what speaks as they do, inside one sandbox
// under limited, against a site whose authority was put among the system's.
// Their hellos carry decoys of encrypted names: what is allowed works in full,
// what is not is refused, and so is a name that is really encrypted (E085),
// unless the operator lets it through (E086).
func TestBrowsers(t *testing.T) {
	site := newPageSite(t)
	site.addRegistries(t)
	s := newServer(t, site.config())
	agent := s.agent()
	env := s.environment(object{
		"packages":   object{"apt": []string{"chromium", "libnss3-tools"}, "pip": []string{"curl_cffi", "playwright", "uv"}, "npm": []string{"bun"}},
		"networking": object{"type": "limited", "allowed_hosts": site.names()},
	})
	s.builtAtLast(agent, env)
	id := s.session(agent, env)
	s.put(id, "/usr/local/share/ca-certificates/site.crt", site.CA)
	// Chromium has a store of its own.
	s.must(id, `update-ca-certificates && mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -N --empty-password &&
certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n site -i /usr/local/share/ca-certificates/site.crt`)
	for _, name := range []string{"in_playwright.py", "with_curl.py", "in_bun.ts"} {
		content, err := os.ReadFile(filepath.Join("testdata/browsers", name))
		if err != nil {
			t.Fatal(err)
		}
		s.put(id, "/workspace/"+name, content)
	}
	for _, c := range browsers() {
		t.Run(c.name, func(t *testing.T) { s.runClient(t, id, c) })
	}
	t.Run("on record", func(t *testing.T) { s.checkBrowsersRecords(t, id, site) })
	for _, c := range refusedBrowsers() {
		t.Run("refused "+c.name, func(t *testing.T) {
			before := s.refusals(id, "refused.example.com")
			s.runClient(t, id, c)
			if s.refusals(id, "refused.example.com") == before {
				t.Error("the refusal is not on record")
			}
		})
	}
	inside := strings.Fields(s.must(id, "getent ahostsv4 keys.example.com"))[0]
	site.inside.Store(&inside)
	for _, c := range hiddenBrowsers(site.Keys, true) {
		t.Run("E085 "+c.name, func(t *testing.T) {
			before := s.hidden(id)
			s.runClient(t, id, c)
			if s.hidden(id) == before {
				t.Error("no encrypted name was refused")
			}
			if n := site.hidden.Load(); n != 0 {
				t.Errorf("%d hellos to the hidden host arrived", n)
			}
		})
	}
	// The names were really encrypted: with the operator's word they arrive.
	file := s.Args[slices.Index(s.Args, "--config")+1]
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(config, []byte("egress:\n"), []byte("egress:\n  ech: allow\n"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s.mustAtoll("reload")
	for _, c := range hiddenBrowsers(site.Keys, false) {
		t.Run("E086 "+c.name, func(t *testing.T) {
			before := site.hidden.Load()
			s.runClient(t, id, c)
			if site.hidden.Load() == before {
				t.Error("no hello to the hidden host was decrypted")
			}
		})
	}
}

// checkBrowsersRecords: what the browsers did for the page was allowed, with
// decoys, except HTTP/3, which they tried.
func (s *server) checkBrowsersRecords(t *testing.T, session string, site *pageSite) {
	t.Helper()
	var log struct{ Data []egressRecord }
	s.call("GET", "/atoll/v1/sessions/"+session+"/egress?limit=1000", nil, &log)
	seen := map[string]bool{}
	for _, r := range log.Data {
		seen[fmt.Sprintf("%s %s %s decoy %t", r.Host, r.Protocol, r.Reason, r.ECH)] = true
		if name, below := strings.CutSuffix(r.Host, ".example.com"); below && name != "refused" && r.Verdict == "refused" &&
			r.Reason != "udp_not_allowed" && (name != "keys" || r.Reason != "ech_present") {
			t.Errorf("an allowed browser was refused: %+v", r)
		}
	}
	for _, want := range []string{
		"page.example.com tls ok decoy true", "api.example.com tls ok decoy true", "ws.example.com tls ok decoy true", "keys.example.com tls ok decoy true",
		"page.example.com udp udp_not_allowed decoy false",
	} {
		if !seen[want] {
			t.Errorf("not on record: %s", want)
		}
	}
	if n := site.datagrams.Load(); n != 0 {
		t.Errorf("%d datagrams arrived", n)
	}
}

// hidden counts the connections that were refused because of an encrypted name.
func (s *server) hidden(session string) int {
	s.t.Helper()
	var log struct{ Data []egressRecord }
	s.call("GET", "/atoll/v1/sessions/"+session+"/egress?verdict=refused&limit=1000", nil, &log)
	n := 0
	for _, r := range log.Data {
		if r.Host == "keys.example.com" && r.Reason == "ech_present" {
			n += r.Count
		}
	}
	return n
}
