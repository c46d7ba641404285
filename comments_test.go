package atoll_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestComments: each package has a comment, and so has each exported field of an
// exported struct, above it or behind it. A reader learns from it what the field
// means, its unit, and what empty stands for.
func TestComments(t *testing.T) {
	described := map[string]bool{}
	bare := map[string][]string{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "bin"):
			return filepath.SkipDir
		case !strings.HasSuffix(name, ".go"):
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(name))
		described[pkg] = described[pkg] || file.Doc != nil
		if !strings.HasSuffix(name, "_test.go") {
			bare[pkg] = append(bare[pkg], bareIn(file)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range slices.Sorted(maps.Keys(described)) {
		if !described[pkg] && pkg != "." { // the root holds tests of the tree alone
			t.Errorf("package %s has no comment", pkg)
		}
		if got := bare[pkg]; len(got) > 0 {
			t.Errorf("package %s: exported fields have no comment: %s", pkg, strings.Join(got, ", "))
		}
	}
}

// bareIn are the exported fields of a file's exported structs without a comment.
func bareIn(file *ast.File) []string {
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || !spec.Name.IsExported() {
			return true
		}
		fields, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, f := range fields.Fields.List {
			for _, name := range f.Names {
				if name.IsExported() && f.Doc == nil && f.Comment == nil {
					out = append(out, spec.Name.Name+"."+name.Name)
				}
			}
		}
		return true
	})
	return out
}
