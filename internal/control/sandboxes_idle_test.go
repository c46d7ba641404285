package control_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// virtual runs a test with a rig in virtual time: what waits for time or for each
// other costs none, and synctest.Wait returns when all have done what they can.
func virtual(t *testing.T, test func(r *rig)) {
	t.Helper()
	t.Parallel()
	inBubble(t, test)
}

// inBubble is virtual for a test that is parallel, or not, by itself.
func inBubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		if err := r.sandboxes.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		test(r)
	})
}

// settled fails the test unless something holds once all have done what they can.
func (r *rig) settled(what string, ok func() bool) {
	r.Helper()
	synctest.Wait()
	if !ok() {
		r.Errorf("not so: %s", what)
	}
}

// look reads or changes the world while nothing else does.
func (w *world) look(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func (r *rig) state(id string) sandbox.State {
	info, _ := r.Inspect(context.Background(), id)
	return info.State
}

// hibernated has a sandbox idle until it hibernates, and not a moment longer.
func (r *rig) hibernated(id string) {
	r.Helper()
	time.Sleep(control.DefaultHibernateAfter)
	r.settled("the sandbox hibernates", func() bool {
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
	virtual(t, func(r *rig) {
		id := r.session()
		synctest.Wait()
		time.Sleep(control.DefaultHibernateAfter - 1)
		r.settled("it is awake until then", func() bool { return r.state(id) == sandbox.StateRunning })
		time.Sleep(time.Nanosecond)
		for cycle := range 3 {
			r.settled("it counts as hibernating", func() bool { n := r.sandboxes.Counts(); return n["hibernated"] == 1 && n["running"] == 0 })
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if err := r.run(id); err != nil {
						r.Error(err)
					}
				})
			}
			all.Wait()
			r.look(func() {
				if r.restores != cycle+1 {
					r.Errorf("in cycle %d the sandbox was woken for the %dth time; all share one wake", cycle, r.restores)
				}
			})
			r.hibernated(id)
		}
		if err := r.sandboxes.WriteFile(r.Context(), r.caller, id, "/x", 0o644, strings.NewReader("x")); err != nil {
			r.Error(err)
		}
		r.noEvent()
		if _, err := r.service.DeleteSession(r.Context(), r.caller, id); err != nil {
			r.Fatal(err)
		}
		r.empty()
	})
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
	virtual(t, func(r *rig) {
		id := r.session()
		if err := r.run(id); err != nil {
			r.Fatal(err)
		}
		rec, err := r.store.Session(r.Context(), r.caller.Workspace, id)
		if err != nil {
			r.Fatal(err)
		}
		release := r.sandboxes.Hold(rec)
		process := running{end: make(chan struct{})}
		r.look(func() { r.process = process })
		if err := r.run(id); err != nil {
			r.Fatal(err)
		}
		awake := func(with string) {
			r.Helper()
			time.Sleep(10 * control.DefaultHibernateAfter)
			r.settled("awake with "+with, func() bool { return r.state(id) == sandbox.StateRunning })
		}
		awake("a hold and a command")
		release()
		release()
		awake("a command")
		close(process.end)
		r.hibernated(id)
		r.sandboxes.Hold(rec)() // wakes without a command
		r.settled("it wakes", func() bool { return r.state(id) == sandbox.StateRunning })
		_, body, err := r.sandboxes.ReadFile(r.Context(), r.caller, id, "/x")
		if err != nil {
			r.Fatal(err)
		}
		awake("a file that is read")
		if err := body.Close(); err != nil {
			r.Error(err)
		}
		r.hibernated(id)
	})
}

// ReadFile opens an empty file.
func (w *world) ReadFile(context.Context, string, string) (sandbox.FileInfo, io.ReadCloser, error) {
	return sandbox.FileInfo{}, io.NopCloser(strings.NewReader("")), nil
}

// A sandbox that the engine finds busy is tried again after as long a time.
func TestBusySandboxStaysAwake(t *testing.T) {
	virtual(t, func(r *rig) {
		r.look(func() { r.busy = true })
		id := r.session()
		if err := r.run(id); err != nil {
			r.Fatal(err)
		}
		for tried := range 4 {
			time.Sleep(control.DefaultHibernateAfter)
			r.settled("it was tried once more", func() (ok bool) {
				r.look(func() { ok = r.refused == tried+1 && r.boxes[id].State == sandbox.StateRunning })
				return ok
			})
		}
		r.look(func() {
			if r.checkpoints != 0 || r.restores != 0 {
				r.Errorf("%d checkpoints, %d restores", r.checkpoints, r.restores)
			}
			r.busy = false
		})
		r.hibernated(id)
	})
}

func TestProcessesThatCannotBeBroughtBack(t *testing.T) {
	virtual(t, func(r *rig) {
		id := r.session()
		r.hibernated(id)
		r.look(func() { r.restoreErr = []error{sandbox.ErrCheckpoint} }) // once: tried again, and well
		if err := r.run(id); err != nil {
			r.Error(err)
		}
		r.noEvent()
		r.hibernated(id)
		r.look(func() { r.restoreErr = []error{sandbox.ErrCheckpoint, sandbox.ErrCheckpoint} })
		if err := r.run(id); err != nil {
			r.Error(err)
		}
		r.event("remade " + id)
		r.hibernated(id)
		var revives int
		r.look(func() { revives, r.restoreErr = r.revives, []error{sandbox.ErrCapacity} })
		if err := r.run(id); r.kind(err) != control.Unavailable {
			r.Errorf("without capacity: %v", err)
		}
		if n := r.sandboxes.Counts(); n["failed"] != 1 {
			r.Errorf("without capacity: counts %v", n)
		}
		if err := r.run(id); err != nil {
			r.Errorf("with capacity again: %v", err)
		}
		r.look(func() {
			if r.revives != revives {
				r.Error("for want of capacity the processes were given up")
			}
		})
		r.noEvent()
	})
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
	virtual(t, func(r *rig) {
		for i := range 40 {
			id := r.session()
			synctest.Wait()
			r.look(func() { r.took = time.Second })
			// Before, at the beginning of, during, at the end of, and after its hibernation.
			time.Sleep(control.DefaultHibernateAfter + time.Duration(i%8-2)*time.Second/4)
			var all sync.WaitGroup
			for range i % 5 {
				all.Go(func() { _ = r.run(id) }) // refused or not: what remains counts
			}
			if _, err := r.service.DeleteSession(r.Context(), r.caller, id); err != nil {
				r.Fatal(err)
			}
			all.Wait()
			r.empty()
			if r.Failed() {
				return
			}
		}
	})
}

// A turn that begins while its sandbox is being put aside has it woken, although
// it does not wait.
func TestHoldWhileHibernating(t *testing.T) {
	virtual(t, func(r *rig) {
		id := r.session()
		rec, err := r.store.Session(r.Context(), r.caller.Workspace, id)
		if err != nil {
			r.Fatal(err)
		}
		synctest.Wait()
		r.look(func() { r.took = time.Second })
		time.Sleep(control.DefaultHibernateAfter + time.Second/2)
		release := r.sandboxes.Hold(rec)
		defer release()
		time.Sleep(time.Hour)
		r.settled("it was put aside and woken", func() (ok bool) {
			r.look(func() { ok = r.checkpoints == 1 && r.boxes[id].State == sandbox.StateRunning })
			return ok
		})
	})
}
