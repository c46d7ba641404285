package image

import (
	"context"
	"io"
	"time"
)

// Registry is one host that a package manager of a template downloads from.
type Registry struct {
	// Manager is apt, cargo, gem, go, npm or pip.
	Manager string `json:"manager"`
	// Host is a lower-case host name or an IP literal, without a port.
	Host string `json:"host"`
	// Port is the TCP port; 0 means the default ports 80 and 443.
	Port int `json:"port"`
	// How the host is known: "asked" (the manager's own configuration says so), "observed" (the manager
	// reached it in a probe) or "operator" (Atoll's configuration says so).
	How string `json:"how"`
}

// Contact is one host that a box connected to, or was kept from.
type Contact struct {
	Host string // a name, or an address that no name stood for
	Port int    // 0: the name was looked up, and nothing more is known
	// Allowed tells whether the box's network let it through.
	Allowed bool
	// Count is how often it was tried.
	Count int
}

// BoxSpec says what builder sandbox to open: a normal sandbox with build limits.
type BoxSpec struct {
	// Purpose is for logs: "learn registries of base", "install pip".
	Purpose string
	// Layers are read-only directories, the lowest first.
	Layers []string
	// Env is the environment of every command, KEY=VALUE.
	Env []string
	// Registries are the only hosts that the box may reach. Ignored when Observe is set.
	Registries []Registry
	// Observe makes the network record public hosts instead of refusing them. For probes that run no package code.
	Observe bool
	// Timeout ends the box and everything in it, counted from its opening; 0 is the engine's own limit.
	Timeout time.Duration
}

// BoxCommand is one command in a box.
type BoxCommand struct {
	// Args is the argument vector; no shell is between.
	Args []string
	// Env is added to the box's, KEY=VALUE.
	Env []string
	// Dir is the working directory; empty is the root.
	Dir string
	// Output receives standard output and standard error, merged as they come. Nil discards.
	Output io.Writer
	// Stdout, if set, receives standard output instead; Output then has standard error only.
	Stdout io.Writer
	// Stdin is closed when nil.
	Stdin io.Reader
}

// BoxExit is how a command ended: Signal is empty unless a signal ended it.
type BoxExit struct {
	// Code is the exit status; 0 when a signal ended the command.
	Code int
	// Signal is the name of the signal that ended the command, like "SIGKILL"; empty if none did.
	Signal string
}

// BoxUsage is what a box has used so far.
type BoxUsage struct {
	// MemoryBytes is what the box's memory limit counts.
	MemoryBytes int64
	// DiskBytes is what its disk holds, in whole blocks.
	DiskBytes int64
	// OOMKills counts processes that the memory limit ended.
	OOMKills int64
	// DiskFull is true once a write was refused for want of space.
	DiskFull bool
	// PidsFull is true once a fork was refused by the limit of processes.
	PidsFull bool
}

// Box is an open builder sandbox. Run may be called from several goroutines; the others not.
type Box interface {
	// Run runs a command to its end. A command that fails is a BoxExit, not an error; an error means that the
	// box did not run it or lost it. When the context ends, the command's whole process group is killed.
	Run(ctx context.Context, cmd BoxCommand) (BoxExit, error)
	// Reached lists the hosts that the box connected to or was refused, so far.
	Reached() []Contact
	// Usage reports the box's use of its limits. It works after a command was killed by one of them.
	Usage(ctx context.Context) (BoxUsage, error)
	// Tree ends the box's processes and returns the host directory with everything that was written: an overlay
	// upper directory. It is valid until Close.
	Tree(ctx context.Context) (string, error)
	// Close removes everything that the box had. It must always be called, and works after a failure.
	Close(ctx context.Context) error
}

// OpenBox opens a builder sandbox.
type OpenBox func(ctx context.Context, spec BoxSpec) (Box, error)
