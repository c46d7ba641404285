package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// installs opens boxes whose pip installs by writing a file.
type installs struct {
	dir string

	mu    sync.Mutex
	n     int
	open_ int                      // boxes that are open
	ran   map[string]int           // specs → installs of them
	gates map[string]chan struct{} // specs → the install waits for it
	fails map[string]string        // specs → what the tool says
}

func (f *installs) open(context.Context, image.BoxSpec) (image.Box, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	f.open_++
	b := &installBox{f: f, upper: filepath.Join(f.dir, fmt.Sprint("box", f.n)), installed: []map[string]any{}}
	return b, os.MkdirAll(b.upper+"/usr/lib", 0o755)
}

// gate makes the install of specs wait until the channel is closed.
func (f *installs) gate(specs string) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gates[specs] = make(chan struct{})
	return f.gates[specs]
}

func (f *installs) fail(specs, words string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[specs] = words
}

func (f *installs) count(specs string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ran[specs]
}

func (f *installs) boxes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open_
}

type installBox struct {
	f         *installs
	upper     string
	installed []map[string]any
}

func (b *installBox) Run(ctx context.Context, c image.BoxCommand) (image.BoxExit, error) {
	// pip runs in a program that also says what is installed.
	if len(c.Args) < 6 || c.Args[1] != "-c" || c.Args[3] != "install" {
		return image.BoxExit{}, nil
	}
	specs := strings.Join(c.Args[5:], " ")
	b.f.mu.Lock()
	b.f.ran[specs]++
	gate, words := b.f.gates[specs], b.f.fails[specs]
	b.f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return image.BoxExit{}, ctx.Err()
		}
	}
	if words != "" {
		fmt.Fprintln(c.Output, words)
		return image.BoxExit{Code: 1}, nil
	}
	for _, s := range strings.Fields(specs) {
		b.installed = append(b.installed, map[string]any{"name": s, "version": "1", "new": true})
	}
	if err := json.NewEncoder(c.Stdout).Encode(map[string]any{"installed": b.installed}); err != nil {
		return image.BoxExit{}, err
	}
	return image.BoxExit{}, os.WriteFile(b.upper+"/usr/lib/x", []byte(specs), 0o644)
}

func (b *installBox) Reached() []image.Contact                      { return nil }
func (b *installBox) Usage(context.Context) (image.BoxUsage, error) { return image.BoxUsage{}, nil }
func (b *installBox) Tree(context.Context) (string, error)          { return b.upper, nil }
func (b *installBox) Close(context.Context) error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.f.open_--
	return os.RemoveAll(b.upper)
}

// buildRig is a rig whose environment is built for real, by the fake pip.
func buildRig(t *testing.T) *rig {
	r := newRig(t)
	r.installs = &installs{dir: t.TempDir(), ran: map[string]int{}, gates: map[string]chan struct{}{}, fails: map[string]string{}}
	r.layers = t.TempDir()
	r.open()
	return r
}

func (r *rig) update(specs ...string) {
	r.Helper()
	list, _ := json.Marshal(specs)
	var req api.EnvironmentUpdate
	if err := api.Decode(fmt.Appendf(nil, `{"config":{"type":"cloud","packages":{"pip":%s}}}`, list), &req); err != nil {
		r.Fatal(err)
	}
	if _, err := r.service.UpdateEnvironment(r.Context(), r.caller, r.env, req); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("waited too long for %s: %+v", what, r.status())
		}
	}
}

func (r *rig) status() api.Build {
	r.Helper()
	b, err := r.sandboxes.BuildStatus(r.Context(), r.caller, r.env)
	if err != nil {
		r.Fatal(err)
	}
	return b
}

// ends waits until the environment's build has ended and is on record.
func (r *rig) ends(status, pkg string) api.Build {
	r.Helper()
	r.until("the build to be "+status, func() bool { return r.status().Status == status })
	b := r.status()
	r.until("the record", func() bool {
		rec, err := r.store.Build(r.Context(), r.env)
		return err == nil && rec.Status == status && !rec.UpdatedAt.Before(*b.FinishedAt)
	})
	if status == api.BuildReady && b.Layers[0].Packages[0].Name != pkg {
		r.Fatalf("the build has %+v, want %s", b.Layers, pkg)
	}
	return b
}

func (r *rig) log() string {
	r.Helper()
	var text strings.Builder
	err := r.sandboxes.BuildLog(r.Context(), r.caller, r.env, 0, false, func(p []byte) error { text.Write(p); return nil })
	if err != nil {
		r.Fatal(err)
	}
	return text.String()
}

// A session from before an update that needs its sandbox after it does not take
// the place of the environment's own build.
func TestStaleSessionLeavesTheRecordAlone(t *testing.T) {
	r := buildRig(t)
	r.update("old")
	r.ends(api.BuildReady, "old")
	id := r.session()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	gate := r.installs.gate("new")
	r.update("new")
	r.until("the install", func() bool { return r.installs.count("new") == 1 })
	// The sandbox is lost and its layer too: both are made again.
	r.mu.Lock()
	r.boxes[id] = sandbox.Info{ID: id, State: sandbox.StateStopped}
	r.mu.Unlock()
	if _, err := r.builder.Prune(t.Context(), func() (map[string]bool, error) { return nil, nil }, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.run(id); r.kind(err) != control.Conflict {
		t.Errorf("in the lost sandbox: %v", err)
	}
	if err := r.run(id); err != nil {
		t.Errorf("in the fresh one: %v", err)
	}
	if n := r.installs.count("old"); n != 2 {
		t.Errorf("the old list was installed %d times", n)
	}
	if s := r.status(); s.Status != api.BuildBuilding {
		t.Errorf("the environment's own build is %+v", s)
	}
	close(gate)
	r.ends(api.BuildReady, "new")
	if n := r.installs.count("new"); n != 1 {
		t.Errorf("the new list was installed %d times", n)
	}
}

// What a build said is there after it, and after a restart, though nothing of
// it is kept in memory.
func TestEndedBuildsAreOnRecordOnly(t *testing.T) {
	r := buildRig(t)
	r.installs.fail("bad", "ERROR: No matching distribution found for bad")
	for _, tt := range []struct{ pkg, status, says string }{
		{"good", api.BuildReady, "installed 1 packages"}, {"bad", api.BuildFailed, "No matching distribution"}, {"good", api.BuildReady, "nothing to install"},
	} {
		r.update(tt.pkg)
		before := r.ends(tt.status, tt.pkg)
		r.until("the runs to be forgotten", func() bool { return r.builds.Unrecorded() == 0 })
		log := r.log()
		if !strings.Contains(log, tt.says) {
			t.Errorf("%s: the log has no %q:\n%s", tt.pkg, tt.says, log)
		}
		r.open()
		if after := r.status(); fmt.Sprint(after.Layers, after.Error) != fmt.Sprint(before.Layers, before.Error) {
			t.Errorf("%s: after a restart: %+v, before: %+v", tt.pkg, after, before)
		}
		if again := r.log(); again != log {
			t.Errorf("%s: the log after a restart:\n%s\nbefore:\n%s", tt.pkg, again, log)
		}
	}
}

// Sessions do not repeat an install that failed a moment ago; people may.
func TestAutomaticAttemptsAreSpaced(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	r := newRig(t)
	r.installs = &installs{dir: t.TempDir(), ran: map[string]int{}, gates: map[string]chan struct{}{}, fails: map[string]string{}}
	r.clock = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	pass := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	r.open()
	r.installs.fail("bad", "ERROR: No matching distribution found for bad")
	r.update("bad")
	failed := r.ends(api.BuildFailed, "")
	log := r.log()
	var ids []string
	for range 3 {
		id := r.session()
		ids = append(ids, id)
		err := r.run(id)
		if r.kind(err) != control.Conflict || !strings.Contains(err.Error(), failed.Error.Message) {
			t.Errorf("in a session: %v", err)
		}
	}
	if n := r.installs.count("bad"); n != 1 {
		t.Errorf("after three sessions: %d installs, want 1", n)
	}
	if r.log() != log || r.status().Error.Message != failed.Error.Message {
		t.Errorf("a repeated failure replaced what is on record: %+v\n%s", r.status(), r.log())
	}
	// A person's request is not delayed.
	if _, err := r.sandboxes.Rebuild(t.Context(), r.caller, r.env); err != nil {
		t.Fatal(err)
	}
	r.until("the second install", func() bool { return r.installs.count("bad") == 2 })
	r.ends(api.BuildFailed, "")
	// The pause has doubled: 20 s.
	pass(15 * time.Second)
	if err := r.run(r.session()); r.kind(err) != control.Conflict || r.installs.count("bad") != 2 {
		t.Errorf("15 s later: %v, %d installs", err, r.installs.count("bad"))
	}
	pass(6 * time.Second)
	r.installs.fail("bad", "")
	if err := r.run(r.session()); err != nil || r.installs.count("bad") != 3 {
		t.Errorf("21 s later: %v, %d installs", err, r.installs.count("bad"))
	}
	r.ends(api.BuildReady, "bad")
	// Sessions that got an earlier failure work now.
	for _, id := range ids {
		if err := r.run(id); err != nil {
			t.Errorf("in an earlier session: %v", err)
		}
	}
}

// A session that was answered an earlier failure has one attempt to come.
func TestPausedSessionTriesLater(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	r := newRig(t)
	r.installs = &installs{dir: t.TempDir(), ran: map[string]int{}, gates: map[string]chan struct{}{}, fails: map[string]string{}}
	r.clock = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	r.open()
	r.installs.fail("bad", "ERROR: No matching distribution found for bad")
	r.update("bad")
	r.ends(api.BuildFailed, "")
	id := r.session()
	for range 2 {
		if err := r.run(id); r.kind(err) != control.Conflict || r.installs.count("bad") != 1 {
			t.Errorf("in the pause: %v, %d installs", err, r.installs.count("bad"))
		}
	}
	mu.Lock()
	now = now.Add(11 * time.Second)
	mu.Unlock()
	for range 2 {
		if err := r.run(id); r.kind(err) != control.Conflict || r.installs.count("bad") != 2 {
			t.Errorf("after it: %v, %d installs", err, r.installs.count("bad"))
		}
	}
}

// An environment that is gone, or wants something else, has no builder at work.
func TestUnwantedBuildsAreCancelled(t *testing.T) {
	r := buildRig(t)
	r.installs.gate("slow")
	begin := func(n int) {
		r.Helper()
		r.update("slow")
		r.until("the install", func() bool { return r.installs.count("slow") == n })
	}
	gone := func(why string) {
		r.Helper()
		r.until("the builder to go after "+why, func() bool { return r.installs.boxes() == 0 })
	}
	begin(1)
	r.update("other")
	gone("an update")
	r.ends(api.BuildReady, "other")

	// A session waits for what the environment wanted before.
	begin(2)
	id := r.session()
	waiting := make(chan error, 1)
	go func() { waiting <- r.run(id) }()
	r.until("the session to wait", func() bool { return r.builds.Waiting() == 1 })
	r.update("other")
	r.ends(api.BuildReady, "other")
	if r.installs.boxes() != 1 {
		t.Error("the install that a session waits for was cancelled")
	}
	if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err == nil {
		t.Error("a command ran in a deleted session")
	}
	gone("the session")

	begin(3)
	if _, err := r.service.DeleteEnvironment(t.Context(), r.caller, r.env); err != nil {
		t.Fatal(err)
	}
	gone("the environment")
	r.until("the runs to be forgotten", func() bool { return r.builds.Unrecorded() == 0 })
}

// A rebuild that fails leaves what the environment had before in use and in
// the cache.
func TestFailedRebuildKeepsTheLayers(t *testing.T) {
	r := buildRig(t)
	r.update("list")
	r.ends(api.BuildReady, "list")
	r.installs.fail("list", "ERROR: broken today")
	if _, err := r.sandboxes.Rebuild(t.Context(), r.caller, r.env); err != nil {
		t.Fatal(err)
	}
	r.ends(api.BuildFailed, "")
	downloads, err := image.OpenDownloads(image.DownloadsConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cache := control.Cache{Store: r.store, Workspaces: r.store, Builder: r.builder, Templates: r.templates, Builds: r.builds, Downloads: downloads}
	if gone, err := cache.Prune(t.Context()); err != nil || len(gone.Keys)+len(gone.Templates) > 0 {
		t.Errorf("clean-up removed %v, %v", gone, err)
	}
	if err := r.run(r.session()); err != nil {
		t.Errorf("after a failed rebuild: %v", err)
	}
	if n := r.installs.count("list"); n != 2 {
		t.Errorf("%d installs, want 2", n)
	}
}

// A change that a killed server did not get to is built by the next one.
func TestReconcileBuildsWhatChanged(t *testing.T) {
	r := buildRig(t)
	r.update("old")
	r.ends(api.BuildReady, "old")
	// The change is durable and nobody was told.
	quiet := control.New(control.Config{Store: r.store, Templates: templates{}})
	r.service, quiet = quiet, r.service
	r.update("new")
	r.service = quiet
	if s := r.status(); s.Status != api.BuildQueued {
		t.Errorf("before its build began: %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := r.sandboxes.BuildLog(ctx, r.caller, r.env, 0, true, func([]byte) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a follower did not wait for the build to begin: %v", err)
	}
	r.open()
	if err := r.sandboxes.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.ends(api.BuildReady, "new")
}

// A thousand environments with twenty lists among them have the layers of twenty.
func TestManyEnvironmentsShareLayers(t *testing.T) {
	r := buildRig(t)
	var work sync.WaitGroup
	for part := range 10 {
		work.Go(func() {
			for i := range 100 {
				var req api.EnvironmentCreate
				if err := api.Decode(fmt.Appendf(nil, `{"name":"e%d-%d","config":{"type":"cloud","packages":{"pip":["p%d"]}}}`, part, i, i%20), &req); err != nil {
					t.Error(err)
					return
				}
				if _, err := r.service.CreateEnvironment(t.Context(), r.caller, req); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	r.until("the builds", func() bool { return r.builds.Counts()[api.BuildReady] >= 1000 })
	downloads, err := image.OpenDownloads(image.DownloadsConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cache := control.Cache{Store: r.store, Workspaces: r.store, Builder: r.builder, Templates: r.templates, Builds: r.builds, Downloads: downloads}
	r.until("the records", func() bool { return r.builds.Unrecorded() == 0 })
	state, err := cache.State(t.Context())
	if err != nil || len(state.Layers) != 20 {
		t.Fatalf("%d layers, %v; want 20", len(state.Layers), err)
	}
	for _, l := range state.Layers {
		if n := r.installs.count(l.Entries[0]); n != 1 || l.Users != 50 {
			t.Errorf("%v: %d installs, %d users; want 1 and 50", l.Entries, n, l.Users)
		}
	}
	if state.SizeBytes > 20*8*4096 { // a few files and directories each
		t.Errorf("%d bytes, want those of twenty layers of a few bytes", state.SizeBytes)
	}
	if gone, err := cache.Prune(t.Context()); err != nil || len(gone.Keys)+len(gone.Templates) > 0 {
		t.Errorf("clean-up removed %v, %v", gone, err)
	}
}
