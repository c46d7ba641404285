package control

import (
	"context"
	"io"
	"time"

	"github.com/atoll-run/atoll/internal/control/lifecycle"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// DefaultHibernateAfter is how long a sandbox stays awake when nothing uses it
// and the operator says nothing.
const DefaultHibernateAfter = 10 * time.Minute

// Hold keeps the sandbox of a session awake until release, and begins waking it,
// without waiting: for a turn that will need it soon. Release may be called
// more than once.
func (s *Sandboxes) Hold(rec SessionRecord) (release func()) {
	m, release := s.hold(rec)
	m.Want()
	return release
}

// putAside puts a sandbox aside that nobody uses, when few enough others are being
// put aside, unless somebody has come for it meanwhile. Whoever comes while it is
// under way waits for its end, and has it woken again.
func (s *Sandboxes) putAside(m *lifecycle.Machine) {
	select {
	case <-s.ctx.Done():
		return
	case s.aside <- struct{}{}:
	}
	defer func() { <-s.aside }()
	if asleep := m.Sleep(); asleep != nil {
		_, _ = asleep.Wait(s.ctx) // the next one after a shutdown sees what came of it
	}
}

// heldEngine is an Engine whose commands and transfers keep their sandbox in use
// until they end, which is after the call that began them.
type heldEngine struct {
	Engine
	sandboxes *Sandboxes
}

// hold keeps a session's sandbox in use until release.
func (e heldEngine) hold(session string) (release func()) {
	s := e.sandboxes
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machines[session]; m != nil {
		return s.held(session, m)
	}
	return func() {} // the session has ended meanwhile
}

// Exec implements sandbox.Engine.
func (e heldEngine) Exec(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Process, error) {
	p, err := e.Engine.Exec(ctx, id, cmd)
	if err == nil {
		release := e.hold(id)
		e.sandboxes.background.Go(func() {
			_, _ = p.Wait(e.sandboxes.ctx) // how it ended is for the caller
			release()
		})
	}
	return p, err
}

// ReadFile implements sandbox.Files.
func (e heldEngine) ReadFile(ctx context.Context, id, path string) (sandbox.FileInfo, io.ReadCloser, error) {
	info, body, err := e.Engine.ReadFile(ctx, id, path)
	if err == nil {
		body = heldBody{body, e.hold(id)}
	}
	return info, body, err
}

// heldBody is the content of a file whose sandbox is in use until it is closed.
type heldBody struct {
	io.ReadCloser
	release func()
}

// Close ends the transfer.
func (b heldBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
