package control_test

import (
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/image"
)

func (r *rig) cache() *control.Cache {
	r.Helper()
	downloads, err := image.OpenDownloads(image.DownloadsConfig{Dir: r.TempDir()})
	if err != nil {
		r.Fatal(err)
	}
	return &control.Cache{Store: r.store, Workspaces: r.store, Builder: r.builder, Templates: r.templates, Builds: r.builds, Downloads: downloads}
}

// A layer that is dropped by the beginning of its key is built again for the
// environment that refers to it, which is named.
func TestCacheDrop(t *testing.T) {
	r := buildRig(t)
	r.update("list")
	key := r.ends(api.BuildReady, "list").Layers[0].Key
	cache := r.cache()
	for bad, kind := range map[string]control.Kind{key[:7]: control.Invalid, "": control.Invalid, strings.Repeat("z", 64): control.NotFound, "../" + key: control.NotFound} {
		if _, err := cache.Drop(t.Context(), bad); r.kind(err) != kind {
			t.Errorf("%q: %v", bad, err)
		}
	}
	_, release, err := r.builder.Hold([]string{key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Drop(t.Context(), key); r.kind(err) != control.Conflict || !strings.Contains(err.Error(), r.env) {
		t.Errorf("while it is held: %v", err)
	}
	release()
	gone, err := cache.Drop(t.Context(), key[:12])
	if err != nil || len(gone.Layers) != 1 || gone.Layers[0].Key != key || len(gone.Environments) != 1 || gone.Environments[0] != r.env || gone.SizeBytes == 0 {
		t.Fatalf("dropped %+v, %v", gone, err)
	}
	if err := r.run(r.session()); err != nil {
		t.Error(err)
	}
	if n := r.installs.count("list"); n != 2 {
		t.Errorf("%d installs, want 2", n)
	}
}

// After a workspace's epoch was raised, no layer from before is used for its new
// sandboxes, although it is young; what was installed before stays for the
// others, and the epoch outlives the server.
func TestRaisedEpoch(t *testing.T) {
	r := buildRig(t)
	r.update("list")
	before := r.ends(api.BuildReady, "list").Layers[0].Key
	old := r.session()
	if err := r.run(old); err != nil {
		t.Fatal(err)
	}
	cache := r.cache()
	if _, err := cache.RaiseEpoch(t.Context(), "no such"); r.kind(err) != control.NotFound {
		t.Errorf("got %v", err)
	}
	raised, err := cache.RaiseEpoch(t.Context(), r.caller.Workspace)
	if err != nil || raised.Epoch < 1 || raised.Workspace != r.caller.Workspace {
		t.Fatalf("raised %+v, %v", raised, err)
	}
	if err := r.run(old); err != nil || r.installs.count("list") != 1 {
		t.Errorf("the session from before: %v, %d installs", err, r.installs.count("list"))
	}
	if err := r.run(r.session()); err != nil {
		t.Error(err)
	}
	after := r.ends(api.BuildReady, "list").Layers[0].Key
	if n := r.installs.count("list"); n != 2 || after == before {
		t.Errorf("%d installs, want 2; key %s, before %s", n, after, before)
	}
	if _, err := r.builder.Layer(before); err != nil {
		t.Errorf("the layer of the old epoch: %v", err)
	}
	again, err := cache.RaiseEpoch(t.Context(), r.caller.Workspace)
	if err != nil || again.Epoch <= raised.Epoch {
		t.Errorf("raised again: %+v, %v", again, err)
	}
	r.open() // another server
	if err := r.run(r.session()); err != nil {
		t.Error(err)
	}
	if n := r.installs.count("list"); n != 3 {
		t.Errorf("after a restart: %d installs, want 3", n)
	}
}
