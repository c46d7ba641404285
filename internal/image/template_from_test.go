package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTemplateFrom makes a template from another's root: settings over it, the
// rest shared, the other one untouched.
func TestTemplateFrom(t *testing.T) {
	needRoot(t)
	t.Parallel()
	cache := t.TempDir()
	source := archive(t, dir("etc"), file("etc/gemrc", "old"), file("etc/x", "y"), dir("usr"), file("usr/tool", "#!"))
	writeFiles(t, cache, map[string][]byte{"a.tar": source})
	ts, err := NewTemplates(TemplatesConfig{CacheDir: cache, Declarations: []Declaration{
		{Name: "low", Tarball: &Tarball{Path: filepath.Join(cache, "a.tar"), SHA256: sumOf(source)}, Env: map[string]string{"A": "low", "B": "low"}},
		{Name: "high", From: "low", Env: map[string]string{"B": "high", "PATH": "/only"},
			Files: map[string]string{"/etc/gemrc": "new", "/opt/a/b": "deep"}, Links: map[string]string{"/etc/x": "gemrc", "/opt/a/c": "/nowhere"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	high, err := ts.Ensure(t.Context(), "high", nil)
	if err != nil {
		t.Fatal(err)
	}
	low, ok := ts.Lookup("low")
	if !ok {
		t.Fatal("the template below was not kept")
	}
	want := listTree(t, low.Dir)
	if want["etc/gemrc"] != "-rw-r--r-- old" {
		t.Errorf("the template below has changed: %v", want)
	}
	want["etc/gemrc"], want["opt"], want["opt/a"], want["opt/a/b"] = "-rw-r--r-- new", "drwxr-xr-x", "drwxr-xr-x", "-rw-r--r-- deep"
	want["etc/x"], want["opt/a/c"] = "-> gemrc", "-> /nowhere"
	got := listTree(t, high.Dir)
	for _, name := range []string{"opt", "opt/a"} { // whatever is said of a directory
		if strings.HasPrefix(got[name], want[name]) {
			want[name] = got[name]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the tree (-want +got):\n%s", diff)
	}
	a, err := os.Stat(low.Dir + "/usr/tool")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Stat(high.Dir + "/usr/tool")
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(a, b) {
		t.Error("the two have a file each")
	}
	for _, kv := range []string{"A=low", "B=high", "PATH=/only", "HOME=/root"} {
		if !slices.Contains(high.Env, kv) {
			t.Errorf("%s is not in %v", kv, high.Env)
		}
	}
	if high.Digest == low.Digest {
		t.Error("both have one digest")
	}
}

func TestTemplateFilesRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"etc/x", "/", "/etc/../x", "/etc/x/", "/proc/x", "/tmp/x", "/mnt/session/uploads/x", "/etc/a\nb"} {
		d := Declaration{Name: "x", From: "base", Files: map[string]string{name: ""}}
		if err := d.Validate(); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
	d := Declaration{Name: "x", From: "base", Files: map[string]string{"/etc/x": strings.Repeat("x", 1<<20+1)}}
	if err := d.Validate(); err == nil {
		t.Error("too much content was accepted")
	}
}
