package control

import (
	"context"
	"errors"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// ending is why a session's sandbox is not there, or was started anew, as far as
// that is known from what happened. Nobody is told a reason that was not seen.
type ending int

const (
	endingUnseen  ending = iota // its processes have ended, and the memory limit ended none
	endingMemory                // the memory limit ended processes of it
	endingImage                 // its hibernated processes could not be brought back
	endingRestart               // a restart of the machine took its files
	endingRemoved               // the engine does not know it any more
)

// reason continues "The sandbox … ended", for callers and for the session's log.
func (e ending) reason() string {
	switch e {
	case endingMemory:
		return "because it was out of memory"
	case endingImage:
		return "because its processes could not be brought back from hibernation"
	case endingRestart:
		return "with a restart of the machine"
	case endingRemoved:
		return "because it was removed on the server's machine"
	}
	return "because its processes were ended; its memory limit did not end them"
}

// remadeWords tell a session's log of a sandbox that was started anew on its files.
func remadeWords(e ending) string {
	return "The session's sandbox ended " + e.reason() + ", and was started anew: its files are there, its processes are not."
}

// lostWords tell a session's log of a sandbox whose files are gone too.
func lostWords(e ending) string {
	return "The session's sandbox ended " + e.reason() + "; a fresh one takes its place, without the files."
}

// died finds out what ended the processes of a sandbox whose files are there. It
// is asked before the sandbox is started anew, which begins other counters.
func (s *Sandboxes) died(ctx context.Context, id string) ending {
	usage, err := s.engine.Usage(context.WithoutCancel(ctx), id)
	if err == nil && usage.OOMKills > 0 {
		return endingMemory
	}
	return endingUnseen
}

// lostBy is what took a sandbox with its files, from what the engine says of it.
func lostBy(info sandbox.Info, err error) ending {
	if err == nil && info.State == sandbox.StateStopped && !info.Files {
		return endingRestart
	}
	return endingRemoved
}

// sessionOver is what commands are told whose session has ended.
func sessionOver(rec SessionRecord) error {
	if !rec.ArchivedAt.IsZero() {
		return &Fault{Kind: Conflict, Message: "Session " + rec.ID + " was archived; its sandbox is gone.", Cause: errSessionGone}
	}
	return &Fault{Kind: NotFound, Message: "Session " + rec.ID + " was deleted; its sandbox is gone.", Cause: errSessionGone}
}

// endSession marks an entry, so that whoever uses its sandbox is told that the
// session has ended, and not what became of the sandbox for that reason.
func (s *Sandboxes) endSession(e *entry, rec SessionRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.over = sessionOver(rec)
}

// unendSession takes endSession back: the session could not be ended. The entry may
// be nil.
func (s *Sandboxes) unendSession(e *entry) {
	if e == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.over = nil
}

// sessionEnd is what endSession said of an entry; nil while its session lives.
func (s *Sandboxes) sessionEnd(e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.over
}

// failure is why an attempt failed, for who waited for it.
func (s *Sandboxes) failure(ctx context.Context, e *entry) error {
	if over := s.sessionEnd(e); over != nil {
		return over
	}
	if errors.Is(e.err, context.Canceled) && ctx.Err() == nil {
		return &Fault{Kind: Unavailable, Message: "The server is shutting down.", Cause: e.err}
	}
	return e.err
}
