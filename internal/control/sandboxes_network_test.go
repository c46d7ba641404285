package control_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/egress"
)

// A network that is taken apart under a sandbox is told to its session, once; so
// is one that cannot be had back after a restart.
func TestE222BrokenNetwork(t *testing.T) {
	virtual(t, func(r *rig) {
		id := r.session()
		if err := r.run(id); err != nil {
			r.Fatal(err)
		}
		r.look(func() {
			r.world.broken = []egress.Meta{{SessionID: "build-1", Source: egress.SourceBuild}, {SessionID: id, WorkspaceID: r.caller.Workspace}}
		})
		r.event("cut off " + id)
		if err := r.run(id); err != nil {
			r.Errorf("a command without network: %v", err)
		}
		r.look(func() { r.closed = errors.New("its table of names is damaged") })
		r.open()
		if err := r.sandboxes.Reconcile(r.Context()); err != nil {
			r.Fatal(err)
		}
		r.event("cut off " + id)
		if err := r.run(id); err != nil {
			r.Errorf("a command without network: %v", err)
		}
	})
}

// Without its network a session has no sandbox: none is started beside it.
func TestE214NoNetwork(t *testing.T) {
	r := newRig(t)
	r.mu.Lock()
	r.closed = errors.New("installing nf_tables rules: protocol not supported")
	r.mu.Unlock()
	id := r.session()
	if err := r.run(id); err == nil || !strings.Contains(err.Error(), "nf_tables") {
		t.Errorf("a command: %v", err)
	}
	r.mu.Lock()
	if r.creates != 0 || len(r.boxes) != 0 {
		t.Errorf("%d sandboxes were made without a network", r.creates)
	}
	r.closed = nil
	r.mu.Unlock()
	if err := r.run(id); err != nil {
		t.Errorf("with a network again: %v", err)
	}
}
