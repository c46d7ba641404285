package control_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// errFault is what a call answers that is made to fail.
var errFault = errors.New("this call fails")

// faults counts calls of what is outside of control, and has one of them fail.
type faults struct {
	mu    sync.Mutex
	calls map[string]int // name → how often it was called
	name  string         // of the call that fails
	nth   int            // which of them, from 1
	after bool           // it fails when it has taken effect, else before
}

func (f *faults) call(name string, do func() error) error {
	f.mu.Lock()
	f.calls[name]++
	fails := f.name == name && f.nth == f.calls[name]
	f.mu.Unlock()
	if fails && !f.after {
		return errFault
	}
	if err := do(); err != nil || !fails {
		return err
	}
	return errFault
}

// result is call for what returns something.
func result[T any](f *faults, name string, do func() (T, error)) (out T, err error) {
	err = f.call(name, func() (err error) {
		out, err = do()
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return out, nil
}

type faultyEngine struct {
	control.Engine
	f *faults
}

func (e faultyEngine) Create(ctx context.Context, spec sandbox.Spec) error {
	return e.f.call("engine.Create", func() error { return e.Engine.Create(ctx, spec) })
}
func (e faultyEngine) Destroy(ctx context.Context, id string) error {
	return e.f.call("engine.Destroy", func() error { return e.Engine.Destroy(ctx, id) })
}
func (e faultyEngine) Checkpoint(ctx context.Context, id string) error {
	return e.f.call("engine.Checkpoint", func() error { return e.Engine.Checkpoint(ctx, id) })
}
func (e faultyEngine) Restore(ctx context.Context, id, netns string) error {
	return e.f.call("engine.Restore", func() error { return e.Engine.Restore(ctx, id, netns) })
}
func (e faultyEngine) Revive(ctx context.Context, id, netns string) error {
	return e.f.call("engine.Revive", func() error { return e.Engine.Revive(ctx, id, netns) })
}
func (e faultyEngine) Inspect(ctx context.Context, id string) (sandbox.Info, error) {
	return result(e.f, "engine.Inspect", func() (sandbox.Info, error) { return e.Engine.Inspect(ctx, id) })
}
func (e faultyEngine) Usage(ctx context.Context, id string) (sandbox.Usage, error) {
	return result(e.f, "engine.Usage", func() (sandbox.Usage, error) { return e.Engine.Usage(ctx, id) })
}
func (e faultyEngine) List(ctx context.Context) ([]sandbox.Info, error) {
	return result(e.f, "engine.List", func() ([]sandbox.Info, error) { return e.Engine.List(ctx) })
}
func (e faultyEngine) Exec(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Process, error) {
	return result(e.f, "engine.Exec", func() (sandbox.Process, error) { return e.Engine.Exec(ctx, id, cmd) })
}

type faultyNetwork struct {
	control.Network
	f *faults
}

func (n faultyNetwork) Open(ctx context.Context, id string, meta egress.Meta, p *egress.Policy) (string, error) {
	return result(n.f, "network.Open", func() (string, error) { return n.Network.Open(ctx, id, meta, p) })
}
func (n faultyNetwork) Reopen(ctx context.Context, id string) (string, error) {
	return result(n.f, "network.Reopen", func() (string, error) { return n.Network.Reopen(ctx, id) })
}
func (n faultyNetwork) Suspend(ctx context.Context, id string) error {
	return n.f.call("network.Suspend", func() error { return n.Network.Suspend(ctx, id) })
}
func (n faultyNetwork) Resume(ctx context.Context, id string) (string, error) {
	return result(n.f, "network.Resume", func() (string, error) { return n.Network.Resume(ctx, id) })
}
func (n faultyNetwork) Close(ctx context.Context, id string) error {
	return n.f.call("network.Close", func() error { return n.Network.Close(ctx, id) })
}
func (n faultyNetwork) List(ctx context.Context) ([]string, error) {
	return result(n.f, "network.List", func() ([]string, error) { return n.Network.List(ctx) })
}

type faultyStore struct {
	control.Store
	f *faults
}

func (s faultyStore) CreateSession(ctx context.Context, rec control.SessionRecord, initial ...control.EventRecord) error {
	return s.f.call("store.CreateSession", func() error { return s.Store.CreateSession(ctx, rec, initial...) })
}
func (s faultyStore) Session(ctx context.Context, workspace, id string) (control.SessionRecord, error) {
	return result(s.f, "store.Session", func() (control.SessionRecord, error) { return s.Store.Session(ctx, workspace, id) })
}
func (s faultyStore) DeleteSession(ctx context.Context, workspace, id string, check func(control.SessionRecord) error) error {
	return s.f.call("store.DeleteSession", func() error { return s.Store.DeleteSession(ctx, workspace, id, check) })
}
func (s faultyStore) LiveSessions(ctx context.Context, each func(control.SessionRecord) error) error {
	return s.f.call("store.LiveSessions", func() error { return s.Store.LiveSessions(ctx, each) })
}
func (s faultyStore) UnfinishedBuilds(ctx context.Context, each func(control.EnvironmentRecord) error) error {
	return s.f.call("store.UnfinishedBuilds", func() error { return s.Store.UnfinishedBuilds(ctx, each) })
}
func (s faultyStore) Build(ctx context.Context, environment string) (control.BuildRecord, error) {
	return result(s.f, "store.Build", func() (control.BuildRecord, error) { return s.Store.Build(ctx, environment) })
}
func (s faultyStore) PutBuild(ctx context.Context, rec control.BuildRecord, still func(control.EnvironmentRecord) bool) error {
	return s.f.call("store.PutBuild", func() error { return s.Store.PutBuild(ctx, rec, still) })
}

type faultyTemplates struct {
	control.Templates
	f *faults
}

func (t faultyTemplates) Ensure(ctx context.Context, name string, p image.Progress) (*image.Base, error) {
	return result(t.f, "builder.Ensure", func() (*image.Base, error) { return t.Templates.Ensure(ctx, name, p) })
}

// restart ends the server's part and begins another on the same world and store,
// once more if that one cannot begin.
func (r *rig) restart() (err error) {
	r.Helper()
	for range 2 {
		if err := errors.Join(r.builds.Shutdown(r.Context()), r.sandboxes.Shutdown(r.Context())); err != nil {
			r.Fatal(err)
		}
		r.open()
		if err = r.sandboxes.Reconcile(r.Context()); err == nil || errors.Is(err, control.ErrLeftBehind) {
			return err
		}
	}
	return err
}

// live lists the sessions that the store knows.
func (r *rig) live() (ids []string) {
	r.Helper()
	err := r.store.LiveSessions(r.Context(), func(rec control.SessionRecord) error {
		ids = append(ids, rec.ID)
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return ids
}

// lives has sessions go through all that can happen to their sandboxes. Between
// the steps each can be used, with one more try for the fault.
func (r *rig) lives() {
	create := api.SessionCreate{EnvironmentID: r.env, Agent: api.AgentChoice{ID: r.agent}}
	if env, err := r.service.CreateEnvironment(r.Context(), r.caller, api.EnvironmentCreate{Name: "another"}); err == nil {
		create.EnvironmentID = env.ID
	}
	for range 3 {
		_, _ = r.service.CreateSession(r.Context(), r.caller, create)
	}
	used := func() { r.canBeUsed("in the server that met the fault", 3) }
	used()
	time.Sleep(2 * control.DefaultHibernateAfter) // hibernate, and wake
	used()
	lost := map[string]bool{}
	for n, id := range r.live() { // die with and without their files
		if r.state(id) == sandbox.StateRunning {
			r.set(id, sandbox.StateStopped, n%2 == 0)
			lost[id] = n%2 != 0
		}
	}
	used()
	if ids := r.live(); len(ids) > 0 {
		_, err := r.service.DeleteSession(r.Context(), r.caller, ids[0])
		r.look(func() {
			if _, there := r.boxes[ids[0]]; err == nil && (there || r.networks[ids[0]]) {
				r.Errorf("session %s is deleted, and left a sandbox %t, a network %t", ids[0], there, r.networks[ids[0]])
			}
		})
		lost[ids[0]] = err != nil // it may be half removed
	}
	time.Sleep(2 * control.DefaultHibernateAfter)
	_ = r.restart()
	used()
	for len(r.events) > 0 {
		if id, told := strings.CutPrefix(<-r.events, "lost "); told && !lost[id] {
			r.Errorf("session %s was told of a loss that did not happen", id)
		}
	}
	if ids := r.live(); len(ids) > 0 {
		_, _ = r.service.ArchiveSession(r.Context(), r.caller, ids[0])
	}
}

// canBeUsed fails the test unless a command runs in each live session: the fault
// may come to it, and a loss is told to it once.
func (r *rig) canBeUsed(where string, tries int) {
	r.Helper()
	for _, id := range r.live() {
		var told error
		for range tries {
			err := r.run(id)
			if err == nil {
				told = nil
				break
			}
			told = errors.Join(told, err)
		}
		if told != nil {
			r.Errorf("a command %s: %v", where, told)
		}
	}
}

// throughFaults has sessions live through a fault, and checks that a server which
// starts afterwards finds or makes the world as the store says.
func throughFaults(t *testing.T, f *faults) {
	inBubble(t, func(r *rig) {
		r.wrap = func(out *outside) {
			out.Store, out.Engine = faultyStore{out.Store, f}, faultyEngine{out.Engine, f}
			out.Network, out.Templates = faultyNetwork{out.Network, f}, faultyTemplates{out.Templates, f}
		}
		_ = r.restart()
		r.lives()
		r.wrap = nil
		if err := r.restart(); err != nil {
			r.Errorf("reconciling after the fault: %v", err)
		}
		r.agrees()
		r.canBeUsed("in the next server", 2)
		r.agrees()
		for _, id := range r.live() {
			if _, err := r.service.DeleteSession(r.Context(), r.caller, id); err != nil {
				r.Error(err)
			}
		}
		r.empty()
	})
}

// TestFaults: each outside call fails, before and after it took effect; then the
// next server has sandboxes, networks and sessions agree, and every session that
// lives can be used.
func TestFaults(t *testing.T) {
	t.Parallel()
	none := &faults{calls: map[string]int{}}
	throughFaults(t, none)
	for _, name := range slices.Sorted(maps.Keys(none.calls)) {
		t.Logf("%-24s %d calls", name, none.calls[name])
		for nth := range min(none.calls[name], 8) { // how many builds are looked for varies a little
			for _, after := range []bool{false, true} {
				f := &faults{calls: map[string]int{}, name: name, nth: nth + 1, after: after}
				t.Run(fmt.Sprintf("%s/%d/after=%t", name, nth+1, after), func(t *testing.T) {
					t.Parallel()
					if throughFaults(t, f); f.calls[name] == 0 {
						t.Error("there was no such call")
					}
				})
			}
		}
	}
}

// A server that cannot find out which sandboxes there are must not begin, or it
// would put fresh ones in their place; one that cannot remove something may.
func TestReconcileMustKnow(t *testing.T) {
	t.Parallel()
	for name, mayBegin := range map[string]bool{
		"store.LiveSessions": false, "engine.List": false, "engine.Destroy": true, "network.List": true, "network.Close": true, "store.UnfinishedBuilds": true,
	} {
		inBubble(t, func(r *rig) {
			r.look(func() {
				r.boxes["sesn_nobody"] = sandbox.Info{ID: "sesn_nobody", State: sandbox.StateRunning}
				r.networks["sesn_nobody"], r.networks["stray"] = true, true
			})
			f := &faults{calls: map[string]int{}, name: name, nth: 1}
			r.wrap = func(out *outside) {
				out.Store, out.Engine, out.Network = faultyStore{out.Store, f}, faultyEngine{out.Engine, f}, faultyNetwork{out.Network, f}
			}
			r.open()
			if err := r.sandboxes.Reconcile(r.Context()); !errors.Is(err, errFault) || errors.Is(err, control.ErrLeftBehind) != mayBegin {
				r.Errorf("%s fails: %v, may begin: want %t", name, err, mayBegin)
			}
			if err := r.restart(); err != nil {
				r.Error(err)
			}
			r.agrees()
		})
	}
}

// A session whose sandbox cannot be removed is not deleted and keeps what is left.
func TestDeleteFails(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		inBubble(t, func(r *rig) {
			f := &faults{calls: map[string]int{}, name: "engine.Destroy", nth: 1, after: after}
			r.wrap = func(out *outside) { out.Engine = faultyEngine{out.Engine, f} }
			if err := r.restart(); err != nil {
				r.Fatal(err)
			}
			id := r.session()
			if err := r.run(id); err != nil {
				r.Fatal(err)
			}
			if _, err := r.service.DeleteSession(r.Context(), r.caller, id); !errors.Is(err, errFault) {
				r.Errorf("deleted with a sandbox that cannot be removed: %v", err)
			}
			switch err := r.run(id); {
			case after:
				r.fault(err, control.Conflict, "Its files are lost", "")
			case err != nil || r.creates != 1:
				r.Errorf("a command in the sandbox that is still there: %v, %d made", err, r.creates)
			}
			if _, err := r.service.DeleteSession(r.Context(), r.caller, id); err != nil {
				r.Error(err)
			}
			r.empty()
		})
	}
}
