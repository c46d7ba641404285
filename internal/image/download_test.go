package image

import (
	"context"
	"errors"
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
	must(t, d.take(t.Context(), origin{"base", noLayer, "apt", names}, tree, nil, want))
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
	v, err := d.view(origin{base, noLayer, manager, names})
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
	must(t, d.take(t.Context(), origin{"base", noLayer, "apt", []string{"a"}}, tree, nil, []wanted{at("altered", digestOfText("fine")), at("good", digestOfText("good")), at("dir", digestOfText("")),
		at("link", digestOfText(string(passwd))), at("gone", digestOfText("gone")), {path: "tmp/zip", from: "tmp/good", gosum: "h1:x"}, {path: "tmp/none", from: "tmp/good"}}))
	if got := offeredTo(t, d, "base", "apt", "a"); !slices.Equal(got, []string{"good"}) {
		t.Errorf("got %q", got)
	}
	if u, err := d.Usage(); err != nil || u.Files != 1 || u.SizeBytes != 2*diskBlock || u.QuotaBytes != DefaultDownloadQuota {
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
	for i, text := range []string{"{", `{"base":"base","below":"none","manager":"apt","names":["a"],"files":[{"path":"../../etc/passwd","sha256":"` + digestOfText("two") + `","size":3}]}`} {
		must(t, os.WriteFile(filepath.Join(d.dir, "records", digestOfText(fmt.Sprint(i))), []byte(text), 0o600))
	}
	if after, err := d.records(); err != nil || len(after) != len(records) {
		t.Errorf("damaged records: %+v, %v", after, err)
	}
}

func TestDownloadsStayWithinTheirQuota(t *testing.T) {
	// Two lists of one small file: each takes two inodes with its record.
	const quota = 4 * bytesPerInode
	d := downloads(t, quota)
	for i := range 5 {
		taken(t, d, []string{fmt.Sprint("p", i)}, strings.Repeat(fmt.Sprint(i), 10))
		offeredTo(t, d, "base", "apt", "p0") // in use: never the least recently used one
		if u, err := d.Usage(); err != nil || u.SizeBytes > 4*diskBlock {
			t.Errorf("after %d lists: %+v, %v", i+1, u, err)
		}
	}
	for i, want := range []int{1, 0, 0, 0, 1} {
		if got := offeredTo(t, d, "base", "apt", fmt.Sprint("p", i)); len(got) != want {
			t.Errorf("p%d: %q", i, got)
		}
	}
	v, err := d.view(origin{"base", noLayer, "apt", []string{"p4"}})
	must(t, err)
	gone, err := d.Prune(0)
	if err != nil || gone.Files != 2 || gone.SizeBytes != 2*diskBlock {
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
	v, err := d.view(origin{"base", noLayer, "apt", []string{"a"}})
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

// Large files count as the blocks that they take.
func TestDownloadQuotaCountsBlocks(t *testing.T) {
	d := downloads(t, 20*diskBlock)
	for i := range 3 {
		tree := t.TempDir()
		text := strings.Repeat(fmt.Sprint(i), 6*diskBlock+1)
		write(t, tree+"/f", text, 0o600)
		must(t, d.take(t.Context(), origin{"base", noLayer, "apt", []string{fmt.Sprint(i)}}, tree, nil, []wanted{{path: "f", from: "f", sha256: digestOfText(text)}}))
		if u, err := d.Usage(); err != nil || u.SizeBytes > 20*diskBlock {
			t.Errorf("after %d: %+v, %v", i+1, u, err)
		}
	}
	if u, err := d.Usage(); err != nil || u.Files != 2 || u.SizeBytes != 2*(7+1)*diskBlock {
		t.Errorf("got %+v, %v", u, err)
	}
}

// A sparse file is no archive: it is neither read nor copied, whatever digest is
// stated for it. One with another digest is not copied; one that would take the
// host's reserve is not either, and a neighbour keeps its room.
func TestDownloadsAreLookedAtFirst(t *testing.T) {
	host := smallDisk(t, 32)
	d, err := OpenDownloads(DownloadsConfig{Dir: filepath.Join(host, "downloads"), Quota: 1 << 40})
	must(t, err)
	tree := t.TempDir()
	sparse(t, tree+"/sparse", 64<<30, 0)
	sparse(t, tree+"/holes", 1<<20, 0)
	holes, err := os.ReadFile(tree + "/holes")
	must(t, err)
	big := strings.Repeat("x", 30<<20)
	write(t, tree+"/big", big, 0o600)
	write(t, tree+"/other", strings.Repeat("y", 20<<20), 0o600)
	from := origin{"base", noLayer, "pip", []string{"a"}}
	before := freeOn(t, host)
	must(t, d.take(t.Context(), from, tree, nil, []wanted{
		{path: "sparse", from: "sparse", sha256: strings.Repeat("0", 64)}, {path: "holes", from: "holes", sha256: sumOf(holes)},
		{path: "other", from: "other", sha256: strings.Repeat("0", 64)}}))
	if u, err := d.Usage(); err != nil || u.Files != 0 {
		t.Errorf("kept %+v, %v", u, err)
	}
	if err := d.take(t.Context(), from, tree, nil, []wanted{{path: "big", from: "big", sha256: digestOfText(big)}}); !errors.Is(err, errHostReserve) {
		t.Errorf("got %v", err)
	}
	if after := freeOn(t, host); after != before {
		t.Errorf("%d bytes were free, now %d", before, after)
	}
	write(t, filepath.Join(host, "neighbour"), strings.Repeat("n", 1<<20), 0o600)
	ctx := &countedContext{Context: t.Context(), left: 5}
	if err := d.take(ctx, from, tree, nil, []wanted{{path: "other", from: "other", sha256: digestOfText(strings.Repeat("y", 20<<20))}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled copy: %v", err)
	}
}

// What was downloaded above layers of packages is for builders above exactly
// these layers: their code may have said what it liked. Records of old versions
// do not say where they come from.
func TestDownloadsStayAboveTheirLayers(t *testing.T) {
	d := downloads(t, 0)
	low, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	tree := t.TempDir()
	for _, below := range []string{noLayer, low} {
		text := "above " + below
		write(t, filepath.Join(tree, below), text, 0o600)
		must(t, d.take(t.Context(), origin{"base", below, "pip", []string{"p"}}, tree, nil, []wanted{{path: below, from: below, sha256: digestOfText(text)}}))
	}
	for below, want := range map[string]int{noLayer: 1, low: 2, other: 1} {
		v, err := d.view(origin{"base", below, "pip", []string{"p"}})
		must(t, err)
		if len(v.files) != want {
			t.Errorf("above %.4s: %d files are offered, want %d", below, len(v.files), want)
		}
		must(t, v.close())
	}
	old := `{"base":"base","manager":"pip","names":["p"],"files":[{"path":"f","sha256":"` + digestOfText("above "+low) + `","size":70}]}`
	must(t, os.WriteFile(filepath.Join(d.dir, "records", digestOfText("old")), []byte(old), 0o600))
	if records, err := d.records(); err != nil || len(records) != 2 {
		t.Errorf("%+v, %v", records, err)
	}
}
