// Package sandbox is the contract between Atoll and whatever runs sandboxes.
//
// An [Engine] makes isolated Linux sandboxes out of read-only directories, runs
// commands in them and moves files in and out. The engine's list of sandboxes
// is the truth about what runs: a server that was killed asks List and removes
// what nobody wants. Nothing that comes out of a sandbox is trusted; output is
// streamed and never held whole. A failure of one sandbox never ends another.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors that an Engine returns, wrapped, for the caller to tell apart.
var (
	// ErrNotFound: there is no sandbox with this id.
	ErrNotFound = errors.New("sandbox not found")
	// ErrExists: a sandbox with this id is already there.
	ErrExists = errors.New("sandbox exists already")
	// ErrNotRunning: the sandbox is there but its processes have ended.
	ErrNotRunning = errors.New("sandbox is not running")
	// ErrCommandNotFound: the program to run is not in the sandbox or not executable.
	ErrCommandNotFound = errors.New("command not found")
	// ErrNoFile: the path does not exist in the sandbox.
	ErrNoFile = errors.New("no such file or directory")
	// ErrFile: the path exists but cannot be used as asked (a directory where a
	// file is wanted, a full disk, a permission). Its text says which.
	ErrFile = errors.New("file operation refused")
	// ErrCapacity: the host has no room for another sandbox. A [CapacityError]
	// says of what.
	ErrCapacity = errors.New("no capacity for another sandbox")
	// ErrTooMany: what the sandbox has open leaves no descriptors of the host for
	// another program.
	ErrTooMany = errors.New("too many commands and connections are open in it")
)

// CapacityError is an ErrCapacity that says what the host is short of.
type CapacityError struct {
	// Resource is what is short: "disk", "memory" or "processes".
	Resource string
	// Detail is for the operator: numbers of the host, and which settings help.
	// It tells about other sandboxes, so callers do not get it.
	Detail string
}

// Shortage makes a CapacityError; the format makes its Detail.
func Shortage(resource, format string, args ...any) *CapacityError {
	return &CapacityError{Resource: resource, Detail: fmt.Sprintf(format, args...)}
}

// Error says everything.
func (e *CapacityError) Error() string {
	return fmt.Sprintf("%v: not enough %s: %s", ErrCapacity, e.Resource, e.Detail)
}

// Unwrap makes it an ErrCapacity.
func (e *CapacityError) Unwrap() error { return ErrCapacity }

// Limits bound what one sandbox may use. Zero means the engine's default; there
// is no "unlimited".
type Limits struct {
	MemoryBytes int64   // memory of all processes and in-memory files together
	CPUs        float64 // processor time per wall time; 1.5 is one and a half cores
	Processes   int     // processes and threads inside the sandbox
	DiskBytes   int64   // bytes of the private writable directory; beyond: ENOSPC
}

// Spec says what sandbox to make.
type Spec struct {
	// ID names the sandbox on this host: 1–64 of [A-Za-z0-9_-].
	ID string
	// Hostname inside the sandbox. Empty means "sandbox".
	Hostname string
	// Layers are the read-only directories of the root filesystem, lowest
	// first: template base, then package layers. At least one. They are shared
	// between sandboxes and never written.
	Layers []string
	// Env is the environment of every process, "NAME=value", before Command.Env.
	Env []string
	// Dir is the working directory of processes that name none; it is created.
	Dir string
	// Dirs are further directories to create (absolute paths, mode 0755).
	Dirs []string
	// Files are small files the server places at start, absolute path → content
	// (mode 0644), over what the layers hold: /etc/resolv.conf, /etc/hosts.
	Files map[string][]byte
	// Limits of the sandbox.
	Limits Limits
	// NetNS is the path of the network namespace to run in. Empty means a
	// namespace with nothing but loopback.
	NetNS string
	// Labels are kept with the sandbox and reported by Inspect and List; they
	// let a server that was killed find its own.
	Labels map[string]string
}

// State of a sandbox, as the engine sees it.
type State string

// The states of a sandbox.
const (
	StateRunning State = "running" // accepts Exec
	StateStopped State = "stopped" // its processes ended; Destroy, Tree and Checkpointer.Revive are what is left
)

// Info describes a sandbox that exists.
type Info struct {
	// ID is the sandbox's, as Spec.ID named it.
	ID string
	// State is one of the State constants.
	State State
	// Labels are those of Spec.Labels; nil when there were none.
	Labels map[string]string
	// CreatedAt is when Create began, by the host's clock.
	CreatedAt time.Time
	// Files is true while the sandbox's files are there: always, but for a
	// stopped one that a restart of the machine took them from or that never
	// came to run. Such a one can only be destroyed.
	Files bool
}

// Usage is what a sandbox uses at one moment.
type Usage struct {
	// MemoryBytes counts what its cgroup holds, gVisor's own part and files in memory included.
	MemoryBytes int64
	// Processes counts processes and threads inside, as the limit counts them.
	Processes int
	// DiskBytes is what the sandbox's private disk holds in whole blocks.
	DiskBytes int64
	// OOMKills counts processes that the memory limit ended so far.
	OOMKills int64
}

// Command is a program to run in a sandbox.
type Command struct {
	// Args is the program and its arguments; the program is looked up on the
	// PATH of the command's environment. At least one.
	Args []string
	// Env is added to the sandbox's environment; a later entry wins.
	Env []string
	// Dir is the working directory; empty means Spec.Dir. It must exist.
	Dir string
	// Stdin is copied to the program's standard input, which is then closed.
	// Nil means an empty standard input. With a TTY it is the terminal's input.
	Stdin io.Reader
	// Stdout and Stderr receive the program's output as it comes. Writes to one
	// of them are never concurrent. Nil discards. With a TTY everything arrives
	// on Stdout. A writer that blocks holds the program back (no output is
	// dropped); a writer that fails ends the copying, not the program.
	Stdout, Stderr io.Writer
	// TTY runs the program on a terminal of this size.
	TTY *WindowSize
}

// WindowSize is the size of a terminal in characters. Zero leaves it to the
// program.
type WindowSize struct {
	// Rows is the height, Cols the width.
	Rows, Cols uint16
}

// Exit says how a program ended.
type Exit struct {
	Code   int    // exit status, 0–255; 128+n when a signal ended it
	Signal string // "SIGKILL" and the like, or empty
}

// Process is a running command. Its methods may be called at the same time.
type Process interface {
	// Wait returns when the program has ended and its output was delivered, or
	// with ctx's error when ctx ends first; the program then still runs. Output
	// that a background child of the program holds open is waited for 200 ms.
	Wait(ctx context.Context) (Exit, error)
	// Signal delivers a signal to the program's whole process group. A process
	// that has ended is not an error.
	Signal(ctx context.Context, signal int) error
	// Resize changes the size of the terminal; without one it is an error.
	Resize(size WindowSize) error
}

// Engine makes and runs sandboxes. All methods may be called at the same time,
// also for the same id. When ctx ends during a call, the call returns its error
// and leaves no half-made sandbox behind (Create undoes; Destroy goes on).
type Engine interface {
	// Create makes a sandbox and starts it; when it returns, Exec works.
	// A disk that a stopped sandbox with the same id left is not reused:
	// ErrExists. ErrCapacity when the host cannot promise what the limits allow,
	// beside what it has promised to the sandboxes that are there.
	Create(ctx context.Context, spec Spec) error
	// Exec starts a program in its own process group. ErrHibernated, here and for
	// Files, when a Checkpointer has put the sandbox aside.
	Exec(ctx context.Context, id string, cmd Command) (Process, error)
	// Inspect describes one sandbox.
	Inspect(ctx context.Context, id string) (Info, error)
	// List describes every sandbox of this engine's directory, whoever made it,
	// those of a killed server included.
	List(ctx context.Context) ([]Info, error)
	// Usage reports what a sandbox uses.
	Usage(ctx context.Context, id string) (Usage, error)
	// Tree ends the sandbox's processes and returns the path of its private
	// writable directory as an overlayfs upper directory (whiteouts are 0/0
	// character devices, opaque marks trusted.overlay.* attributes), complete
	// and unchanging until Destroy. For builders.
	Tree(ctx context.Context, id string) (string, error)
	// Destroy ends the sandbox and removes all it had: processes, mounts,
	// cgroups, directories. An absent sandbox is not an error.
	Destroy(ctx context.Context, id string) error
	// Close lets go of the engine; sandboxes go on.
	Close() error
}

// FileInfo describes a file in a sandbox.
type FileInfo struct {
	// Path is absolute, as it was asked for.
	Path string
	// Dir tells a directory from a regular file.
	Dir bool
	// Size of a regular file in bytes; -1 when it is known at the end of the
	// content only (long files of /proc).
	Size int64
	// Mode holds the permission bits, as chmod takes them.
	Mode uint32
	// Mtime is when the content last changed, by the sandbox's clock.
	Mtime time.Time
}

// Files moves files in and out of running sandboxes. Paths are absolute or
// relative to Spec.Dir and are resolved inside the sandbox: nothing in them,
// links included, reaches the host. Only regular files and directories are
// served.
type Files interface {
	// ReadFile opens a regular file for reading, or a directory as a tar
	// stream of its content (links as links, other kinds left out).
	ReadFile(ctx context.Context, id, path string) (FileInfo, io.ReadCloser, error)
	// WriteFile replaces a file atomically, creating its parents (0755). An
	// existing file keeps its mode; a new one gets mode. Who watches the file's
	// directory sees no other name appear, on the sandbox's disk.
	WriteFile(ctx context.Context, id, path string, mode uint32, r io.Reader) error
	// WriteTar unpacks a tar stream, plain or compressed by gzip or zstd, into a
	// directory, which is created. An entry whose path leaves the directory, by
	// itself or through a link, is refused, and so is a hard link to what is
	// outside. A symbolic link may name anything: where it leads is decided
	// inside, by who follows it.
	WriteTar(ctx context.Context, id, path string, r io.Reader) error
	// Remove removes a file or a directory with all in it.
	Remove(ctx context.Context, id, path string) error
}
