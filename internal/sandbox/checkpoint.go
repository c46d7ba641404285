package sandbox

import (
	"context"
	"errors"
)

// StateHibernated: the sandbox's processes are on disk and use neither memory
// nor processor; Restore lets them go on.
const StateHibernated State = "hibernated"

// Errors of a Checkpointer, and of an Engine that is one.
var (
	// ErrHibernated: the sandbox is hibernated, or about to be; Restore it first.
	ErrHibernated = errors.New("sandbox is hibernated")
	// ErrRunning: the sandbox runs, so there is nothing to restore or revive.
	ErrRunning = errors.New("sandbox is running")
	// ErrBusy: a command is under way, or a process that it left in the
	// background still holds its output, so the sandbox cannot hibernate.
	ErrBusy = errors.New("sandbox is busy")
	// ErrCheckpoint: the processes of a hibernated sandbox cannot be brought
	// back, for example because another version of the engine saved them. Its
	// files are there: Revive.
	ErrCheckpoint = errors.New("sandbox cannot be restored")
	// ErrFilesLost: the sandbox cannot be revived, because the machine was
	// restarted since, or it never came to run.
	ErrFilesLost = errors.New("files of the sandbox are lost")
)

// Checkpointer is an Engine that can put a sandbox aside and that keeps the
// files of one that died. It is killed at any moment without harm: what it
// leaves is a running, a hibernated or a stopped sandbox, for the next one to
// list and use. Its methods may be called at the same time as all others. When
// ctx ends they return its error; once processes are touched they go on.
type Checkpointer interface {
	Engine
	// Checkpoint saves a running sandbox to disk and frees its memory and
	// processes; its state is then StateHibernated and its network namespace is
	// not used any more. Processes that the sandbox's commands left running go on
	// after Restore as if nothing had happened, but for connections to the
	// outside, which are gone. ErrBusy while commands of Exec or Files are under
	// way; a command that an engine started which was killed meanwhile does not
	// survive. When saving fails the sandbox goes on. ErrCapacity when the disk
	// has no room. A hibernated sandbox stays as it is: nil.
	Checkpoint(ctx context.Context, id string) error
	// Restore lets a hibernated sandbox go on, in the network namespace netns
	// (empty as in Spec), which has the same addresses as the one before. On an
	// error it is hibernated as before. ErrRunning, ErrNotRunning, ErrCheckpoint.
	Restore(ctx context.Context, id, netns string) error
	// Revive starts a stopped sandbox anew: fresh processes on the files, with
	// the limits, that it had. A hibernated sandbox loses its saved processes so.
	// What its processes had not written yet is not in the files. On an error it
	// is stopped as before. ErrRunning, ErrFilesLost.
	Revive(ctx context.Context, id, netns string) error
}
