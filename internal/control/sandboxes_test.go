package control_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/store"
)

// world is a hand-written engine and network that remember what exists.
type world struct {
	control.Engine // what is not written below is not called

	mu        sync.Mutex
	boxes     map[string]sandbox.Info
	networks  map[string]bool
	failNext  error         // of the next Create
	closed    error         // of every Open and Reopen of a network, if set
	creates   int           // calls of Create
	broken    []egress.Meta // networks that Broken will tell of
	hold      chan struct{} // Create waits for it, if set
	waitErr   error         // of every process
	processes int
	process   sandbox.Process // what Exec returns, if set

	suspended   map[string]bool // networks
	checkpoints int
	restores    int
	revives     int
	oomKills    map[string]int64 // sandbox → processes that the memory limit ended; nil means none
	restoreErr  []error          // of the next Restores
	busy        bool             // Checkpoint answers ErrBusy
	refused     int              // how often it did
	took        time.Duration    // of each Checkpoint and Restore
}

func (w *world) Inspect(_ context.Context, id string) (sandbox.Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	info, there := w.boxes[id]
	if !there {
		return info, sandbox.ErrNotFound
	}
	return info, nil
}

// Usage reports what the world's memory limit did.
func (w *world) Usage(_ context.Context, id string) (sandbox.Usage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return sandbox.Usage{OOMKills: w.oomKills[id]}, nil
}

// set changes a sandbox as what happens to it does.
func (w *world) set(id string, state sandbox.State, files bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	info := w.boxes[id]
	info.State, info.Files = state, files
	w.boxes[id] = info
}

// takes has time pass for work that takes some.
func (w *world) takes() {
	w.mu.Lock()
	took := w.took
	w.mu.Unlock()
	time.Sleep(took)
}

func (w *world) Checkpoint(_ context.Context, id string) error {
	w.takes()
	w.mu.Lock()
	defer w.mu.Unlock()
	info, there := w.boxes[id]
	switch {
	case !there:
		return sandbox.ErrNotFound
	case info.State != sandbox.StateRunning:
		return sandbox.ErrNotRunning
	case w.busy:
		w.refused++
		return sandbox.ErrBusy
	}
	w.checkpoints++
	info.State, info.Files = sandbox.StateHibernated, true
	w.boxes[id] = info
	return nil
}

func (w *world) Restore(_ context.Context, id, netns string) error {
	w.takes()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.restores++
	if len(w.restoreErr) > 0 {
		err := w.restoreErr[0]
		w.restoreErr = w.restoreErr[1:]
		return err
	}
	return w.back(id, netns, sandbox.StateHibernated)
}

func (w *world) Revive(_ context.Context, id, netns string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revives++
	return w.back(id, netns, sandbox.StateStopped, sandbox.StateHibernated)
}

func (w *world) back(id, netns string, from ...sandbox.State) error {
	info, there := w.boxes[id]
	switch {
	case !there:
		return sandbox.ErrNotFound
	case info.State == sandbox.StateRunning:
		return sandbox.ErrRunning
	case !info.Files:
		return sandbox.ErrFilesLost
	case !slices.Contains(from, info.State):
		return sandbox.ErrNotRunning
	case netns != "/run/netns/"+id || w.suspended[id]:
		return errors.New("brought back without its network")
	}
	info.State = sandbox.StateRunning
	w.boxes[id] = info
	return nil
}

func (w *world) Create(ctx context.Context, spec sandbox.Spec) error {
	w.mu.Lock()
	hold := w.hold
	w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.creates++
	if err := w.failNext; err != nil {
		w.failNext = nil
		return err
	}
	if _, there := w.boxes[spec.ID]; there {
		return sandbox.ErrExists
	}
	w.boxes[spec.ID] = sandbox.Info{ID: spec.ID, State: sandbox.StateRunning, Labels: spec.Labels}
	return nil
}

type ended struct {
	sandbox.Process
	err error
}

func (p ended) Wait(context.Context) (sandbox.Exit, error) { return sandbox.Exit{}, p.err }

func (w *world) Exec(_ context.Context, id string, _ sandbox.Command) (sandbox.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	info, there := w.boxes[id]
	if !there {
		return nil, sandbox.ErrNotFound
	}
	if info.State == sandbox.StateHibernated {
		return nil, sandbox.ErrHibernated
	}
	if info.State != sandbox.StateRunning {
		return nil, sandbox.ErrNotRunning
	}
	w.processes++
	if w.process != nil {
		return w.process, nil
	}
	return ended{err: w.waitErr}, nil
}

func (w *world) Destroy(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.boxes, id)
	return nil
}

// network is the world's other half; its List would collide with the engine's.
type network struct{ w *world }

func (n network) Open(_ context.Context, id string, _ egress.Meta, _ *egress.Policy) (string, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.w.closed != nil {
		return "", n.w.closed
	}
	n.w.networks[id] = true
	return "/run/netns/" + id, nil
}

func (n network) Reopen(_ context.Context, id string) (string, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return "/run/netns/" + id, n.w.closed
}

func (n network) Broken() []egress.Meta {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	broken := n.w.broken
	n.w.broken = nil
	return broken
}

func (n network) Update(context.Context, string, *egress.Policy) error { return nil }
func (n network) Suspend(_ context.Context, id string) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if info, there := n.w.boxes[id]; there && info.State == sandbox.StateRunning {
		return errors.New("the network was suspended under a running sandbox")
	}
	n.w.suspended[id] = true
	return nil
}

func (n network) Resume(_ context.Context, id string) (string, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.suspended[id] = false
	return "/run/netns/" + id, nil
}

func (n network) Describe(string) (egress.Meta, *egress.Policy, error) {
	return egress.Meta{}, nil, egress.ErrNotFound
}
func (n network) Close(_ context.Context, id string) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if _, running := n.w.boxes[id]; running {
		return errors.New("the network was closed under a running sandbox")
	}
	delete(n.w.networks, id)
	delete(n.w.suspended, id)
	return nil
}

func (n network) List(context.Context) ([]string, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var ids []string
	for id := range n.w.networks {
		ids = append(ids, id)
	}
	return ids, nil
}

func (n network) Records(string, egress.Filter) ([]egress.Record, error) {
	return nil, egress.ErrNotFound
}

func (w *world) List(context.Context) ([]sandbox.Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var infos []sandbox.Info
	for _, info := range w.boxes {
		infos = append(infos, info)
	}
	return infos, nil
}

// templates has one base, built already.
type templates struct{ base *image.Base }

func (t templates) Known(name string) bool          { return name == "base" }
func (t templates) Names() []string                 { return []string{"base"} }
func (t templates) Default() string                 { return "base" }
func (t templates) List() ([]image.Manifest, error) { return nil, nil }
func (t templates) BaseDirs() []*image.Base         { return []*image.Base{t.base} }
func (t templates) Ensure(context.Context, string, image.Progress) (*image.Base, error) {
	return t.base, nil
}

func (t templates) Versions() ([]image.TemplateVersion, error) {
	return []image.TemplateVersion{{Template: "base", Digest: t.base.Digest}}, nil
}

// Prune removes the base unless it is in use.
func (t templates) Prune(_ context.Context, inUse func() (map[string]bool, error), _ int64) (image.TemplatesPruned, error) {
	used, err := inUse()
	if used[t.base.Digest] || err != nil {
		return image.TemplatesPruned{}, err
	}
	return image.TemplatesPruned{Digests: []string{t.base.Digest}, Bytes: 1}, nil
}

// rig is a service on a real store whose sandboxes are the world's.
type rig struct {
	*testing.T
	*world
	store     *store.Store
	sandboxes *control.Sandboxes
	builds    *control.Builds
	builder   *image.Builder
	templates templates
	service   *control.Service
	caller    control.Caller
	env       string
	agent     string
	installs  *installs // what opens boxes; nil has none
	layers    string    // directory of the layer store
	clock     func() time.Time

	events chan string // "what session" of each SandboxEvent

	wrap func(*outside) // changes what open connects the server's part to; nil changes nothing
}

// outside is what control calls.
type outside struct {
	control.Store
	control.Engine
	control.Network
	control.Templates
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ctx := t.Context()
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	r := &rig{T: t, store: st, layers: t.TempDir(), events: make(chan string, 100), world: &world{boxes: map[string]sandbox.Info{}, networks: map[string]bool{}, suspended: map[string]bool{}}}
	r.open()
	ws, err := r.service.EnsureDefault(ctx, "", func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r.caller = control.Caller{Workspace: ws, Kind: control.KeyAPI}
	env, err := r.service.CreateEnvironment(ctx, r.caller, api.EnvironmentCreate{Name: "e"})
	if err != nil {
		t.Fatal(err)
	}
	r.env = env.ID
	var create api.AgentCreate
	if err := api.Decode([]byte(`{"name":"a","model":"m"}`), &create); err != nil {
		t.Fatal(err)
	}
	agent, err := r.service.CreateAgent(ctx, r.caller, create)
	if err != nil {
		t.Fatal(err)
	}
	r.agent = agent.ID
	return r
}

// open makes the server's part anew, as after a restart.
func (r *rig) open() {
	r.Helper()
	open := func(context.Context, image.BoxSpec) (image.Box, error) { return nil, errors.New("no boxes here") }
	if r.installs != nil {
		open = r.installs.open
	}
	builder, err := image.NewBuilder(image.BuilderConfig{LayersDir: r.layers, OpenBox: open, Now: r.clock, MaxParallel: 4})
	if err != nil {
		r.Fatal(err)
	}
	tpl := templates{&image.Base{Template: "base", Digest: "d", Dir: r.layers, Arch: "amd64", Managers: map[string]string{"pip": "1"}}}
	out := outside{r.store, r.world, network{r.world}, tpl}
	if r.wrap != nil {
		r.wrap(&out)
	}
	builds := control.NewBuilds(control.BuildsConfig{Store: out.Store, Templates: out.Templates, Builder: builder})
	r.builds, r.builder, r.templates = builds, builder, tpl
	r.sandboxes = control.NewSandboxes(control.SandboxesConfig{Store: out.Store, Engine: out.Engine, Network: out.Network, Builds: builds,
		Notify: func(rec control.SessionRecord, what control.SandboxEvent, _ string) {
			r.events <- string(what) + " " + rec.ID
		}})
	r.service = control.New(control.Config{Store: out.Store, Templates: tpl, Runtime: r.sandboxes})
	sandboxes := r.sandboxes
	r.Cleanup(func() {
		if err := errors.Join(builds.Shutdown(context.Background()), sandboxes.Shutdown(context.Background())); err != nil {
			r.Error(err)
		}
		builder.Close()
	})
}

func (r *rig) session() string {
	r.Helper()
	var create api.SessionCreate
	if err := api.Decode([]byte(`{"agent":"`+r.agent+`","environment_id":"`+r.env+`"}`), &create); err != nil {
		r.Fatal(err)
	}
	s, err := r.service.CreateSession(r.Context(), r.caller, create)
	if err != nil {
		r.Fatal(err)
	}
	return s.ID
}

func (r *rig) run(id string) error {
	_, err := r.sandboxes.Exec(r.Context(), r.caller, id, sandbox.Command{Args: []string{"true"}, Stdout: io.Discard})
	return err
}

func (r *rig) kind(err error) control.Kind {
	r.Helper()
	f, ok := control.AsFault(err)
	if !ok {
		r.Fatalf("got %v, want a fault", err)
	}
	return f.Kind
}

func (r *rig) empty() {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.boxes) > 0 || len(r.networks) > 0 {
		r.Errorf("left behind: sandboxes %v, networks %v", r.boxes, r.networks)
	}
}

func TestSessionHasSandboxUntilDeleted(t *testing.T) {
	r := newRig(t)
	id := r.session()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	other := r.caller
	other.Workspace = "wrkspc_other"
	if _, err := r.sandboxes.Exec(t.Context(), other, id, sandbox.Command{}); r.kind(err) != control.NotFound {
		t.Errorf("another workspace: %v", err)
	}
	if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
		t.Fatal(err)
	}
	r.empty()
	if err := r.run(id); r.kind(err) != control.NotFound {
		t.Errorf("after delete: %v", err)
	}
}

func TestArchivedSessionHasNoSandbox(t *testing.T) {
	r := newRig(t)
	id := r.session()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	if _, err := r.service.ArchiveSession(t.Context(), r.caller, id); err != nil {
		t.Fatal(err)
	}
	r.empty()
	if err := r.run(id); r.kind(err) != control.Conflict {
		t.Errorf("after archive: %v", err)
	}
}

// A session deleted while its sandbox is being made leaves nothing.
func TestDeleteDuringPreparation(t *testing.T) {
	r := newRig(t)
	r.hold = make(chan struct{})
	id := r.session()
	waiting := make(chan error, 1)
	go func() { waiting <- r.run(id) }()
	if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err == nil {
		t.Error("a command ran in a deleted session")
	}
	r.empty()
}

// Commands that come while a session is deleted leave no sandbox either,
// whenever they read the session's record.
func TestCommandsDuringDelete(t *testing.T) {
	r := newRig(t)
	for range 50 {
		id := r.session()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _ = r.run(id) }) // refused or not: what remains counts
		}
		if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if err := r.run(id); r.kind(err) != control.NotFound {
			t.Fatalf("after delete: %v", err)
		}
		r.empty()
		if t.Failed() {
			return
		}
	}
}

// A failure that may pass is told to those who waited, and tried again by the
// next command.
func TestPreparationIsTriedAgain(t *testing.T) {
	virtual(t, func(r *rig) {
		r.look(func() { r.failNext = sandbox.ErrCapacity })
		id := r.session()
		r.settled("it failed", func() bool { return r.sandboxes.Counts()["failed"] == 1 })
		r.look(func() { r.failNext, r.hold = sandbox.ErrCapacity, make(chan struct{}) })
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := r.run(id); r.kind(err) != control.Unavailable {
					r.Errorf("without capacity: %v", err)
				}
			})
		}
		r.settled("they wait", func() bool { return r.sandboxes.Counts()["preparing"] == 1 })
		close(r.hold)
		all.Wait()
		if err := r.run(id); err != nil {
			r.Errorf("with capacity again: %v", err)
		}
		if r.creates != 3 {
			r.Errorf("%d attempts, want 3", r.creates)
		}
	})
}

// The loss of a sandbox is told once; then there is a fresh one.
func TestEndedSandboxIsTold(t *testing.T) {
	r := newRig(t)
	id := r.session()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	info := r.boxes[id]
	info.State = sandbox.StateStopped
	r.boxes[id] = info
	r.mu.Unlock()
	if err := r.run(id); r.kind(err) != control.Conflict {
		t.Errorf("in an ended sandbox: %v", err)
	}
	if err := r.run(id); err != nil {
		t.Errorf("in the fresh one: %v", err)
	}
}

// Of many whose sandbox is lost each is told, and the session's log once; who
// comes afterwards waits for the fresh one.
func TestLossIsTold(t *testing.T) {
	virtual(t, func(r *rig) {
		id := r.session()
		process := endedProcess{end: make(chan struct{})}
		r.look(func() { r.process = process })
		var all sync.WaitGroup
		for range 10 {
			p, err := r.sandboxes.Exec(r.Context(), r.caller, id, sandbox.Command{Args: []string{"sleep"}})
			if err != nil {
				r.Fatal(err)
			}
			all.Go(func() {
				_, err := p.Wait(r.Context())
				r.fault(err, control.Conflict, "with a restart of the machine. Its files are lost", "")
			})
		}
		r.set(id, sandbox.StateStopped, false)
		r.look(func() { r.process, r.hold = nil, make(chan struct{}) }) // the fresh one takes time
		close(process.end)
		all.Wait()
		r.event("lost " + id)
		for range 10 {
			all.Go(func() {
				if err := r.run(id); err != nil {
					r.Errorf("a command for the fresh one: %v", err)
				}
			})
		}
		r.settled("it is being made", func() bool { return r.sandboxes.Counts()["preparing"] == 1 })
		close(r.hold)
		all.Wait()
		r.noEvent()
	})
}

// A sandbox that ends under a command is told to who waits for it.
func TestSandboxEndsUnderCommand(t *testing.T) {
	r := newRig(t)
	id := r.session()
	r.waitErr = sandbox.ErrNotRunning
	p, err := r.sandboxes.Exec(t.Context(), r.caller, id, sandbox.Command{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); r.kind(err) != control.Conflict {
		t.Errorf("got %v", err)
	}
	if err := r.run(id); err != nil {
		t.Errorf("in the fresh sandbox: %v", err)
	}
}

// After a crash the world and the store are made to agree.
func TestReconcile(t *testing.T) {
	r := newRig(t)
	kept, stopped := r.session(), r.session()
	for _, id := range []string{kept, stopped} {
		if err := r.run(id); err != nil {
			t.Fatal(err)
		}
	}
	r.mu.Lock()
	info := r.boxes[stopped]
	info.State = sandbox.StateStopped
	r.boxes[stopped] = info
	r.boxes["sesn_nobody"] = sandbox.Info{ID: "sesn_nobody", State: sandbox.StateRunning, Labels: map[string]string{"atoll.kind": "session"}}
	r.boxes["build-1"] = sandbox.Info{ID: "build-1", State: sandbox.StateRunning, Labels: map[string]string{"atoll.kind": "build"}}
	r.networks["stray"], r.networks["sesn_nobody"] = true, true
	r.mu.Unlock()

	r.open()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.sandboxes.Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	if len(r.boxes) != 1 || len(r.networks) != 1 || !r.networks[kept] {
		t.Errorf("after reconciling: sandboxes %v, networks %v; want those of %s only", r.boxes, r.networks, kept)
	}
	if err := r.run(kept); err != nil {
		t.Errorf("in the sandbox that ran on: %v", err)
	}
	if err := r.run(stopped); r.kind(err) != control.Conflict {
		t.Errorf("in the sandbox that was lost: %v", err)
	}
	if err := r.run(stopped); err != nil {
		t.Errorf("in its successor: %v", err)
	}
}
