package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// marker is in every entry below, so that it can be looked for in the log.
const marker = "zqmarker"

// TestLayersInjection sends what is no package through the API. Each is refused
// with its place, before anything is stored or run, and is in no log.
func TestLayersInjection(t *testing.T) {
	s := newServer(t, "")
	all := []string{"apt", "cargo", "gem", "go", "npm", "pip"}
	forAll := []string{
		"--" + marker, "-r" + marker, " --index-url=http://" + marker, "--config=" + marker, "-o" + marker, "",
		"http://user:" + marker + "@example.com/x", "git+https://user:" + marker + "@example.com/x.git", "git+ssh://git@example.com/" + marker,
		"file:///" + marker, "./" + marker, "../" + marker, "/etc/" + marker,
		marker + ";id", marker + "|id", marker + "&id", marker + "$(id)", marker + "`id`", marker + " && id", marker + ">/x", "$" + marker,
		marker + "\n--option", marker + "\r", marker + "\x00", marker + "\tx", "\x1b[2J" + marker, marker + "\x7f",
		marker + "\u0430", "\u2010\u2010" + marker, "\uff0d" + marker, marker + "\u200b", marker + "\u202e", "\u00a0" + marker,
		marker + strings.Repeat("x", 600), `"` + marker, "'" + marker, marker + "\\x",
	}
	only := map[string][]string{
		"apt":   {marker + "-", marker + "*", marker + "?", "~n" + marker, "?name(" + marker + ")", "^" + marker, marker + "[a]", marker + "_x", marker + "%"},
		"cargo": {marker + " --git x", marker + "@", "1" + marker, marker + "/x"},
		"gem":   {marker + " -- --with-x", marker + ".gem", marker + " --source x", marker + ":1 --x"},
		"go":    {"net/" + marker, marker + "/x", "example.com/" + marker + "@none", "example.com/../" + marker, "example.com/" + marker + "@../x"},
		"npm": {marker + "/x", "github:" + marker + "/x", "npm:" + marker, marker + "@npm:x", marker + "@file:x", "@" + marker, marker + ".tgz/x", "~/" + marker,
			"link:" + marker, "workspace:" + marker, marker + "@github:x/y"},
		"pip": {marker + " @ http://example.com/x", marker + ".whl", marker + ".tar.gz", marker + ".zip", marker + ".tgz", marker + " -e x", marker + " -c x",
			marker + "; extra == 'x' --no-deps", marker + "==1 --hash=sha256:0", marker + " -r x", marker + "==1; " + marker},
	}
	refuse := func(manager, entry string) {
		// Good entries around it: the place must be that of the bad one.
		list := []string{good[manager], good[manager], entry, good[manager]}
		var raw string
		code := s.try("POST", "/v1/environments", object{"name": "x", "config": object{"type": "cloud", "packages": object{manager: list}}}, &raw)
		if code != 400 || !strings.Contains(raw, fmt.Sprintf("packages.%s[2]", manager)) {
			t.Errorf("%s %q: %d %s", manager, entry, code, raw)
		}
		if strings.Contains(entry, "@") && strings.Contains(entry, "://") && strings.Contains(raw, marker) {
			t.Errorf("%s %q: the reply repeats credentials: %s", manager, entry, raw)
		}
	}
	for _, manager := range all {
		for _, entry := range append(append([]string{}, forAll...), only[manager]...) {
			refuse(manager, entry)
		}
		many := make([]string, 10_000)
		for i := range many {
			many[i] = good[manager]
		}
		var raw string
		code := s.try("POST", "/v1/environments", object{"name": "x", "config": object{"type": "cloud", "packages": object{manager: many}}}, &raw)
		if code != 400 || !strings.Contains(raw, "packages."+manager+"[256]: at most 256 entries") || len(raw) > 2000 {
			t.Errorf("%s with 10,000 entries: %d %.2000s", manager, code, raw)
		}
	}
	// An update is held to the same.
	env := s.environment(object{})
	var raw string
	if code := s.try("POST", "/v1/environments/"+env, object{"config": object{"type": "cloud", "packages": object{"pip": []string{"six", "-r" + marker}}}}, &raw); code != 400 || !strings.Contains(raw, "packages.pip[1]") {
		t.Errorf("update: %d %s", code, raw)
	}
	var list struct{ Data []struct{ ID string } }
	s.call("GET", "/v1/environments?limit=100", nil, &list)
	if len(list.Data) != 1 {
		t.Errorf("%d environments are there, want the one of the update", len(list.Data))
	}
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, marker) {
			t.Errorf("the server's log has an entry: %s", line)
			break
		}
	}
}

// good is an entry of each manager that is accepted.
var good = map[string]string{"apt": "figlet", "cargo": "ripgrep", "gem": "rake", "go": "golang.org/x/example/hello", "npm": "left-pad", "pip": "six"}
