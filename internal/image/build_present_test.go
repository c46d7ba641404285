package image

import (
	"context"
	"encoding/json"
	"testing"
)

// presentBox is a box whose pip finds everything there, and writes nothing.
type presentBox struct{ Box }

func (b presentBox) Run(ctx context.Context, c BoxCommand) (BoxExit, error) {
	if len(c.Args) < 6 || c.Args[1] != "-c" || c.Args[3] != "install" {
		return b.Box.Run(ctx, c)
	}
	list := []map[string]any{{"name": "unlisted", "version": "3"}}
	for _, s := range c.Args[5:] {
		list = append(list, map[string]any{"name": s, "version": "2"})
	}
	return BoxExit{}, json.NewEncoder(c.Stdout).Encode(map[string]any{"installed": list})
}

// Nothing to install is a good outcome: a layer without files, with the
// versions that are there.
func TestPackagesThatAreThere(t *testing.T) {
	f := &fakeBoxes{dir: t.TempDir()}
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: func(ctx context.Context, spec BoxSpec) (Box, error) {
		box, err := f.Open(ctx, spec)
		return presentBox{box}, err
	}})
	must(t, err)
	defer b.Close()
	res, err := b.Build(t.Context(), f.request("wheel", "numpy"))
	must(t, err)
	defer res.Release()
	l := res.Layers[0]
	if l.Files != 0 || len(l.Versions) != 2 || l.Versions[0].Name != "numpy" || l.Versions[0].Version != "2" || !l.Versions[0].Requested {
		t.Errorf("the layer is %+v", l)
	}
	if checked, err := VerifyLayers(t.Context(), b.cfg.LayersDir); err != nil || checked.Layers != 1 {
		t.Errorf("verified: %+v, %v", checked, err)
	}
}

// The same with real managers: what the template has, and a layer above it.
func TestPackagesThatAreThereReally(t *testing.T) {
	base := realBase(t)
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: openChroot(t, &boxHooks{})})
	must(t, err)
	defer b.Close()
	run, err := b.Start(Request{Base: base, Packages: Packages{Apt: []string{"coreutils", "bash"}, Pip: []string{"pip"}}})
	must(t, err)
	res, err := run.Wait(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, run.Log().Text())
	}
	defer res.Release()
	for i, want := range []int{2, 1} {
		if l := res.Layers[i]; len(l.Versions) != want || l.Versions[0].Version == "" || !l.Versions[0].Requested {
			t.Errorf("%s: %+v", l.Manager, l.Versions)
		}
	}
}
