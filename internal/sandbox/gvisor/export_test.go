package gvisor

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
