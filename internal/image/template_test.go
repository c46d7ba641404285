package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDeclarationRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"field sweets not found":    "name: x\ndebian: {suite: s, sweets: [a]}",
		`"s" is not a suite bes`:    "name: x\ndebian: {suite: s, suites: {s: [a1]}}",
		`"-t" is not a suite bes`:   "name: x\ndebian: {suite: s, suites: {-t: [a1]}}",
		"which packages come":       "name: x\ndebian: {suite: s, suites: {t: []}}",
		`"src:*" is not a package`:  "name: x\ndebian: {suite: s, suites: {t: ['src:*']}}",
		"links: \"x\" is not a cle": "name: x\nfrom: base\nlinks: {x: /y}",
		"links: \"/tmp/x\" is in":   "name: x\nfrom: base\nlinks: {/tmp/x: /y}",
		"target must be 1 to 1024":  "name: x\nfrom: base\nlinks: {/x: ''}",
		"is one of files, too":      "name: x\nfrom: base\nfiles: {/x: y}\nlinks: {/x: y}",
		"packages.pip[0]":           "name: x\nfrom: base\npackages: {pip: ['--index-url']}",
		"field conda not found":     "name: x\nfrom: base\npackages: {conda: [x]}",
		"field packges not found":   "name: x\npackges: []\ndebian: {suite: s}",
		"more than one document":    "name: x\ndebian: {suite: s}\n---\nname: y",
		"already defined":           "name: x\nname: y\ndebian: {suite: s}",
		"name must be":              "name: ../x\ndebian: {suite: s}",
		"exactly one of debian":     "name: x",
		"exactly one of debian, ":   "name: x\ndebian: {suite: s}\ntarball: {path: /x, sha256: " + strings.Repeat("0", 64) + "}",
		"suite is needed":           "name: x\ndebian: {packages: [a]}",
		"not a package name":        "name: x\ndebian: {suite: s, packages: ['--purge']}",
		`"vim-" is not a package`:   "name: x\ndebian: {suite: s, packages: [vim-]}",
		"not a suite":               "name: x\ndebian: {suite: '-x'}",
		"without credentials":       "name: x\ndebian: {suite: s, mirror: 'http://user:pw@mirror.example.com/debian'}",
		"must begin with a regis":   "name: x\noci: {ref: 'library/debian'}",
		"oci.platform":              "name: x\noci: {ref: 'r.example.com/a:b', platform: windows/amd64}",
		"exactly one of path":       "name: x\ntarball: {sha256: " + strings.Repeat("0", 64) + "}",
		"64 lower-case hexadecimal": "name: x\ntarball: {path: /x, sha256: abc}",
		"must be absolute":          "name: x\ntarball: {path: x, sha256: " + strings.Repeat("0", 64) + "}",
		"only debian packages":      "name: x\nfrom: base\noci: {ref: 'r.example.com/a:b'}",
		"can only have packages":    "name: x\nfrom: base\ndebian: {suite: s}",
		`env "A-B"`:                 "name: x\ndebian: {suite: s}\nenv: {A-B: x}",
		"needs a command":           "name: x\ndebian: {suite: s}\nruntimes: {go: []}",
	} {
		if _, err := ParseDeclaration([]byte(text)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: got %v, want an error with %q", text, err, name)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	ts, err := NewTemplates(TemplatesConfig{CacheDir: t.TempDir(), Declarations: []Declaration{
		{Name: "ours", From: "slim", Debian: &Debian{Packages: []string{"less"}}, Env: map[string]string{"A": "b"},
			Packages: TemplatePackages{Pip: []string{"uv"}, Apt: []string{"tree"}}},
		{Name: "base", Tarball: &Tarball{Path: "/x", SHA256: strings.Repeat("0", 64)}},
		{Name: "code_interpreter", From: "ours", Packages: TemplatePackages{Pip: []string{"rich"}, AptRecommends: true}},
		{Name: "full", From: "ours"}, {Name: "hermes", From: "ours"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"base", "code_interpreter", "full", "hermes", "ours", "slim"}, ts.Names()); diff != "" {
		t.Error(diff)
	}
	got := ts.decls["code_interpreter"]
	if got.Debian == nil || got.Debian.Suite != "trixie" || !slices.Contains(got.Debian.Packages, "less") ||
		!slices.Contains(got.Debian.Packages, "curl") || got.Env["A"] != "b" || got.From != "" {
		t.Errorf("resolved to %+v", got)
	}
	if diff := cmp.Diff(TemplatePackages{Apt: []string{"tree"}, Pip: []string{"uv", "rich"}, AptRecommends: true}, got.Packages); diff != "" {
		t.Error(diff)
	}
	if ts.parents["code_interpreter"] != "ours" || ts.parents["ours"] != "" {
		t.Errorf("made from each other: %v", ts.parents)
	}
	if ts.Known("nope") || !ts.Known(ts.Default()) {
		t.Error("known templates are wrong")
	}
}

func TestNewTemplatesRefuses(t *testing.T) {
	t.Parallel()
	_, err := NewTemplates(TemplatesConfig{CacheDir: t.TempDir(),
		Declarations: []Declaration{
			{Name: "a", From: "b"}, {Name: "b", From: "a"}, {Name: "c", From: "nowhere"},
			{Name: "d", Debian: &Debian{Suite: "s"}}, {Name: "d", Debian: &Debian{Suite: "s"}},
			{Name: "base", Tarball: &Tarball{Path: "/x", SHA256: strings.Repeat("0", 64)}},
		},
		RegistryOverrides: map[string]map[string][]string{"nope": {"pip": nil}, "*": {"pipp": nil, "npm": {"http://x.example.com"}}},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	// code_interpreter adds packages to base, which is a tarball here.
	for _, want := range []string{"circular", `"nowhere" is not a template`, "declared twice", "can only be added to a debian",
		`no template "nope"`, `no package manager "pipp"`, "not a host name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// TestRuntimesTable holds docs/templates.md to the declaration of base.
func TestRuntimesTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "templates.md"))
	if err != nil {
		t.Fatal(err)
	}
	inDocs := map[string]string{}
	_, table, _ := strings.Cut(string(text), "| runtime | command | version prefix |")
	table, _, _ = strings.Cut(table, "\n\n")
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) == 5 && !strings.HasPrefix(cells[1], "-") {
			inDocs[strings.TrimSpace(cells[1])] = strings.Trim(cells[2], " `")
		}
	}
	builtins, err := Builtins()
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]string{}
	for _, d := range builtins {
		if d.Name == "base" {
			for name, argv := range d.Runtimes {
				declared[name] = strings.Join(argv, " ")
			}
		}
	}
	if diff := cmp.Diff(declared, inDocs); diff != "" {
		t.Errorf("docs/templates.md differs from the declaration of base (-declared +docs):\n%s", diff)
	}
}
