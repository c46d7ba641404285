package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func digestOfText(s string) string { return sumOf([]byte(s)) }

// downloads is a cache with a clock that steps a second at each look.
func downloads(t *testing.T, quota int64) *Downloads {
	t.Helper()
	now := time.Now().Add(-24 * time.Hour)
	d, err := OpenDownloads(DownloadsConfig{Dir: t.TempDir(), Quota: quota, Now: func() time.Time { now = now.Add(time.Second); return now }})
	must(t, err)
	return d
}

// taken puts files with these contents into the cache, as the list's.
func taken(t *testing.T, d *Downloads, names []string, contents ...string) {
	t.Helper()
	tree := t.TempDir()
	var want []wanted
	for _, c := range contents {
		write(t, filepath.Join(tree, "tmp", c), c, 0o600)
		want = append(want, wanted{path: "tmp/" + c, from: "tmp/" + c, sha256: digestOfText(c)})
	}
	must(t, d.take("base", "apt", names, tree, nil, want))
	now := d.now()
	records, err := d.records()
	must(t, err)
	for _, r := range records {
		if slices.Equal(r.Names, names) {
			must(t, os.Chtimes(r.path, now, now))
		}
	}
}

// offeredTo lists what a list is offered.
func offeredTo(t *testing.T, d *Downloads, base, manager string, names ...string) []string {
	t.Helper()
	v, err := d.view(base, manager, names)
	must(t, err)
	if v == nil {
		return nil
	}
	defer func() { must(t, v.close()) }()
	var got []string
	for at := range v.files {
		content, err := os.ReadFile(filepath.Join(v.dir, at))
		must(t, err)
		got = append(got, string(content))
	}
	slices.Sort(got)
	return got
}

func TestDownloadsAreSharedByName(t *testing.T) {
	d := downloads(t, 0)
	taken(t, d, []string{"a", "b"}, "one", "two")
	taken(t, d, []string{"c"}, "three")
	for _, tt := range []struct {
		base, manager, names string
		want                 string
	}{
		{"base", "apt", "b", "one two"}, {"base", "apt", "x,c", "three"}, {"base", "apt", "a,c", "one three two"},
		{"base", "apt", "x", ""}, {"base", "pip", "a", ""}, {"other", "apt", "a", ""},
	} {
		if got := strings.Join(offeredTo(t, d, tt.base, tt.manager, strings.Split(tt.names, ",")...), " "); got != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(d.dir, "views")); len(left) > 0 {
		t.Errorf("views are left: %v", left)
	}
}

// What package code left in place of a download is not what the index states.
func TestDownloadsAreNotTakenAltered(t *testing.T) {
	d := downloads(t, 0)
	tree := t.TempDir()
	write(t, tree+"/tmp/altered", "evil", 0o644)
	write(t, tree+"/tmp/good", "good", 0o644)
	write(t, t.TempDir()+"/outside", "outside", 0o644)
	must(t, os.Symlink("/etc/passwd", tree+"/tmp/link"))
	must(t, os.Mkdir(tree+"/tmp/dir", 0o755))
	passwd, err := os.ReadFile("/etc/passwd")
	must(t, err)
	at := func(name, sum string) wanted { return wanted{path: "tmp/" + name, from: "tmp/" + name, sha256: sum} }
	must(t, d.take("base", "apt", []string{"a"}, tree, nil, []wanted{at("altered", digestOfText("fine")), at("good", digestOfText("good")), at("dir", digestOfText("")),
		at("link", digestOfText(string(passwd))), at("gone", digestOfText("gone")), {path: "tmp/zip", from: "tmp/good", gosum: "h1:x"}, {path: "tmp/none", from: "tmp/good"}}))
	if got := offeredTo(t, d, "base", "apt", "a"); !slices.Equal(got, []string{"good"}) {
		t.Errorf("got %q", got)
	}
	if u, err := d.Usage(); err != nil || u.Files != 1 || u.SizeBytes != 4 || u.QuotaBytes != DefaultDownloadQuota {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestDamagedDownloadIsNotOffered(t *testing.T) {
	d := downloads(t, 0)
	taken(t, d, []string{"a"}, "one", "two")
	must(t, os.WriteFile(d.blob(digestOfText("one")), []byte("enO"), 0o644))
	if got := offeredTo(t, d, "base", "apt", "a"); !slices.Equal(got, []string{"two"}) {
		t.Errorf("got %q", got)
	}
	if _, err := os.Stat(d.blob(digestOfText("one"))); !os.IsNotExist(err) {
		t.Errorf("the damaged file is still there: %v", err)
	}
	taken(t, d, []string{"a"}, "one", "two")
	if got := offeredTo(t, d, "base", "apt", "a"); len(got) != 2 {
		t.Errorf("downloaded again: got %q", got)
	}
	records, err := d.records()
	must(t, err)
	for i, text := range []string{"{", `{"base":"base","manager":"apt","names":["a"],"files":[{"path":"../../etc/passwd","sha256":"` + digestOfText("two") + `","size":3}]}`} {
		must(t, os.WriteFile(filepath.Join(d.dir, "records", digestOfText(fmt.Sprint(i))), []byte(text), 0o600))
	}
	if after, err := d.records(); err != nil || len(after) != len(records) {
		t.Errorf("damaged records: %+v, %v", after, err)
	}
}

func TestDownloadsStayWithinTheirQuota(t *testing.T) {
	d := downloads(t, 25)
	for i := range 5 {
		taken(t, d, []string{fmt.Sprint("p", i)}, strings.Repeat(fmt.Sprint(i), 10))
		offeredTo(t, d, "base", "apt", "p0") // in use: never the least recently used one
		if u, err := d.Usage(); err != nil || u.SizeBytes > 25 {
			t.Errorf("after %d lists: %+v, %v", i+1, u, err)
		}
	}
	for i, want := range []int{1, 0, 0, 0, 1} {
		if got := offeredTo(t, d, "base", "apt", fmt.Sprint("p", i)); len(got) != want {
			t.Errorf("p%d: %q", i, got)
		}
	}
	v, err := d.view("base", "apt", []string{"p4"})
	must(t, err)
	gone, err := d.Prune(0)
	if err != nil || gone.Files != 2 || gone.SizeBytes != 20 {
		t.Errorf("pruned %+v, %v", gone, err)
	}
	if text, err := os.ReadFile(v.dir + "/tmp/" + strings.Repeat("4", 10)); err != nil || len(text) != 10 {
		t.Errorf("a builder lost what it was given: %v", err)
	}
	must(t, v.close())
	if u, err := d.Usage(); err != nil || u.Files != 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// A view is left by a server that was killed; one that is in use is not touched.
func TestAbandonedViewsGo(t *testing.T) {
	d := downloads(t, 0)
	taken(t, d, []string{"a"}, "one")
	v, err := d.view("base", "apt", []string{"a"})
	must(t, err)
	left := filepath.Join(d.dir, "views", "view-left")
	must(t, os.Mkdir(left, 0o755))
	long := time.Now().Add(-72 * time.Hour)
	must(t, os.Chtimes(left, long, long))
	must(t, os.Chtimes(v.dir, long, long))
	_, err = d.Prune(DefaultDownloadQuota)
	must(t, err)
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("the abandoned view: %v", err)
	}
	if _, err := os.Stat(v.dir); err != nil {
		t.Errorf("the view in use: %v", err)
	}
	must(t, v.close())
}

// What is told after package code began is not believed.
func TestWitness(t *testing.T) {
	var w witness
	w.hear([]byte(`noise
{"files":{"a.whl":["https://pip.example.com/a.whl","` + digestOfText("a") + `"]}}
{"code":true}
{"files":{"b.whl":["https://pip.example.com/b.whl","` + digestOfText("b") + `"]}}
` + digestOfText("c") + `  /tmp/c.deb
{"installed":[{"name":"a","version":"1","new":true}]}`))
	if len(w.files) != 1 || w.files["a.whl"] == nil || !w.code || len(w.installed) != 1 || !w.installed[0].fresh {
		t.Errorf("got %+v", w)
	}
	var npm witness
	npm.hear([]byte(`{"installed":[{"name":"b","version":"1"},{"name":"a","version":"2"},{"name":"b","version":"1","top":true}]}`))
	if n := npm.installed; len(n) != 3 || n[0].Name != "a" || !n[1].top || n[2].top {
		t.Errorf("the listing's order is %+v", n)
	}
	var late witness
	late.hear([]byte(`{"code":true}` + "\n" + `{"files":{"b.whl":["https://pip.example.com/b.whl","` + digestOfText("b") + `"]}}`))
	if late.files != nil {
		t.Errorf("got %+v", late)
	}
	w = witness{files: map[string][]string{"../x": {"https://a.example.com/x", digestOfText("x")}, "x": {"https://user:word@a.example.com/x", digestOfText("x")},
		"y": {"file:///etc/passwd", digestOfText("x")}, "z": {"https://a.example.com/x", "short"}}}
	if got := pipWanted(&w, nil); len(got) != 0 {
		t.Errorf("got %+v", got)
	}
}

// What a manager tells comes out of a sandbox: it names files of the scratch
// space or nothing.
func FuzzWitness(f *testing.F) {
	f.Add([]byte(`{"files":{"a.whl":["https://pip.example.com/a.whl","` + digestOfText("a") + `"],"a.gem":["/var/lib/gems/cache/a.gem","` + digestOfText("a") + `"]}}`))
	f.Add([]byte(digestOfText("c") + "  /tmp/../c.deb\n" + `{"code":true}`))
	f.Add([]byte("name = \"../a\"\nversion = \"1\"\nchecksum = \"" + digestOfText("a") + "\"\n"))
	f.Add([]byte("'http://a.example.com/x' ../x.deb 1 SHA256:" + digestOfText("a")))
	f.Fuzz(func(t *testing.T, told []byte) {
		var w witness
		w.hear(told)
		all := []witness{w, {files: lockFiles(told)}, {files: aptURIs(told)}}
		for _, w := range all {
			for _, find := range []func(*witness, *os.Root) []wanted{pipWanted, aptWanted, gemWanted} {
				for _, got := range find(&w, nil) {
					if !strings.HasPrefix(filepath.Clean(got.path), scratchPath()+"/") || got.content == nil && (!filepath.IsLocal(got.from) || !layerKey.MatchString(got.sha256)) {
						t.Fatalf("%q became %+v", told, got)
					}
				}
			}
		}
	})
}
