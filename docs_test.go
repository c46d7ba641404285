package atoll_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentsNameWhatIsThere holds tables of the documents to the code that
// they repeat: each name that a pattern finds in a source file stands in the
// document between backquotes.
func TestDocumentsNameWhatIsThere(t *testing.T) {
	for _, test := range []struct{ document, source, pattern string }{
		{"docs/packages.md", "internal/image/failure.go", `(?m)^\tKind\w+ +Kind = "(\w+)"`},
		{"docs/packages.md", "internal/image/recipe.go", `(?m)^\t"([a-z]+)": +\{`},
		{"docs/operations.md", "internal/httpapi/observe.go", `Name: "(atoll_\w+)"`},
		{"docs/operations.md", "cmd/atoll/serve_metrics.go", `"(atoll_\w+)"`},
		{"docs/sandbox-api.md", "internal/httpapi/exec.go", `"([a-z]+_[a-z_]+)"`},
		{"docs/sandbox-api.md", "internal/egress/record.go", `(?m)^\tVerdict\w+ +Verdict = "(\w+)"`},
		{"docs/sandbox-api.md", "internal/egress/record.go", `(?m)^\tReason\w+ +Reason = "(\w+)"`},
		{"docs/sandbox-api.md", "internal/egress/record.go", `(?m)^\t[A-Z]\w+ +\S+ +.json:"(\w+)"`},
		{"docs/configuration.md", "cmd/atoll/serve.go", `setting:"(\w+)"`},
		{"docs/configuration.md", "cmd/atoll/client.go", `setting:"(\w+)"`},
	} {
		document, source := read(t, test.document), read(t, test.source)
		names := regexp.MustCompile(test.pattern).FindAllStringSubmatch(source, -1)
		if len(names) == 0 {
			t.Errorf("%s: nothing is found by %s", test.source, test.pattern)
		}
		for _, name := range names {
			if !regexp.MustCompile("[`\"]" + name[1] + "[`\"]").MatchString(document) {
				t.Errorf("%s does not name `%s` of %s", test.document, name[1], test.source)
			}
		}
	}
}

// TestDocumentsListRoutes holds the table of Atoll's own routes to the routes.
func TestDocumentsListRoutes(t *testing.T) {
	document := read(t, "docs/sandbox-api.md")
	routes := regexp.MustCompile(`all\["/atoll/v1([^"]+)"\] = methods\{(.*)\}`).FindAllStringSubmatch(read(t, "internal/httpapi/httpapi.go"), -1)
	if len(routes) == 0 {
		t.Fatal("no routes are found")
	}
	for _, route := range routes {
		path := strings.NewReplacer("/sessions/{id}", "/sessions/SESSION", "/environments/{id}", "/environments/ENVIRONMENT").Replace(route[1])
		for _, method := range regexp.MustCompile(`"([A-Z]+)":`).FindAllStringSubmatch(route[2], -1) {
			if !regexp.MustCompile("(?m)^\\|[^|]*`?" + method[1] + "`?[^|]* " + regexp.QuoteMeta(path) + "[`?]").MatchString(document) {
				t.Errorf("docs/sandbox-api.md does not list %s %s", method[1], path)
			}
		}
	}
}

// TestDocumentsLink follows the links between documents.
func TestDocumentsLink(t *testing.T) {
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, "README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
	for _, document := range documents {
		for _, link := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(read(t, document), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(document), link[1])); err != nil {
				t.Errorf("%s: %v", document, err)
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDocumentsNameTests: a test, benchmark or fuzz target that a document names
// between backquotes or after -run is there.
func TestDocumentsNameTests(t *testing.T) {
	there := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, "_test.go") {
			for _, found := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)`).FindAllStringSubmatch(read(t, name), -1) {
				there[found[1]] = true
			}
		}
		return err
	})
	documents, globErr := filepath.Glob("docs/*.md")
	if err := errors.Join(err, globErr); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, document := range append(documents, "README.md", "CONTRIBUTING.md", "SECURITY.md") {
		for _, found := range regexp.MustCompile("(?:`|-run '?|-fuzz )((?:Test|Fuzz|Benchmark)[A-Z]\\w+)").FindAllStringSubmatch(read(t, document), -1) {
			seen++
			if !there[found[1]] {
				t.Errorf("%s names %s, which is not there", document, found[1])
			}
		}
	}
	if seen < 10 {
		t.Errorf("%d names are found in the documents", seen)
	}
}
