package atoll_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/atoll-run/atoll"

// house says which packages of this module each package may import, in its own
// code and, with more, in its tests. A package that is not listed fails.
// Changing the table is a change of design; docs/ARCHITECTURE.md says why it
// is as it is.
var house = map[string]struct{ imports, tests []string }{
	"api": {},
	// durable writes files whole and locks them; it decides once what outlives a crash.
	"internal/durable": {},
	// outbound makes every HTTP client, for whoever asks other servers; it knows nothing of this module.
	"internal/outbound":            {},
	"internal/sandbox":             {},
	"internal/sandbox/sandboxtest": {imports: []string{"internal/sandbox"}},
	"internal/sandbox/gvisor":      {imports: []string{"internal/sandbox", "internal/durable", "internal/sandbox/gvisor/guest/wire"}, tests: []string{"internal/sandbox/sandboxtest"}},
	// guest/tools runs the tools of agents inside sandboxes.
	"internal/sandbox/gvisor/guest/tools": {imports: []string{"internal/sandbox/gvisor/guest/wire"}},
	// guest is a program of its own that runs inside sandboxes; wire is what it and the engine say to each other.
	"internal/sandbox/gvisor/guest":      {imports: []string{"internal/sandbox/gvisor/guest/wire", "internal/sandbox/gvisor/guest/tools"}},
	"internal/sandbox/gvisor/guest/wire": {},
	"internal/egress":                    {imports: []string{"internal/durable"}},
	"internal/image":                     {imports: []string{"internal/outbound", "internal/durable"}},
	// lifecycle is the state machine of a session's sandbox; it knows nothing of this module.
	"internal/control/lifecycle": {},
	"internal/control":           {imports: []string{"api", "internal/control/lifecycle", "internal/sandbox", "internal/egress", "internal/image"}, tests: []string{"internal/store"}},
	// looptest plays an agent loop for tests.
	"internal/control/looptest": {imports: []string{"api", "internal/control"}},
	"internal/store":            {imports: []string{"internal/control", "internal/durable"}, tests: []string{"internal/store/storetest"}},
	"internal/store/storetest":  {imports: []string{"internal/control"}},
	"internal/httpapi":          {imports: []string{"api", "internal/control", "internal/sandbox", "internal/egress"}, tests: []string{"internal/store", "internal/httpapi/wiretest", "internal/control/looptest"}},
	// wiretest holds replies to the official OpenAPI document.
	"internal/httpapi/wiretest": {},
	"internal/agent":            {imports: []string{"api", "internal/control", "internal/agent/toolset", "internal/outbound"}, tests: []string{"internal/store", "internal/agent/modeltest", "internal/httpapi/wiretest"}},
	// modeltest is a scripted model; it is given from outside, so it knows nothing of this module.
	"internal/agent/modeltest": {},
	// toolset runs tool calls; it knows nothing of sessions' records or of who may do what.
	"internal/agent/toolset": {imports: []string{"api", "internal/sandbox", "internal/egress", "internal/outbound"}},
	// atolltest starts the program for tests, also of other people; it knows nothing of what is inside.
	"atolltest": {},
	"cmd/atoll": {imports: anything, tests: anything},
	"test/e2e":  {tests: anything},
	// clients brings official clients of other languages to the tests.
	"test/clients":     {},
	"test/conformance": {imports: anything, tests: anything},
	"test/security":    {imports: anything, tests: anything},
	// prober is a program of its own that runs inside sandboxes; wire is what it and the tests say to each other.
	"test/security/prober":      {imports: []string{"test/security/prober/wire"}},
	"test/security/prober/wire": {},
	"test/bench":                {imports: anything, tests: anything},
	// mutate changes source files and runs tests; it knows nothing of what they do.
	"test/mutate":        {},
	"test/scriptedmodel": {imports: []string{"internal/agent/modeltest"}},
}

// anything marks the packages that join the others.
var anything = []string{"*"}

// standardOnly are packages that import nothing from outside the standard
// library either.
var standardOnly = []string{"api", "internal/control/lifecycle"}

// TestImports parses every Go file of the module in this process: a test that
// asked the Go tool would be answered from the test cache after a forbidden
// import was added.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		if dir == "." {
			return nil // this test
		}
		seen[dir] = true
		checkFile(t, dir, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range slices.Sorted(maps.Keys(house)) {
		if !seen[dir] {
			t.Logf("%s is in the table and has no Go file", dir)
		}
	}
}

func checkFile(t *testing.T, dir, name string) {
	t.Helper()
	room, ok := house[dir]
	if !ok {
		t.Errorf("%s: the package is not in the table of import_test.go; a new package is a change of design", dir)
		return
	}
	test := strings.HasSuffix(name, "_test.go")
	may := room.imports
	if test {
		may = slices.Concat(room.imports, room.tests)
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		own, inside := strings.CutPrefix(imported, module+"/")
		first, _, _ := strings.Cut(imported, "/")
		switch {
		case inside && own != dir && !slices.Contains(may, own) && !slices.Contains(may, "*"):
			t.Errorf("%s imports %s, which %s may not", name, own, dir)
		case !inside && !test && slices.Contains(standardOnly, dir) && strings.Contains(first, "."):
			t.Errorf("%s imports %s; %s uses the standard library only", name, imported, dir)
		}
	}
}
