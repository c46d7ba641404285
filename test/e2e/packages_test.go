package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// build is what GET …/build answers.
type build struct {
	Status    string
	CacheHits int `json:"cache_hits"`
	Layers    []struct {
		Manager, State, Key string
		Hit                 bool
		SizeBytes           int64 `json:"size_bytes"`
		DurationMS          int64 `json:"duration_ms"`
		Packages            []struct {
			Name, Version string
			Requested     bool
		}
	}
	Error *struct {
		Manager, Kind, Package, Message string
		ExitCode                        int `json:"exit_code"`
		Tail                            any
	}
}

// built waits until an environment's build has ended.
func (s *server) built(env string) build {
	s.t.Helper()
	var b build
	waitFor(s.t, 20*time.Minute, "the build of "+env, func() bool {
		s.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &b)
		return b.Status == "ready" || b.Status == "failed"
	})
	return b
}

// TestPackages is the main job: packages of several managers, limited
// networking, usable without any set-up, shared with a second environment.
func TestPackages(t *testing.T) {
	s := newServer(t, "limits: {disk: 1GiB, processes: 256}\n") // twenty of them at a time
	// figlet to be used, the others for what their maintainer scripts do.
	apt := []string{"figlet", "cron", "tcpdump", "traceroute"}
	packages := object{"apt": apt, "npm": []string{"express@4.18.2"}, "pip": []string{"six==1.16.0", "idna"}}
	env := s.environment(object{"packages": packages, "networking": object{"type": "limited", "allow_package_managers": false}})
	agent := s.agent()
	var ids []string
	for range 20 { // created before the build is done: they wait for one build
		ids = append(ids, s.session(agent, env))
	}
	b := s.built(env)
	if b.Status != "ready" || len(b.Layers) != 3 {
		t.Fatalf("build: %+v", b)
	}
	versions := map[string]string{}
	for _, l := range b.Layers {
		for _, p := range l.Packages {
			versions[l.Manager+" "+p.Name] = p.Version
		}
	}
	for name, want := range map[string]string{"pip six": "1.16.0", "npm express": "4.18.2"} {
		if versions[name] != want {
			t.Errorf("resolved version of %s: got %q, want %q", name, versions[name], want)
		}
	}
	if versions["apt figlet"] == "" || versions["pip idna"] == "" {
		t.Errorf("versions of unpinned packages are missing: %v", versions)
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if got := s.exec(id, `env -i PATH="$PATH" figlet ok >/dev/null && python3 -c 'import six, idna; print(six.__version__)' && cd /tmp && node -e 'console.log(require("express/package.json").version)'`); got.Stdout != "1.16.0\n4.18.2\n" {
				t.Errorf("in session %s: %+v", id, got)
			}
		})
	}
	wg.Wait()
	if got := s.exec(ids[0], "pip download --no-deps -d /tmp/x six==1.15.0"); got.Code == 0 {
		t.Error("a session without allow_package_managers reached a registry")
	}
	var log string
	s.try("GET", "/atoll/v1/environments/"+env+"/build/log", nil, &log)
	checkScripts(t, s, ids[0], log)
	if lines := strings.SplitAfter(log, "\n"); len(lines) > 10 { // a follower that was cut off goes on where it was
		var rest string
		if s.try("GET", "/atoll/v1/environments/"+env+"/build/log?offset=10", nil, &rest); rest != strings.Join(lines[10:], "") {
			t.Errorf("the log from line 10 on:\n%s\nthe whole:\n%s", rest, log)
		}
	}
	for _, l := range b.Layers {
		if l.SizeBytes < 1000 || l.DurationMS < 1 || l.Key == "" {
			t.Errorf("a layer that was installed: %+v", l)
		}
	}
	if n := strings.Count(log, "pip install"); n > 1 {
		t.Errorf("twenty sessions caused more than one install:\n%s", log)
	}

	s.checkNpmProjects(ids[3])

	other := s.environment(object{"packages": object{"apt": apt, "npm": []string{"express@4.18.2"}, "pip": []string{"six==1.16.0"}}})
	b = s.built(other)
	if b.Status != "ready" || len(b.Layers) != 3 || !b.Layers[0].Hit || !b.Layers[1].Hit || b.Layers[2].Hit {
		t.Errorf("an environment that differs in pip only must reuse apt and npm: %+v", b)
	}
	s.try("GET", "/atoll/v1/environments/"+other+"/build/log", nil, &log)
	if !strings.Contains(log, "downloads of earlier builds are at hand") || strings.Contains(log, "Downloading six-1.16.0") {
		t.Errorf("the changed list downloaded again what the first one had:\n%s", log)
	}
	same := s.environment(object{"packages": packages})
	if b = s.built(same); b.Status != "ready" || b.CacheHits != 3 {
		t.Errorf("the same list again must install nothing: %+v", b)
	}
	// One session must not change what another one or a later one sees.
	s.must(ids[1], "rm -rf /usr/local/lib/node_modules/express && echo broken > $(python3 -c 'import six; print(six.__file__)')")
	s.must(ids[2], `python3 -c 'import six' && node -e 'require("express")'`)
	s.must(s.session(agent, env), `python3 -c 'import six' && node -e 'require("express")'`)
}

// checkScripts: Debian's maintainer scripts ran, as they do on any machine, but
// for services, which were not started. Nothing keeps a session from starting them.
func checkScripts(t *testing.T, s *server, session, log string) {
	for _, tt := range []struct{ what, shell, want string }{
		{"an alternative", "readlink -f /usr/bin/traceroute", "/usr/bin/traceroute.db"},
		{"an entry of ldconfig", "/sbin/ldconfig -p | grep -c 'libpcap.so.0.8 '", "1"},
		{"a user", "getent passwd tcpdump | cut -d: -f1", "tcpdump"},
		{"a group", "getent group crontab | cut -d: -f1", "crontab"},
		{"no service", "cat /proc/[0-9]*/comm | grep -cx cron; ls /run/crond.pid /usr/sbin/policy-rc.d 2>/dev/null; true", "0"},
		{"a service that is started", "service cron start >/dev/null && until pgrep -x cron >/dev/null; do sleep 0.1; done; pgrep -xc cron", "1"},
	} {
		if got := s.must(session, tt.shell); got != tt.want {
			t.Errorf("%s: %s: got %q, want %q", tt.what, tt.shell, got, tt.want)
		}
	}
	if !strings.Contains(log, "policy-rc.d denied execution of start") {
		t.Errorf("the log of cron's install does not say that it was not started:\n%s", log)
	}
}

// checkNpmProjects: what npm takes for the project is what it would be without
// the link by which express is found everywhere.
func (s *server) checkNpmProjects(session string) {
	s.t.Helper()
	for _, tt := range []struct{ shell, want string }{
		{"mkdir -p /tmp/n/none/deep && cd /tmp/n/none/deep && npm prefix && npm root && npm prefix -g", "/tmp/n/none/deep\n/tmp/n/none/deep/node_modules\n/usr/local"},
		{"mkdir -p /tmp/n/one/deep && cd /tmp/n/one && npm init -y >/dev/null && cd deep && npm prefix", "/tmp/n/one"},
		{"cd && npm prefix", "/root"},
		{"cd /tmp/n/none/deep && npm install --silent ../../one && ls && ls node_modules", "node_modules\npackage-lock.json\npackage.json\none"},
		{"readlink /node_modules && cd /tmp/n/none/deep && node -p 'require(\"express/package.json\").version'", "/usr/local/lib/node_modules\n4.18.2"},
		{"cd /tmp/n/none/deep && echo 'import express from \"express\"; console.log(typeof express)' > x.mjs && node x.mjs", "function"},
		{"cd / && rm /node_modules && mkdir /node_modules && cd /opt && npm prefix", "/"}, // somebody's own
	} {
		if got := s.must(session, tt.shell); got != tt.want {
			s.t.Errorf("%s: got %q, want %q", tt.shell, got, tt.want)
		}
	}
}

// TestBuildFails shows that a failure has a name and reaches who waits.
func TestBuildFails(t *testing.T) {
	s := newServer(t, "")
	env := s.environment(object{"packages": object{"pip": []string{"six", "atoll-no-such-package-zzz"}}})
	id := s.session(s.agent(), env)
	b := s.built(env)
	if b.Status != "failed" || b.Error == nil || b.Error.Manager != "pip" || b.Error.Package != "atoll-no-such-package-zzz" {
		t.Fatalf("build: %+v %+v", b, b.Error)
	}
	var raw string
	code := s.try("POST", "/atoll/v1/sessions/"+id+"/exec?stream=false", object{"shell": "true"}, &raw)
	if code != 409 || !strings.Contains(raw, "atoll-no-such-package-zzz") || !strings.Contains(raw, "pip") {
		t.Errorf("exec in a session of a failed build: %d %s", code, raw)
	}
	// A corrected list builds, and the next session works.
	s.call("POST", "/v1/environments/"+env, object{"config": object{"type": "cloud", "packages": object{"pip": []string{"six"}}}}, nil)
	s.must(s.session(s.agent(), env), "python3 -c 'import six'")
}

// TestBuildSurvivesKill kills the server in the middle of an install.
func TestBuildSurvivesKill(t *testing.T) {
	s := newServer(t, "")
	env := s.environment(object{"packages": object{"pip": []string{"attrs", "idna==3.10"}}})
	var log string
	waitFor(t, 2*time.Minute, "the install to begin", func() bool {
		s.try("GET", "/atoll/v1/environments/"+env+"/build/log", nil, &log)
		return strings.Contains(log, "pip")
	})
	s.kill9()
	if b := s.built(env); b.Status != "ready" {
		t.Fatalf("build after the restart: %+v", b)
	}
	s.must(s.session(s.agent(), env), "python3 -c 'import attrs, idna'")
}

// TestNetworkModes checks both modes with the template's own registry as the
// public host that answers.
func TestNetworkModes(t *testing.T) {
	s := newServer(t, "")
	var templates struct {
		Data []struct {
			Name       string
			Registries []struct{ Manager, Host string }
		}
	}
	agent := s.agent()
	s.must(s.session(agent, s.environment(object{})), "true") // the default template is there now
	s.call("GET", "/atoll/v1/templates", nil, &templates)
	host := ""
	for _, tpl := range templates.Data {
		for _, r := range tpl.Registries {
			if tpl.Name == "base" && r.Manager == "pip" && host == "" {
				host = r.Host
			}
		}
	}
	if host == "" {
		t.Fatalf("the template knows no pip registry: %+v", templates)
	}
	get := func(session, url string) string {
		r := s.exec(session, "curl -sS -m 20 -o /dev/null -w '%{http_code}' "+url)
		if r.Code != 0 {
			return strings.TrimSpace(r.Stderr)
		}
		return r.Stdout
	}
	session := func(networking object) string {
		return s.session(agent, s.environment(object{"networking": networking}))
	}

	allowed := session(object{"type": "limited", "allowed_hosts": []string{host}})
	if got := get(allowed, "https://"+host+"/"); !regexp.MustCompile(`^[2-4]\d\d$`).MatchString(got) {
		t.Errorf("allowed host: %s", got)
	}
	if got := get(allowed, "https://refused.example.com/"); !strings.Contains(got, "access denied") {
		t.Errorf("refused host over TLS: %s", got)
	}
	if r := s.exec(allowed, "curl -s http://refused.example.com/"); !strings.Contains(r.Stdout, "refused.example.com") {
		t.Errorf("the 403 does not name the host: %+v", r)
	}
	nothing := session(object{"type": "limited"})
	if got := get(nothing, "https://"+host+"/"); !strings.Contains(got, "access denied") {
		t.Errorf("an empty list reached %s: %s", host, got)
	}
	for _, tpl := range templates.Data {
		for _, r := range tpl.Registries {
			checkNotInSource(t, r.Host)
		}
	}
	managers := session(object{"type": "limited", "allow_package_managers": true})
	// A package that brings an authority has the bundle made anew: the host's own stay in it.
	s.must(managers, "update-ca-certificates --fresh >/dev/null && pip download -q --no-deps -d /tmp/x six==1.16.0")
	if got := get(managers, "https://refused.example.com/"); !strings.Contains(got, "access denied") {
		t.Errorf("allow_package_managers opened another host: %s", got)
	}
	open := session(object{"type": "unrestricted"})
	if got := get(open, "https://"+host+"/"); !regexp.MustCompile(`^[2-4]\d\d$`).MatchString(got) {
		t.Errorf("unrestricted: %s", got)
	}
	for _, url := range []string{"http://169.254.169.254/", s.URL + "/healthz", "http://10.0.0.1/", "http://192.168.0.1/"} {
		if got := get(open, url); got == "200" {
			t.Errorf("unrestricted reached %s", url)
		}
	}
	var egress struct {
		Data []struct{ Host, Verdict, Reason string }
	}
	s.call("GET", "/atoll/v1/sessions/"+allowed+"/egress?verdict=refused", nil, &egress)
	if len(egress.Data) == 0 || egress.Data[0].Verdict != "refused" {
		t.Errorf("refusals are not on record: %+v", egress)
	}
}

// checkNotInSource: registries are learned, so no file of the repository names one.
func checkNotInSource(t *testing.T, host string) {
	t.Helper()
	if strings.HasSuffix(host, ".example.com") {
		return
	}
	out, err := exec.Command("git", "-C", "../..", "grep", "-lFI", host).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) > 0 { // 1: nothing found
		t.Errorf("the registry's host %s is in the source: %v\n%s", host, err, out)
	}
}

// TestRuntimes compares the table of docs/templates.md with what a sandbox of
// the base template says.
func TestRuntimes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/templates.md")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{}))
	rows := regexp.MustCompile("(?m)^\\| ([^|]+?) \\| `([^`|]+)` \\| ([^|]+?) \\|").FindAllStringSubmatch(string(doc), -1)
	if len(rows) < 15 {
		t.Fatalf("the table of runtimes has %d rows", len(rows))
	}
	for _, row := range rows {
		name, command, want := row[1], row[2], strings.Trim(row[3], "`")
		r := s.exec(id, command+" 2>&1")
		if r.Code != 0 || !strings.Contains(r.Stdout, want) {
			t.Errorf("%s: %q says %q (exit %d), the table says %q", name, command, strings.TrimSpace(r.Stdout), r.Code, want)
		}
	}
	fmt.Printf("%d runtimes answered as documented\n", len(rows))
}
