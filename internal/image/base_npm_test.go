package image

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestNpmOfImages: an image with npm finds global packages everywhere and keeps
// npm from seeing how; one without npm gets no npm; what an image has stays.
func TestNpmOfImages(t *testing.T) {
	needRoot(t)
	t.Parallel()
	cache := t.TempDir()
	images := map[string][]byte{
		"node":  archive(t, dir("usr"), dir("usr/local"), dir("usr/local/bin"), symlink("usr/local/bin/npm", "../lib/npm-cli.js"), dir("usr/local/lib"), file("usr/local/lib/npm-cli.js", "#!/usr/bin/env node")),
		"plain": archive(t, dir("usr"), dir("usr/bin"), file("usr/bin/python3", "#!")),
		"own": archive(t, dir("node_modules"), file("node_modules/x", "own"), dir("usr"), dir("usr/bin"), file("usr/bin/npm", "#!"), dir("usr/local"), dir("usr/local/sbin"),
			file("usr/local/sbin/npm", "own"), symlink("usr/local/lib", "/lib/local")),
	}
	var decls []Declaration
	for name, content := range images {
		writeFiles(t, cache, map[string][]byte{name + ".tar": content})
		decls = append(decls, Declaration{Name: name, Tarball: &Tarball{Path: filepath.Join(cache, name+".tar"), SHA256: sumOf(content)}})
	}
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: decls})
	if err != nil {
		t.Fatal(err)
	}
	program, hook := "-rwxr-xr-x "+npmProgram, "-rw-r--r-- "+npmProjectHook
	for name, want := range map[string]map[string]string{
		"node": {"node_modules": "-> /usr/local/lib/node_modules", "usr/local/lib/node_modules": "drwxr-xr-x", "usr/local/lib/atoll/npm-project.js": hook,
			"usr/local/sbin/npm": program, "usr/local/sbin/npx": program},
		"plain": {"node_modules": "", "usr/local/sbin/npm": "", "usr/local/lib/atoll": ""},
		"own": {"node_modules": "drwxr-xr-x", "node_modules/x": "-rw-r--r-- own", "usr/local/sbin/npm": "-rw-r--r-- own", "usr/local/sbin/npx": program,
			"lib/local/atoll/npm-project.js": hook, "lib/local/node_modules": "drwxr-xr-x"},
	} {
		base, err := ts.Ensure(t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := listTree(t, base.Dir)
		for path, want := range want {
			if !strings.HasPrefix(got[path], want) || want == "" && got[path] != "" {
				t.Errorf("%s: %s is %q, want %q", name, path, got[path], want)
			}
		}
	}
	// The programs and the hook name one place.
	if !strings.Contains(npmProgram, " /usr/local/lib/atoll/npm-project.js ") || !strings.Contains(npmProjectHook, "'/"+npmModules+"'") {
		t.Error("a path in the hooks is another")
	}
}
