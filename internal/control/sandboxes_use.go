package control

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/atoll-run/atoll/internal/control/lifecycle"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Exec starts a command in the session's sandbox, waiting for the sandbox to be
// ready. A failed package build is a Conflict with the manager's own words.
func (s *Sandboxes) Exec(ctx context.Context, caller Caller, session string, cmd sandbox.Command) (sandbox.Process, error) {
	var p sandbox.Process
	err := s.use(ctx, caller, session, again, func(u usage) error {
		started, err := s.engine.Exec(ctx, u.id, cmd)
		if err == nil {
			p = &command{Process: started, ended: u.ended}
		}
		return err
	})
	return p, err
}

// command is a process whose sandbox may end under it.
type command struct {
	sandbox.Process
	ended func() error
}

// Wait is the process's; that the whole sandbox ended is told in the caller's
// words.
func (c *command) Wait(ctx context.Context) (sandbox.Exit, error) {
	exit, err := c.Process.Wait(ctx)
	if errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrNotFound) {
		err = c.ended()
	}
	return exit, err
}

// ReadFile opens a file of the session, or a directory as a tar stream.
func (s *Sandboxes) ReadFile(ctx context.Context, caller Caller, session, path string) (sandbox.FileInfo, io.ReadCloser, error) {
	var info sandbox.FileInfo
	var body io.ReadCloser
	err := s.use(ctx, caller, session, again, func(u usage) (err error) {
		info, body, err = s.engine.ReadFile(ctx, u.id, path)
		return err
	})
	return info, body, err
}

// WriteFile replaces a file of the session.
func (s *Sandboxes) WriteFile(ctx context.Context, caller Caller, session, path string, mode uint32, body io.Reader) error {
	return s.use(ctx, caller, session, once, func(u usage) error {
		return s.engine.WriteFile(ctx, u.id, path, mode, body)
	})
}

// WriteTar unpacks a tar stream into a directory of the session.
func (s *Sandboxes) WriteTar(ctx context.Context, caller Caller, session, path string, body io.Reader) error {
	return s.use(ctx, caller, session, once, func(u usage) error {
		return s.engine.WriteTar(ctx, u.id, path, body)
	})
}

// RemoveFile removes a file or directory of the session.
func (s *Sandboxes) RemoveFile(ctx context.Context, caller Caller, session, path string) error {
	return s.use(ctx, caller, session, again, func(u usage) error {
		return s.engine.Remove(ctx, u.id, path)
	})
}

// Egress lists the network decisions of a session, newest first.
func (s *Sandboxes) Egress(ctx context.Context, caller Caller, session string, filter egress.Filter) ([]egress.Record, error) {
	if _, err := s.session(ctx, caller, session); err != nil {
		return nil, err
	}
	records, err := s.network.Records(session, filter)
	if errors.Is(err, egress.ErrNotFound) {
		return nil, nil // not prepared yet, or ended: it decided nothing that is kept
	}
	return records, err
}

// session reads a session that the caller may see.
func (s *Sandboxes) session(ctx context.Context, caller Caller, id string) (SessionRecord, error) {
	rec, err := s.store.Session(ctx, caller.Workspace, id)
	if errors.Is(err, ErrNoRecord) {
		return rec, &Fault{Kind: NotFound, Message: "Session " + printable(id) + " not found.", Cause: err}
	}
	return rec, err
}

// usage is a sandbox in the hands of one request.
type usage struct {
	id string
	// ended says for the caller that the sandbox is not there any more.
	ended func() error
}

// Whether a use may be repeated when the sandbox turns out to be dead before it
// began.
type repetition bool

const (
	again repetition = true
	once  repetition = false // it consumes the caller's data, or may have done its work
)

// use runs do on the session's ready sandbox, which is woken or revived for it,
// and translates what goes wrong.
func (s *Sandboxes) use(ctx context.Context, caller Caller, session string, repeat repetition, do func(usage) error) error {
	rec, err := s.session(ctx, caller, session)
	if err != nil {
		return err
	}
	if !rec.ArchivedAt.IsZero() {
		return Faultf(Conflict, "Session %s is archived; its sandbox is gone.", rec.ID)
	}
	for first := true; ; first = false {
		m, release := s.hold(rec)
		awake, err := m.Await(ctx)
		switch {
		case awake != nil && awake.State == lifecycle.Lost:
			release()
			return s.ended(ctx, rec, awake)
		case err != nil:
			release()
			return sandboxFault(ctx, err)
		case first && repeat == once && !s.runs(ctx, rec, awake):
			release()
			continue
		}
		u := usage{id: rec.ID, ended: func() error { return s.ended(ctx, rec, awake) }}
		err = do(u)
		release()
		switch {
		case !goneSandbox(err):
			return sandboxFault(ctx, err)
		case first && repeat == again && sessionEnd(awake) == nil:
			s.runs(ctx, rec, awake)
		default:
			return u.ended()
		}
	}
}

// goneSandbox tells whether an engine's error says that the sandbox is not there.
func goneSandbox(err error) bool {
	return errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, sandbox.ErrHibernated)
}

// stillFailing tells whether a failed preparation would fail again: its
// packages failed to install and no later build of the environment succeeded.
// One that got an earlier failure without an attempt has one to come.
func (s *Sandboxes) stillFailing(rec SessionRecord, err error) bool {
	var failure *image.Failure
	var paused *pausedError
	if errors.As(err, &paused) && !s.builds.builder.Now().Before(paused.until) {
		return false
	}
	return errors.As(err, &failure) && !s.builds.Succeeded(rec.Environment)
}

// sandboxFault translates the errors of the engine and of preparation.
func sandboxFault(ctx context.Context, err error) error {
	var failure *image.Failure
	if _, ok := AsFault(err); ok {
		return err
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errSessionGone):
		return &Fault{Kind: NotFound, Message: "The session was archived or deleted.", Cause: err}
	case errors.As(err, &failure):
		return &Fault{Kind: Conflict, Message: "The packages of the environment could not be installed. " + failure.Error(),
			Code: CodeBuildFailed, Cause: err}
	case errors.Is(err, sandbox.ErrCommandNotFound), errors.Is(err, sandbox.ErrFile):
		return &Fault{Kind: Invalid, Message: err.Error(), Cause: err}
	case errors.Is(err, sandbox.ErrNoFile):
		return &Fault{Kind: NotFound, Message: err.Error(), Cause: err}
	case errors.Is(err, sandbox.ErrCapacity):
		return capacityFault(err)
	case errors.Is(err, egress.ErrDescriptors):
		return &Fault{Kind: Unavailable, Message: "The server has no capacity for another sandbox: " + egress.ErrDescriptors.Error(), Cause: err}
	case errors.Is(err, sandbox.ErrTooMany):
		return &Fault{Kind: RateLimited, Message: "The session has no room for this: " + sandbox.ErrTooMany.Error(), Cause: err}
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		return &Fault{Kind: Unavailable, Message: "The server is shutting down.", Cause: err}
	}
	return err
}

// capacityFault says what the server is short of, and nothing of who uses it.
func capacityFault(err error) *Fault {
	message := "The server has no capacity for another sandbox. Try again when others have ended."
	var short *sandbox.CapacityError
	if errors.As(err, &short) {
		message = fmt.Sprintf("The server has not enough %s for another sandbox. Try again when others have ended.", short.Resource)
	}
	return &Fault{Kind: Unavailable, Message: message, Cause: err}
}

// printable keeps an id that a caller sent fit for an error message.
func printable(id string) string {
	if len(id) > 128 {
		id = id[:128]
	}
	for _, c := range []byte(id) {
		if c < 0x21 || c > 0x7e {
			return "with this id"
		}
	}
	return id
}
