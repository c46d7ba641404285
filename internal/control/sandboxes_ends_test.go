package control_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// fault fails the test unless err is a fault of a kind with words, and without
// others.
func (r *rig) fault(err error, kind control.Kind, with, without string) {
	r.Helper()
	f, ok := control.AsFault(err)
	if !ok || f.Kind != kind || !strings.Contains(f.Message, with) || without != "" && strings.Contains(f.Message, without) {
		r.Errorf("got %v (%+v), want %v with %q and without %q", err, f, kind, with, without)
	}
}

// endedProcess waits for the sandbox's end.
type endedProcess struct {
	sandbox.Process
	end chan struct{}
}

func (p endedProcess) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.end:
		return sandbox.Exit{}, sandbox.ErrNotFound
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// A command whose session is deleted or archived is told that, and not of memory,
// of the machine, or of files that are kept.
func TestCommandOfEndedSession(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(r *rig, id string) error
		kind control.Kind
		with string
	}{
		"deleted": {func(r *rig, id string) error {
			_, err := r.service.DeleteSession(r.Context(), r.caller, id)
			return err
		}, control.NotFound, "was deleted"},
		"archived": {func(r *rig, id string) error {
			_, err := r.service.ArchiveSession(r.Context(), r.caller, id)
			return err
		}, control.Conflict, "was archived"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id, witness := r.session(), r.session()
			process := endedProcess{end: make(chan struct{})}
			r.mu.Lock()
			r.process = process
			r.mu.Unlock()
			p, err := r.sandboxes.Exec(t.Context(), r.caller, id, sandbox.Command{Args: []string{"sleep"}, Stdout: io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			r.mu.Lock()
			r.process = nil
			r.mu.Unlock()
			if err := test.end(r, id); err != nil {
				t.Fatal(err)
			}
			close(process.end)
			_, err = p.Wait(t.Context())
			r.fault(err, test.kind, test.with, "file")
			r.noEvent()
			if err := r.run(witness); err != nil {
				t.Errorf("in the neighbour: %v", err)
			}
		})
	}
}

// A command that waits for a sandbox while its session is archived or deleted is
// told so, and not to try again.
func TestCommandBegunWhileSessionEnds(t *testing.T) {
	virtual(t, func(r *rig) {
		r.hold = make(chan struct{})
		for _, archive := range []bool{true, false} {
			id := r.session()
			waiting := make(chan error, 1)
			go func() { waiting <- r.run(id) }()
			r.settled("the sandbox is being made", func() bool { return r.sandboxes.Counts()["preparing"] == 1 })
			kind, with := control.NotFound, "was deleted"
			var err error
			if archive {
				kind, with = control.Conflict, "was archived"
				_, err = r.service.ArchiveSession(r.Context(), r.caller, id)
			} else {
				_, err = r.service.DeleteSession(r.Context(), r.caller, id)
			}
			if err != nil {
				r.Fatal(err)
			}
			r.fault(<-waiting, kind, with, "file")
			r.empty()
		}
	})
}

// Each end of a sandbox has the words of what happened.
func TestEndsHaveTheirWords(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(r *rig, id string)
		with    string
	}{
		"out of memory": {func(r *rig, id string) {
			r.set(id, sandbox.StateStopped, true)
			r.mu.Lock()
			r.oomKills = map[string]int64{id: 3}
			r.mu.Unlock()
		}, "ended because it was out of memory. Its processes are gone and its files are kept"},
		"processes killed": {func(r *rig, id string) { r.set(id, sandbox.StateStopped, true) },
			"ended because its processes were ended; its memory limit did not end them. Its processes are gone and its files are kept"},
		"machine restarted": {func(r *rig, id string) { r.set(id, sandbox.StateStopped, false) },
			"ended with a restart of the machine. Its files are lost"},
		"removed by hand": {func(r *rig, id string) {
			r.mu.Lock()
			delete(r.boxes, id)
			r.mu.Unlock()
		}, "ended because it was removed on the server's machine. Its files are lost"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id := r.session()
			process := endedProcess{end: make(chan struct{})}
			r.mu.Lock()
			r.process = process
			r.mu.Unlock()
			p, err := r.sandboxes.Exec(t.Context(), r.caller, id, sandbox.Command{Args: []string{"sleep"}, Stdout: io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			test.happens(r, id)
			close(process.end)
			_, err = p.Wait(t.Context())
			r.fault(err, control.Conflict, test.with, "mostly")
		})
	}
}

// A server that is shut down says that, and nothing of sessions.
func TestShutdownHasItsWords(t *testing.T) {
	virtual(t, func(r *rig) {
		r.hold = make(chan struct{})
		id := r.session()
		waiting := make(chan error, 1)
		go func() { waiting <- r.run(id) }()
		r.settled("the sandbox is being made", func() bool { return r.sandboxes.Counts()["preparing"] == 1 })
		if err := r.sandboxes.Shutdown(r.Context()); err != nil {
			r.Fatal(err)
		}
		r.fault(<-waiting, control.Unavailable, "shutting down", "session")
	})
}
