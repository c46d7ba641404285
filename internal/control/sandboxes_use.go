package control

import (
	"context"
	"errors"
	"io"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Exec starts a command in the session's sandbox, waiting for the sandbox to be
// ready. A failed package build is a Conflict with the manager's own words.
func (s *Sandboxes) Exec(ctx context.Context, caller Caller, session string, cmd sandbox.Command) (sandbox.Process, error) {
	var p sandbox.Process
	err := s.use(ctx, caller, session, func(u usage) error {
		started, err := s.engine.Exec(ctx, u.id, cmd)
		p = &command{Process: started, ended: u.ended}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
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
	err := s.use(ctx, caller, session, func(u usage) (err error) {
		info, body, err = s.engine.ReadFile(ctx, u.id, path)
		return err
	})
	return info, body, err
}

// WriteFile replaces a file of the session.
func (s *Sandboxes) WriteFile(ctx context.Context, caller Caller, session, path string, mode uint32, body io.Reader) error {
	return s.use(ctx, caller, session, func(u usage) error {
		return s.engine.WriteFile(ctx, u.id, path, mode, body)
	})
}

// WriteTar unpacks a tar stream into a directory of the session.
func (s *Sandboxes) WriteTar(ctx context.Context, caller Caller, session, path string, body io.Reader) error {
	return s.use(ctx, caller, session, func(u usage) error {
		return s.engine.WriteTar(ctx, u.id, path, body)
	})
}

// RemoveFile removes a file or directory of the session.
func (s *Sandboxes) RemoveFile(ctx context.Context, caller Caller, session, path string) error {
	return s.use(ctx, caller, session, func(u usage) error {
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

// use runs do on the session's ready sandbox and translates what goes wrong.
func (s *Sandboxes) use(ctx context.Context, caller Caller, session string, do func(usage) error) error {
	rec, err := s.session(ctx, caller, session)
	if err != nil {
		return err
	}
	if !rec.ArchivedAt.IsZero() {
		return Faultf(Conflict, "Session %s is archived; its sandbox is gone.", rec.ID)
	}
	e, err := s.ready(ctx, rec)
	if err != nil {
		return sandboxFault(ctx, err)
	}
	if e.lost {
		return s.ended(rec, e)
	}
	u := usage{id: rec.ID, ended: func() error { return s.ended(rec, e) }}
	err = do(u)
	if errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrNotFound) {
		return u.ended()
	}
	return sandboxFault(ctx, err)
}

// ready waits until the session has a sandbox. A preparation that failed is
// tried again, unless the environment's packages could not be installed: that
// is tried by the next session or update, not by each command.
func (s *Sandboxes) ready(ctx context.Context, rec SessionRecord) (*entry, error) {
	s.mu.Lock()
	e := s.entries[rec.ID]
	if e == nil || s.mayRetry(rec, e) {
		e = s.start(rec)
	}
	s.mu.Unlock()
	select {
	case <-e.done:
		return e, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// mayRetry tells whether a preparation failed in a way that may pass.
func (s *Sandboxes) mayRetry(rec SessionRecord, e *entry) bool {
	select {
	case <-e.done:
		return e.err != nil && !s.stillFailing(rec, e.err)
	default:
		return false
	}
}

// stillFailing tells whether a failed preparation would fail again: its
// packages failed to install and no later build of the environment succeeded.
func (s *Sandboxes) stillFailing(rec SessionRecord, err error) bool {
	var failure *image.Failure
	return errors.As(err, &failure) && !s.builds.Succeeded(rec.Environment)
}

// ended handles a sandbox that is not there any more though nobody removed it:
// the command that finds it out is refused, so that the loss of the files is
// not silent, and the next one gets a fresh sandbox.
func (s *Sandboxes) ended(rec SessionRecord, e *entry) error {
	s.mu.Lock()
	if s.entries[rec.ID] == e {
		s.start(rec)
	}
	s.mu.Unlock()
	return Faultf(Conflict, "The sandbox of session %s has ended (out of memory, or the machine was restarted). "+
		"Its files are lost; the next command runs in a fresh sandbox.", rec.ID)
}

// sandboxFault translates the errors of the engine and of preparation.
func sandboxFault(ctx context.Context, err error) error {
	var failure *image.Failure
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
		return &Fault{Kind: Unavailable, Message: "The server has no capacity for another sandbox: " + sandbox.ErrCapacity.Error(), Cause: err}
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		return &Fault{Kind: Unavailable, Message: "The session ended, or the server is shutting down.", Cause: err}
	}
	return err
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
