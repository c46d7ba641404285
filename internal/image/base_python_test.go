package image

import (
	"path/filepath"
	"strings"
	"testing"
)

// Packages of the distribution get a record of their metadata alone; one that
// has a record keeps it, and an image without Python gets nothing.
func TestPythonOfImages(t *testing.T) {
	needRoot(t)
	t.Parallel()
	cache := t.TempDir()
	at := pythonPackages + "/"
	parts := []string{"usr", "usr/lib", "usr/lib/python3", pythonPackages, at + "own-1.dist-info", at + "six-1.17.0.dist-info", at + "six-1.17.0.dist-info/licenses", at + "old-1.egg-info"}
	var entries []entry
	for _, p := range parts {
		entries = append(entries, dir(p))
	}
	entries = append(entries, file(at+"own-1.dist-info/RECORD", "own"), file(at+"six-1.17.0.dist-info/METADATA", "Name: six"),
		file(at+"six-1.17.0.dist-info/licenses/LICENSE", "free"), file(at+"six.py", "code"))
	images := map[string][]byte{"python": archive(t, entries...), "plain": archive(t, dir("usr"))}
	var decls []Declaration
	for name, content := range images {
		writeFiles(t, cache, map[string][]byte{name + ".tar": content})
		decls = append(decls, Declaration{Name: name, Tarball: &Tarball{Path: filepath.Join(cache, name+".tar"), SHA256: sumOf(content)}})
	}
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: decls})
	must(t, err)
	base, err := ts.Ensure(t.Context(), "python", nil)
	must(t, err)
	got := listTree(t, base.Dir)
	const want = "-rw-r--r-- \"six-1.17.0.dist-info/METADATA\",,\n\"six-1.17.0.dist-info/RECORD\",,\n\"six-1.17.0.dist-info/licenses/LICENSE\",,\n"
	if got[at+"six-1.17.0.dist-info/RECORD"] != want {
		t.Errorf("six has %q", got[at+"six-1.17.0.dist-info/RECORD"])
	}
	if !strings.HasSuffix(got[at+"own-1.dist-info/RECORD"], " own") || got[at+"old-1.egg-info/RECORD"] != "" {
		t.Errorf("own has %q, old %q", got[at+"own-1.dist-info/RECORD"], got[at+"old-1.egg-info/RECORD"])
	}
	_, err = ts.Ensure(t.Context(), "plain", nil)
	must(t, err)
}
