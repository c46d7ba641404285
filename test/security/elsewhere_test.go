package security

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// shown is a test of another package that shows a number of the matrix: of the
// server, of builds with real registries, of the command line. A subtest, or the
// test itself, has the number in its name.
type shown struct {
	number, dir, test string
	inside            bool   // the attempt is made inside real sandboxes
	why               string // there is no second place
}

func elsewhere() []shown {
	const e2e = "test/e2e"
	return []shown{
		{"E072", e2e, "TestSessionPolicy", true, ""},
		{"E085", e2e, "TestBrowsers", true, ""},
		{"E086", e2e, "TestBrowsers", true, ""},
		{"E089", e2e, "TestClients", true, ""},
		{"E197", e2e, "TestSessionPolicy", true, "the server's, of whole sessions"},
		{"E198", e2e, "TestSessionPolicy", true, "the server's, of whole sessions"},
		{"E201", "internal/httpapi", "TestE201MCPHosts", false, "no sandbox is made"},
		{"E202", e2e, "TestTemplateRegistries", true, "the server's, of whole sessions"},
		{"E203", e2e, "TestSessionPolicy", true, "files; repositories and memory are not there yet"},
		{"E214", "internal/control", "TestE214NoNetwork", false, ""},
		{"E222", e2e, "TestSessionPolicy", true, ""},
		{"E223", e2e, "TestInside", true, ""},
		{"E271", e2e, "TestLayersAllManagers", true, "builds run in sandboxes only"},
		{"E273", e2e, "TestLayersMalicious", true, "builds run in sandboxes only"},
		{"E277", e2e, "TestLayersMalicious", true, "builds run in sandboxes only"},
		{"E278", e2e, "TestTemplateRegistries", true, "templates are asked in sandboxes only"},
		{"E279", e2e, "TestTemplateRegistries", true, "templates are asked in sandboxes only"},
		{"E280", e2e, "TestTemplateRegistries", true, "templates are asked in sandboxes only"},
		{"E290", e2e, "TestCommandEgress", true, "the command line's"},
		{"E293", e2e, "TestCommandEgress", true, "the API's"},
		{"E301", e2e, "TestE301Disk", true, "the server's, of whole sessions"},
		{"E302", e2e, "TestE302Inodes", true, "builds run in sandboxes only"},
		{"E303", e2e, "TestE303Descriptors", true, "the server's, of whole sessions"},
		{"E304", e2e, "TestE304Processes", true, "the server's, of whole sessions"},
		{"E305", e2e, "TestE305Memory", true, "the server's, of whole sessions"},
		{"E306", e2e, "TestE306Builds", true, "builds run in sandboxes only"},
		{"E307", e2e, "TestE307KeylessClients", true, "the server's, of whole sessions"},
	}
}

// numbered finds the number in an element of a test's name.
var numbered = regexp.MustCompile(`^(?:Test)?(E[0-9]{3})`)

// runElsewhere runs the tests of the other packages, and fails unless each
// number was shown by its test: the table is written from a run or not at all.
func runElsewhere() error {
	var dirs, tests []string
	for _, s := range elsewhere() {
		if dir := "./" + s.dir; !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
		if !slices.Contains(tests, s.test) {
			tests = append(tests, s.test)
		}
	}
	cmd := exec.Command("go", append([]string{"test", "-json", "-count=1", "-p=1", "-timeout=30m",
		"-run", "^(" + strings.Join(tests, "|") + ")$/^E[0-9]{3}"}, dirs...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "ATOLL_CI=1", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	verdicts, said := readVerdicts(out)
	var missing []string
	for _, s := range elsewhere() {
		if v := verdicts[s.dir+" "+s.test+" "+s.number]; v != "pass" {
			missing = append(missing, fmt.Sprintf("%s in %s %s: %q", s.number, s.dir, s.test, v))
		}
	}
	if err != nil || len(missing) > 0 {
		return fmt.Errorf("the tests of other packages: %v; not shown: %q\n%s", err, missing, said)
	}
	return nil
}

// readVerdicts takes "dir test number" → pass, fail or skip out of what go test
// -json says, and what failing tests printed.
func readVerdicts(out []byte) (verdicts map[string]string, said string) {
	verdicts = map[string]string{}
	printed := map[string]*strings.Builder{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e struct{ Action, Package, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		at := e.Package + " " + e.Test
		switch e.Action {
		case "output":
			if printed[at] == nil {
				printed[at] = &strings.Builder{}
			}
			printed[at].WriteString(e.Output)
		case "fail":
			if printed[at] != nil {
				said += printed[at].String()
			}
		}
		elements := strings.Split(e.Test, "/")
		m := numbered.FindStringSubmatch(elements[len(elements)-1])
		_, dir, _ := strings.Cut(e.Package, "/atoll/")
		if m == nil || !slices.Contains([]string{"pass", "fail", "skip"}, e.Action) {
			continue
		}
		// Whatever has the number has to hold.
		if key := dir + " " + elements[0] + " " + m[1]; verdicts[key] == "" || e.Action != "pass" {
			verdicts[key] = e.Action
		}
	}
	return verdicts, said
}

// elsewhereCells are the two cells of a number that other packages show, or
// empty.
func elsewhereCells(number string) (gvisor, plain string) {
	for _, s := range elsewhere() {
		if s.number != number {
			continue
		}
		held := fmt.Sprintf("held: `%s` %s", s.dir, s.test)
		if !s.inside {
			held = "without a sandbox: " + held
		}
		gvisor, plain = join(gvisor, held), join(plain, s.why)
	}
	return gvisor, plain
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// TestElsewhere: the tests that the table points at are there. That they hold is
// their own run's to say, and make security-table's.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	for _, s := range elsewhere() {
		files, err := filepath.Glob(filepath.Join("../..", s.dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			return err == nil && bytes.Contains(text, []byte("func "+s.test+"(")) &&
				(strings.HasPrefix(s.test, "Test"+s.number) || bytes.Contains(text, []byte(`"`+s.number)))
		})
		if !found {
			t.Errorf("%s has no %s with %s", s.dir, s.test, s.number)
		}
	}
}

// TestReadVerdicts: one failure among several is the number's verdict.
func TestReadVerdicts(t *testing.T) {
	t.Parallel()
	const at = `"Package":"example.com/atoll/a/b","Test":`
	got, said := readVerdicts([]byte(`{"Action":"pass",` + at + `"TestX/E001"}
{"Action":"output",` + at + `"TestX/E002_more","Output":"words\n"}
{"Action":"fail",` + at + `"TestX/E002_more"}
{"Action":"pass",` + at + `"TestX/E002"}
{"Action":"skip",` + at + `"TestE003Name"}
{"Action":"pass",` + at + `"TestX/E004/deeper"}
`))
	want := map[string]string{"a/b TestX E001": "pass", "a/b TestX E002": "fail", "a/b TestE003Name E003": "skip"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	if len(got) != len(want) || said != "words\n" {
		t.Errorf("got %v, %q", got, said)
	}
}
