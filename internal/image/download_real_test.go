package image

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// mirrorFiles are what the mirror serves of a package: one download each.
var mirrorFiles = map[string]string{"apt": "_1.0_all.deb", "cargo": "-1.0.0.crate", "gem": "-1.0.gem", "npm": "-1.0.0.tgz", "pip": "-1.0-py3-none-any.whl"}

// TestDownloadsAreReused builds lists of real managers against a mirror that
// counts. The first has a package whose script alters what was downloaded and
// adds to it. A changed list downloads only what is new, and what was altered;
// a release that changed is downloaded again.
func TestDownloadsAreReused(t *testing.T) {
	base := realBase(t)
	m := newCountingMirror(t)
	m.publish(t, base, "word-one")
	settings := m.settings(t)
	open := openChroot(t, &boxHooks{})
	d := downloads(t, 0)
	var boxes atomic.Int64 // that are open
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), Downloads: d, OpenBox: func(ctx context.Context, spec BoxSpec) (Box, error) {
		spec.Layers = slices.Insert(slices.Clone(spec.Layers), 1, settings)
		box, err := open(ctx, spec)
		if err == nil {
			boxes.Add(1)
			box = countedBox{box, &boxes}
		}
		return box, err
	}})
	must(t, err)
	t.Cleanup(b.Close)
	one := func(p Packages, fresh bool) *Result {
		t.Helper()
		run, err := b.Start(Request{Base: base, Packages: p, Fresh: fresh})
		must(t, err)
		res, err := run.Wait(t.Context())
		if err != nil {
			t.Fatalf("%v\n%s", err, run.Log().Text())
		}
		res.Release()
		// A download is taken over after the layer is there.
		waitFor(t, "the sandboxes to go", func() bool { return boxes.Load() == 0 && idle(d) })
		return res
	}
	// Each manager's list is one environment's, so that each builder stands on
	// the template alone.
	build := func(fresh bool, names ...string) *Result {
		t.Helper()
		all := &Result{}
		for _, p := range []Packages{{Apt: names}, {Cargo: names}, {Gem: names}, {Npm: names}, {Pip: names}} {
			all.Layers = append(all.Layers, one(p, fresh).Layers...)
		}
		return all
	}
	served := func(what string, want map[string]int) {
		t.Helper()
		for manager, ext := range mirrorFiles {
			for name, n := range want {
				if got := m.count(name + ext); got != n {
					t.Errorf("%s: %s was downloaded %d times by %s, want %d", what, name, got, manager, n)
				}
			}
		}
	}
	build(false, "alpha", "gamma", "evil")
	served("the first list", map[string]int{"alpha": 1, "beta": 0, "gamma": 1})
	records, err := d.records()
	must(t, err)
	for _, r := range records {
		for _, f := range r.Files {
			content, err := os.ReadFile(d.blob(f.SHA256))
			must(t, err)
			if strings.Contains(string(content), "evil content") || strings.Contains(f.Path, "beta") {
				t.Errorf("%s: the package's script got %s into the cache", r.Manager, f.Path)
			}
		}
	}

	res := build(false, "alpha", "gamma", "beta")
	served("a changed list", map[string]int{"alpha": 0, "beta": 1, "gamma": 1})
	hasWord(t, res, "word-one", "word-two")

	m.publish(t, base, "word-two")
	res = build(true, "alpha", "gamma", "beta")
	served("the same versions with other content", map[string]int{"alpha": 1, "beta": 1, "gamma": 1})
	hasWord(t, res, "word-two", "word-one")

	// Above another manager's layer the files of the template's builders count,
	// and what is downloaded there counts for builders on the same layer only.
	above := func(what string, low, high []string, downloads int) {
		t.Helper()
		one(Packages{Npm: low, Pip: high}, false)
		if got := m.count("beta" + mirrorFiles["pip"]); got != downloads {
			t.Errorf("%s: beta was downloaded %d times by pip, want %d", what, got, downloads)
		}
	}
	_, err = d.Prune(0)
	must(t, err)
	above("the first list", []string{"alpha"}, []string{"beta"}, 1)
	above("a changed list on the same layer", []string{"alpha"}, []string{"beta", "gamma"}, 0)
	above("the same list on another layer", []string{"gamma"}, []string{"beta"}, 1)
	one(Packages{Pip: []string{"beta"}}, true)
	if got := m.count("beta" + mirrorFiles["pip"]); got != 1 {
		t.Errorf("on the template alone beta was downloaded %d times, want once: what came from above layers was offered", got)
	}
	above("on another layer, now that a builder on the template has it", []string{"alpha", "gamma"}, []string{"beta"}, 0)
}

// countedBox is counted as long as it is open.
type countedBox struct {
	Box
	open *atomic.Int64
}

// Close closes the box.
func (b countedBox) Close(ctx context.Context) error {
	defer b.open.Add(-1)
	return b.Box.Close(ctx)
}

// idle reports whether no builder stands on a view.
func idle(d *Downloads) bool {
	left, err := os.ReadDir(d.dir + "/views")
	return err == nil && len(left) == 0
}

// hasWord holds every layer to the release that it should be of.
func hasWord(t *testing.T, res *Result, word, other string) {
	t.Helper()
	for _, l := range res.Layers {
		if err := exec.Command("grep", "-rqa", word, l.Dir).Run(); err != nil {
			t.Errorf("the %s layer does not have %q: %v", l.Manager, word, err)
		}
		if err := exec.Command("grep", "-rqa", other, l.Dir).Run(); err == nil {
			t.Errorf("the %s layer has %q", l.Manager, other)
		}
	}
}
