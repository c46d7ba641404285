package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/dirhash"
)

// goTree is a builder's tree after go downloaded a module and, if known, the
// checksum database confirmed it.
func goTree(t *testing.T, word string, known bool) *os.Root {
	t.Helper()
	tree := t.TempDir()
	cache := filepath.Join(tree, scratchPath("go", "pkg", "mod", "cache", "download"))
	at := filepath.Join(cache, "example.com/!mod/@v/v1.0.0")
	mod := "module example.com/Mod\n"
	write(t, at+".zip", string(zipOf([][2]string{{"example.com/Mod@v1.0.0/go.mod", mod}, {"example.com/Mod@v1.0.0/main.go", "package main // " + word}})), 0o644)
	write(t, at+".mod", mod, 0o644)
	write(t, at+".info", `{"Version":"v1.0.0"}`, 0o644)
	write(t, filepath.Join(tree, scratchPath("go", "pkg", "mod", "example.com/!mod@v1.0.0/main.go")), word, 0o644)
	if known {
		zip, err := dirhash.HashZip(at+".zip", dirhash.Hash1)
		must(t, err)
		sum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(mod)), nil })
		must(t, err)
		write(t, filepath.Join(cache, "sumdb/sum.example.com/lookup/example.com/!mod@v1.0.0"),
			fmt.Sprintf("12\nexample.com/Mod v1.0.0 %s\nexample.com/Mod v1.0.0/go.mod %s\n\ngo.sum database tree\n", zip, sum), 0o644)
	}
	root, err := os.OpenRoot(tree)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

// Modules are taken by what the checksum database said, and used only if it
// says so again: go itself would not ask about a module that is kept from it.
func TestGoDownloads(t *testing.T) {
	d := downloads(t, 0)
	unknown, known := goTree(t, "one", false), goTree(t, "one", true)
	must(t, d.take(t.Context(), origin{"base", noLayer, "go", []string{"unknown"}}, unknown.Name(), nil, goWanted(nil, unknown)))
	must(t, d.take(t.Context(), origin{"base", noLayer, "go", []string{"known"}}, known.Name(), nil, goWanted(nil, known)))
	if got := offeredTo(t, d, "base", "go", "unknown"); len(got) != 0 {
		t.Errorf("a module that the database does not know is offered: %q", got)
	}
	if got := offeredTo(t, d, "base", "go", "known"); len(got) != 2 {
		t.Errorf("got %q, want the zip and the go.mod", got)
	}
	altered := goTree(t, "one", true)
	must(t, os.WriteFile(filepath.Join(altered.Name(), scratchPath("go", "pkg", "mod", "cache", "download", "example.com/!mod/@v/v1.0.0.zip")),
		zipOf([][2]string{{"example.com/Mod@v1.0.0/main.go", "evil"}}), 0o644))
	must(t, d.take(t.Context(), origin{"base", noLayer, "go", []string{"altered"}}, altered.Name(), nil, goWanted(nil, altered)))
	if got := offeredTo(t, d, "base", "go", "altered"); len(got) != 1 {
		t.Errorf("got %q, want the go.mod alone", got)
	}

	v, err := d.view(origin{"base", noLayer, "go", []string{"known"}})
	must(t, err)
	defer v.close()
	if err := checkGo(known, v); err != nil {
		t.Errorf("a module that the database confirmed: %v", err)
	}
	if err := checkGo(unknown, v); !errors.Is(err, errStale) {
		t.Errorf("a module that the database was not asked about: %v", err)
	}
}
