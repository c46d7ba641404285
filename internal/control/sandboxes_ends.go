package control

import (
	"context"
	"errors"

	"github.com/atoll-run/atoll/internal/control/lifecycle"
)

// SandboxEvent is what happened to a session's sandbox by itself.
type SandboxEvent string

// What can happen to a sandbox.
const (
	// SandboxRemade: its processes ended (out of memory, say, or they could not be
	// brought back from hibernation) and it was started anew on its files.
	SandboxRemade SandboxEvent = "remade"
	// SandboxLost: its files are lost, mostly with a restart of the machine, and a
	// fresh sandbox takes its place.
	SandboxLost SandboxEvent = "lost"
	// SandboxCutOff: its network is broken, and is not mended while it runs.
	SandboxCutOff SandboxEvent = "cut off"
	// SandboxUnbuildable: there is none, because the environment's packages could
	// not be installed.
	SandboxUnbuildable SandboxEvent = "unbuildable"
)

// words of the events that carry none of their own, for the session's log.
var sandboxWords = map[SandboxEvent]string{
	SandboxCutOff: "The session's sandbox has no network any more, because it was taken apart or damaged on the server's machine: it reaches nothing. Its files and processes are there.",
}

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

// Error makes an ending the cause of a lifecycle.Status.
func (e ending) Error() string { return "the sandbox ended " + e.reason() }

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

// sessionOver is what commands are told whose session has ended.
func sessionOver(rec SessionRecord) error {
	if !rec.ArchivedAt.IsZero() {
		return &Fault{Kind: Conflict, Message: "Session " + rec.ID + " was archived; its sandbox is gone.", Cause: errSessionGone}
	}
	return &Fault{Kind: NotFound, Message: "Session " + rec.ID + " was deleted; its sandbox is gone.", Cause: errSessionGone}
}

// sessionEnd is what users of a sandbox are told whose session has ended since
// status; nil while the session lives.
func sessionEnd(status *lifecycle.Status) error {
	for status != nil {
		next := status.Next()
		// An end that failed has another status than an absent one after it.
		if errors.Is(status.Cause, errSessionGone) && (next == nil || status.State == lifecycle.Absent) {
			return status.Cause
		}
		status = next
	}
	return nil
}

// ended tells whoever used a sandbox, or waited for it, what became of it since
// status. If its session has ended, that is why. If its files are there it is
// started anew at once; if not, the loss is told, and a fresh one is made.
func (s *Sandboxes) ended(ctx context.Context, rec SessionRecord, status *lifecycle.Status) error {
	s.runs(ctx, rec, status)
	if over := sessionEnd(status); over != nil {
		return sandboxFault(ctx, over)
	}
	m, release := s.hold(rec)
	defer release()
	for ; status != nil; status = status.Next() {
		why := endingUnseen
		_ = errors.As(status.Cause, &why)
		switch status.State {
		case lifecycle.Lost:
			if m.Report(status, lifecycle.Told, nil) {
				s.notify(rec, SandboxLost, lostWords(why))
			}
			return Faultf(Conflict, "The sandbox of session %s ended %s. "+
				"Its files are lost; the next command runs in a fresh sandbox.", rec.ID, why.reason())
		case lifecycle.Dead:
			m.Want()
			return Faultf(Conflict, "The sandbox of session %s ended %s. "+
				"Its processes are gone and its files are kept; the next command finds them.", rec.ID, why.reason())
		}
	}
	m.Want() // it hibernates, or was brought back already
	return Faultf(Conflict, "The sandbox of session %s ended while the command ran, and was started anew or put aside. "+
		"Its processes are gone and its files are kept; the next command finds them.", rec.ID)
}
