package gvisor

import (
	"context"
	"os"
)

// For the tests outside of the package.
var (
	IsHelper = isHelper
	NameOf   = nameOf
)

// StopProcesses has gVisor stop a sandbox's processes, as a checkpoint does first.
func StopProcesses(e *Engine, id string) error {
	b, err := e.open(id)
	if err != nil {
		return err
	}
	return b.sandbox.Pause(containerID)
}

// LaunchOnly starts gVisor for a hibernated sandbox without telling it what to do.
func LaunchOnly(e *Engine, id string) error {
	p := e.place(id)
	m, err := p.readMeta()
	if err != nil {
		return err
	}
	spec, err := e.prepare(id, p, m, "")
	if err != nil {
		return err
	}
	_, _, err = e.launch(p, spec, m, nil)
	return err
}

// Adopt changes an image as a checkpoint does.
var Adopt = adopt

// MaxStateBytes is the limit of an image's objects.
const MaxStateBytes = maxStateBytes

// AdopterStatus returns what the kernel says of an adopter once it has given up
// its privileges.
func AdopterStatus(ctx context.Context, dir string) ([]byte, error) {
	in, err := os.CreateTemp(dir, "in")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if err := in.Truncate(64 << 10); err != nil { // also the limit of what it writes
		return nil, err
	}
	out, err := os.CreateTemp(dir, "out")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if err := runAdopter(ctx, adopterStatus, dir, in, out); err != nil {
		return nil, err
	}
	return os.ReadFile(out.Name())
}
