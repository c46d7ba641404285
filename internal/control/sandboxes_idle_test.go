package control_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// idleRig is a rig whose sandboxes hibernate almost at once.
func idleRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.after = 20 * time.Millisecond
	r.open()
	if err := r.sandboxes.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) await(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("waited in vain: %s", what)
		}
	}
}

func (r *rig) state(id string) sandbox.State {
	info, _ := r.Inspect(context.Background(), id)
	return info.State
}

func (r *rig) hibernated(id string) {
	r.Helper()
	r.await("the sandbox hibernates", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.boxes[id].State == sandbox.StateHibernated && r.suspended[id]
	})
}

func (r *rig) event(want string) {
	r.Helper()
	select {
	case got := <-r.events:
		if got != want {
			r.Errorf("told %q, want %q", got, want)
		}
	case <-time.After(30 * time.Second):
		r.Errorf("was not told %q", want)
	}
}

func (r *rig) noEvent() {
	r.Helper()
	select {
	case got := <-r.events:
		r.Errorf("told %q", got)
	default:
	}
}

func TestIdleSandboxHibernatesAndWakes(t *testing.T) {
	r := idleRig(t)
	id := r.session()
	for range 3 {
		r.hibernated(id)
		// The world hibernates a moment before it is noted.
		r.await("it counts as hibernating", func() bool { n := r.sandboxes.Counts(); return n["hibernated"] == 1 && n["running"] == 0 })
		r.mu.Lock()
		before := r.restores
		r.mu.Unlock()
		var all sync.WaitGroup
		for range 20 { // all share one wake
			all.Go(func() {
				if err := r.run(id); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		r.mu.Lock()
		// It may have hibernated again between two of them, but not for each.
		if woken := r.restores - before; woken < 1 || woken > 5 {
			t.Errorf("20 commands woke the sandbox %d times", woken)
		}
		r.mu.Unlock()
	}
	r.hibernated(id)
	if err := r.sandboxes.WriteFile(t.Context(), r.caller, id, "/x", 0o644, strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	r.noEvent()
	if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
		t.Fatal(err)
	}
	r.empty()
}

func (w *world) WriteFile(_ context.Context, id, _ string, _ uint32, content io.Reader) error {
	if info, err := w.Inspect(context.Background(), id); err != nil || info.State != sandbox.StateRunning {
		return errors.Join(sandbox.ErrNotRunning, err)
	}
	data, err := io.ReadAll(content)
	if string(data) != "x" {
		return errors.New("the content was consumed by another try")
	}
	return err
}

// running is a process that ends when it is let.
type running struct {
	sandbox.Process
	end chan struct{}
}

func (p running) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.end:
		return sandbox.Exit{}, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

func TestUsedSandboxStaysAwake(t *testing.T) {
	r := idleRig(t)
	witness, id := r.session(), r.session()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	rec, err := r.store.Session(t.Context(), r.caller.Workspace, id)
	if err != nil {
		t.Fatal(err)
	}
	release := r.sandboxes.Hold(rec)
	process := running{end: make(chan struct{})}
	r.mu.Lock()
	r.process = process
	r.mu.Unlock()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	// Time passes: another sandbox hibernates and is woken.
	for range 3 {
		r.hibernated(witness)
		r.mu.Lock()
		r.process = nil
		r.mu.Unlock()
		if err := r.run(witness); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.state(id); got != sandbox.StateRunning {
		t.Errorf("with a hold and a command it is %s", got)
	}
	release()
	release()
	r.hibernated(witness)
	if got := r.state(id); got != sandbox.StateRunning {
		t.Errorf("with a command it is %s", got)
	}
	close(process.end)
	r.hibernated(id)
	r.sandboxes.Hold(rec)() // wakes without a command
	r.await("it wakes", func() bool { return r.state(id) == sandbox.StateRunning })
}

func TestBusySandboxStaysAwake(t *testing.T) {
	r := idleRig(t)
	r.mu.Lock()
	r.busy = true
	r.mu.Unlock()
	id := r.session()
	for tried := range 4 {
		if err := r.run(id); err != nil {
			t.Fatal(err)
		}
		r.await("it is tried again", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.refused > tried
		})
	}
	r.mu.Lock()
	if r.checkpoints != 0 || r.restores != 0 {
		t.Errorf("%d checkpoints, %d restores", r.checkpoints, r.restores)
	}
	r.busy = false
	r.mu.Unlock()
	r.hibernated(id)
}

func TestProcessesThatCannotBeBroughtBack(t *testing.T) {
	r := idleRig(t)
	id := r.session()
	r.hibernated(id)
	r.mu.Lock()
	r.restoreErr = []error{sandbox.ErrCheckpoint} // once: tried again, and well
	r.mu.Unlock()
	if err := r.run(id); err != nil {
		t.Error(err)
	}
	r.noEvent()
	r.hibernated(id)
	r.mu.Lock()
	r.restoreErr = []error{sandbox.ErrCheckpoint, sandbox.ErrCheckpoint}
	r.mu.Unlock()
	if err := r.run(id); err != nil {
		t.Error(err)
	}
	r.event("remade " + id)
	r.hibernated(id)
	r.mu.Lock()
	r.restoreErr = []error{sandbox.ErrCapacity}
	revives := r.revives
	r.mu.Unlock()
	if err := r.run(id); r.kind(err) != control.Unavailable {
		t.Errorf("without capacity: %v", err)
	}
	if err := r.run(id); err != nil {
		t.Errorf("with capacity again: %v", err)
	}
	if r.revives != revives {
		t.Error("for want of capacity the processes were given up")
	}
	r.noEvent()
}

func TestDeadSandboxIsRevived(t *testing.T) {
	r := newRig(t)
	id := r.session()
	if err := r.run(id); err != nil {
		t.Fatal(err)
	}
	r.set(id, sandbox.StateStopped, true)
	if err := r.run(id); err != nil { // it died while nobody used it
		t.Error(err)
	}
	r.event("remade " + id)
	r.set(id, sandbox.StateStopped, true)
	if err := r.sandboxes.WriteFile(t.Context(), r.caller, id, "/x", 0o644, strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	r.event("remade " + id)
	// It dies under a command: who waits for it is told, the next one finds the files.
	process := running{end: make(chan struct{})}
	r.mu.Lock()
	r.process = dying{process}
	r.mu.Unlock()
	p, err := r.sandboxes.Exec(t.Context(), r.caller, id, sandbox.Command{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	r.set(id, sandbox.StateStopped, true)
	r.mu.Lock()
	r.process = nil
	r.mu.Unlock()
	close(process.end)
	if _, err := p.Wait(t.Context()); r.kind(err) != control.Conflict || !strings.Contains(err.Error(), "files are kept") {
		t.Errorf("the command was told %v", err)
	}
	if err := r.run(id); err != nil {
		t.Error(err)
	}
	r.event("remade " + id)
	r.noEvent()
	r.set(id, sandbox.StateStopped, false)
	if err := r.run(id); r.kind(err) != control.Conflict || !strings.Contains(err.Error(), "files are lost") {
		t.Errorf("with the files lost: %v", err)
	}
	r.event("lost " + id)
	if err := r.run(id); err != nil {
		t.Error(err)
	}
}

type dying struct{ running }

func (p dying) Wait(ctx context.Context) (sandbox.Exit, error) {
	if _, err := p.running.Wait(ctx); err != nil {
		return sandbox.Exit{}, err
	}
	return sandbox.Exit{Code: 137}, sandbox.ErrNotRunning
}

func TestReconcileKeepsWhatHasFiles(t *testing.T) {
	r := newRig(t)
	asleep, dead := r.session(), r.session()
	for _, id := range []string{asleep, dead} {
		if err := r.run(id); err != nil {
			t.Fatal(err)
		}
	}
	r.set(asleep, sandbox.StateHibernated, true)
	r.set(dead, sandbox.StateStopped, true)
	r.mu.Lock()
	r.boxes["sesn_nobody"] = sandbox.Info{ID: "sesn_nobody", State: sandbox.StateHibernated, Files: true, Labels: map[string]string{"atoll.kind": "session"}}
	r.suspended[asleep] = true
	r.mu.Unlock()
	r.open()
	if err := r.sandboxes.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.boxes) != 2 || len(r.networks) != 2 {
		t.Errorf("after reconciling: sandboxes %v, networks %v", r.boxes, r.networks)
	}
	if n := r.sandboxes.Counts(); n["hibernated"] != 1 || n["failed"] != 1 {
		t.Errorf("counts %v", n)
	}
	for _, id := range []string{asleep, dead} {
		if err := r.run(id); err != nil {
			t.Error(err)
		}
	}
	if r.restores != 1 || r.revives != 1 {
		t.Errorf("%d restores, %d revives", r.restores, r.revives)
	}
	r.event("remade " + dead)
	for _, id := range []string{asleep, dead} {
		if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
			t.Fatal(err)
		}
	}
	r.empty()
}

// Sessions that end while their sandboxes hibernate or wake leave nothing.
func TestDeleteWhileHibernating(t *testing.T) {
	r := idleRig(t)
	for i := range 40 {
		id := r.session()
		if i%2 == 0 {
			r.hibernated(id)
		} else {
			<-time.After(r.after + time.Duration(i)*time.Millisecond/4) // any moment will do
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { _ = r.run(id) }) // refused or not: what remains counts
		}
		if _, err := r.service.DeleteSession(t.Context(), r.caller, id); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		r.empty()
		if t.Failed() {
			return
		}
	}
}
