package image

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestTemplatePackages: what a template lists are layers below those of every environment, shared by them, and there
// also where an environment lists nothing.
func TestTemplatePackages(t *testing.T) {
	b, f := newFake(t, BuilderConfig{})
	request := f.request()
	request.Base.Packages = pipList("uv")
	alone, err := b.Build(t.Context(), request)
	must(t, err)
	defer alone.Release()
	if len(alone.Layers) != 1 || alone.Layers[0].Hit || alone.Layers[0].Parent != "" {
		t.Fatalf("without a list: %+v", alone.Layers)
	}
	request.Packages = pipList("rich")
	both, err := b.Build(t.Context(), request)
	must(t, err)
	defer both.Release()
	if len(both.Layers) != 2 || !both.Layers[0].Hit || both.Layers[1].Hit || both.Layers[1].Parent != alone.Layers[0].Key {
		t.Errorf("with a list: %+v", both.Layers)
	}
	if !slices.Equal(f.specs, []string{"uv", "rich"}) {
		t.Errorf("installed %q", f.specs)
	}
	keys := make([]string, 0, 2)
	for _, s := range plan(request.Base, request.Packages, 0, nil) {
		keys = append(keys, s.Key)
	}
	if !slices.Equal(keys, both.Keys()) {
		t.Errorf("planned %v, built %v", keys, both.Keys())
	}
}

// TestTemplatePackagesFail: who reads that a package of the template fails is told that it is the template's.
func TestTemplatePackagesFail(t *testing.T) {
	b, f := newFake(t, BuilderConfig{})
	request := f.request("rich")
	request.Base.Template, request.Base.Packages = "ours", pipList("broken")
	f.set(func(_ context.Context, specs []string) (int, string, error) {
		if specs[0] == "broken" {
			return 1, "ERROR: No matching distribution found for broken\n", nil
		}
		return 0, "", nil
	})
	_, err := b.Build(t.Context(), request)
	var failure *Failure
	if !errors.As(err, &failure) || !strings.HasPrefix(failure.Message, "packages of the template ours: pip: ") {
		t.Errorf("the template's package: %v", err)
	}
	request.Base.Packages = Packages{}
	request.Packages = pipList("broken")
	if _, err = b.Build(t.Context(), request); !errors.As(err, &failure) || !strings.HasPrefix(failure.Message, "pip: ") {
		t.Errorf("the environment's package: %v", err)
	}
	request.Base.Packages, request.Base.Managers = Packages{Npm: []string{"x"}}, map[string]string{"pip": "1"}
	if _, err = b.Build(t.Context(), request); !errors.As(err, &failure) || failure.Kind != KindToolchainMissing || failure.Manager != "npm" {
		t.Errorf("a manager that the template lacks: %v", err)
	}
}

// TestAptRecommends: with recommended packages a list is another layer, and apt is told; the lists of other managers stay
// the same.
func TestAptRecommends(t *testing.T) {
	base := &Base{Digest: "base", Arch: "amd64"}
	without := plan(base, Packages{Apt: []string{"xvfb"}}, 0, nil)[0]
	with := plan(base, Packages{Apt: []string{"xvfb"}, AptRecommends: true}, 0, nil)[0]
	if without.Key == with.Key || without.Recommends || !with.Recommends {
		t.Errorf("without %+v, with %+v", without, with)
	}
	for _, on := range []bool{false, true} {
		if s := plan(base, Packages{Pip: []string{"six"}, AptRecommends: on}, 0, nil)[0]; s.Recommends || s.Key != plan(base, pipList("six"), 0, nil)[0].Key {
			t.Errorf("pip's step: %+v", s)
		}
	}
	var calls [][]string
	f := &fakeBoxes{dir: t.TempDir()}
	box, err := f.Open(t.Context(), BoxSpec{})
	must(t, err)
	for _, s := range []Step{without, with} {
		in := &install{box: spyBox{box, &calls}, step: s, out: &lineWriter{emit: func(string) {}}, say: func(string) {}}
		must(t, in.tool(t.Context(), recipes["apt"], "xvfb"))
	}
	const option = "APT::Install-Recommends=true"
	if len(calls) != 2 || slices.Contains(calls[0], option) || !slices.Contains(calls[1], option) ||
		slices.Index(calls[1], option) > slices.Index(calls[1], "install") {
		t.Errorf("apt was called with %q", calls)
	}
}

// spyBox notes the commands that run in it.
type spyBox struct {
	Box
	calls *[][]string
}

func (b spyBox) Run(_ context.Context, c BoxCommand) (BoxExit, error) {
	*b.calls = append(*b.calls, c.Args)
	return BoxExit{}, nil
}
