package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// allManagers is a list with a small package for each manager. The gem comes
// from the mirror, the rest from where the template gets packages.
func allManagers() object {
	return object{
		"apt": []string{"figlet", "netbase"}, "cargo": []string{"data-encoding-bin"}, "gem": []string{"atoll-tiny:~> 1.0"},
		"go": []string{"golang.org/x/example/hello@latest"}, "npm": []string{"left-pad@1.3.0", "semver@^7"},
		"pip": []string{"six==1.17.0", "idna"},
	}
}

// mirrored is an environment config of the mirror's template.
func mirrored(packages object) object {
	return object{"base_template": "mirrored", "packages": packages, "networking": object{"type": "limited"}}
}

// usable are commands that need a package each, and what they print.
var usable = [][2]string{
	{"figlet -f term hi", "hi"},
	{"printf hi | data-encoding --mode=encode --base=hex", "6869"},
	{"atoll-tiny && ruby -e 'require %q(atoll_tiny); puts ATOLL_TINY'", "tiny\ntiny"},
	{"hello", "Hello, world!"},
	{`cd /tmp && node -e 'console.log(require("left-pad")(1, 3, 0))' && semver 1.2.3`, "001\n1.2.3"},
	{`echo 'import { SemVer } from "semver"; console.log(new SemVer("1.2.3").minor)' > /tmp/x.mjs && node /tmp/x.mjs`, "2"},
	{`python3 -c 'import six, idna; print(six.__version__)'`, "1.17.0"},
	{"dpkg -s figlet | grep Status", "Status: install ok installed"},
}

// checkUsable runs them with nothing set but PATH, which a session's exec has.
func (s *server) checkUsable(session string) {
	s.t.Helper()
	for _, u := range usable {
		if got := s.must(session, "env -i PATH=\"$PATH\" bash -c '"+strings.ReplaceAll(u[0], "'", `'\''`)+"'"); got != u[1] {
			s.t.Errorf("%s: got %q, want %q", u[0], got, u[1])
		}
	}
}

// checkVersions holds the versions that a build reports against what the tools
// in a session say.
func (s *server) checkVersions(session string, b build) {
	s.t.Helper()
	said := map[string]string{}
	for name, shell := range map[string]string{
		"apt figlet":                    "dpkg-query -W -f '${Version}' figlet",
		"apt netbase":                   "dpkg-query -W -f '${Version}' netbase",
		"cargo data-encoding-bin":       "cargo install --list --root /usr/local | sed -n 's/^data-encoding-bin v\\(.*\\):$/\\1/p'",
		"gem atoll-tiny":                "gem list --local --exact atoll-tiny | sed 's/.*(\\(.*\\))/\\1/'",
		"go golang.org/x/example/hello": "go version -m /usr/local/bin/hello | awk '$1 == \"mod\" {print $3}'",
		"npm left-pad":                  "cd /tmp && node -p 'require(\"left-pad/package.json\").version'",
		"npm semver":                    "cd /tmp && node -p 'require(\"semver/package.json\").version'",
		"pip six":                       "python3 -m pip show six | sed -n 's/^Version: //p'",
		"pip idna":                      "python3 -m pip show idna | sed -n 's/^Version: //p'",
	} {
		said[name] = s.must(session, shell)
	}
	reported := map[string]string{}
	for _, l := range b.Layers {
		for _, p := range l.Packages {
			if p.Requested {
				reported[l.Manager+" "+p.Name] = p.Version
			}
		}
	}
	if len(said) != len(reported) {
		s.t.Errorf("reported as requested: %v", reported)
	}
	for name, want := range said {
		if reported[name] != want || want == "" {
			s.t.Errorf("%s: the build says %q, the tool %q", name, reported[name], want)
		}
	}
}

// checkRegistriesShown: what the template uses and what the operator set in its
// place or beside it is shown, on the command line and in the API.
func (s *server) checkRegistriesShown() {
	s.t.Helper()
	var templates struct {
		Data []struct {
			Name       string
			Registries []struct {
				Manager, Host, How string
				Port               int
			}
		}
	}
	s.call("GET", "/atoll/v1/templates", nil, &templates)
	shown := map[string]string{}
	for _, tpl := range templates.Data {
		for _, r := range tpl.Registries {
			if tpl.Name == "mirrored" {
				shown[r.Manager] += fmt.Sprintf("%s:%d (%s) ", r.Host, r.Port, r.How)
			}
		}
	}
	if want := "gems.example.com:" + mirrorPort + " (operator) "; shown["gem"] != want { // replaced
		s.t.Errorf("gem's registries: %q, want %q", shown["gem"], want)
	}
	if !strings.Contains(shown["pip"], "pip.example.com:"+mirrorPort+" (") || !strings.Contains(shown["pip"], ":0 (") || // added, beside the learned ones
		!strings.Contains(shown["npm"], "dead.example.com:18809 (") || !strings.Contains(shown["npm"], ":0 (") {
		s.t.Errorf("registries: %v", shown)
	}
	at := slices.Index(s.Args, "--config")
	if out := s.mustAtoll("template", "show", "--config", s.Args[at+1], "mirrored"); !strings.Contains(out, "registry     gem   gems.example.com:"+mirrorPort+" (operator)\n") {
		s.t.Errorf("template show:\n%s", out)
	}
}

// logSize is how long the server's log is now.
func (s *server) logSize() int64 {
	s.t.Helper()
	info, err := os.Stat(s.LogFile())
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Size()
}

// checkDialed holds what builds connected to, by the log from a place on, against
// the registries of the template.
func (s *server) checkDialed(t *testing.T, from int64, template string) {
	t.Helper()
	var templates struct {
		Data []struct {
			Name       string
			Registries []struct{ Manager, Host string }
		}
	}
	s.call("GET", "/atoll/v1/templates", nil, &templates)
	known := map[string][]string{}
	for _, tpl := range templates.Data {
		for _, r := range tpl.Registries {
			if tpl.Name == template {
				known[r.Host] = append(known[r.Host], r.Manager)
			}
		}
	}
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for line := range strings.Lines(string(log[from:])) {
		var r struct{ Msg, Source, Verdict, Reason, Host, Rule string }
		if json.Unmarshal([]byte(line), &r) != nil || r.Msg != "egress" || r.Source != "build" {
			continue
		}
		_, manager, _ := strings.Cut(r.Rule, "registry:")
		if !slices.Contains(known[r.Host], manager) || r.Verdict == "refused" {
			t.Errorf("a build went beyond the template's registries: %s", line)
		}
		used[manager] = true
	}
	for _, manager := range []string{"apt", "cargo", "gem", "go", "npm", "pip"} {
		if !used[manager] {
			t.Errorf("nothing was got for %s", manager)
		}
	}
}

// TestLayersAllManagers installs with all six managers through the API and uses
// what came of it. Then it makes the same layers under a server that is killed
// in every install, and compares.
func TestLayersAllManagers(t *testing.T) {
	m := newMirror(t)
	s := newServer(t, m.config(""))
	agent := s.agent()
	m.addGem(s, agent)
	s.must(s.session(agent, s.environment(mirrored(object{}))), "true") // the template is there now
	start := s.logSize()
	env := s.environment(mirrored(allManagers()))
	b := s.builtAtLast(agent, env)
	t.Run("E271", func(t *testing.T) { s.checkDialed(t, start, "mirrored") })
	if len(b.Layers) != 6 {
		t.Fatalf("build: %+v", b)
	}
	id := s.session(agent, env)
	s.checkUsable(id)
	s.checkVersions(id, b)
	s.checkRegistriesShown()

	// The same again installs nothing; another pip list reuses what is below.
	if b := s.built(s.environment(mirrored(allManagers()))); b.Status != "ready" || b.CacheHits != 6 {
		t.Errorf("the same list again: %+v", b)
	}
	list := allManagers()
	list["pip"] = []string{"six"}
	other := s.builtAtLast(agent, s.environment(mirrored(list)))
	if other.Status != "ready" || other.CacheHits != 5 || other.Layers[5].Hit {
		t.Errorf("another pip list: %+v", other)
	}

	t.Run("killed", func(t *testing.T) { checkKilledBuild(t, m, s, b) })
}
