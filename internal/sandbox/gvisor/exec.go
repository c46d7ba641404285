package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// outputGrace is how long Wait waits for output that a background child of the
// ended program may still hold open.
const outputGrace = 200 * time.Millisecond

// Exec starts a program in its own process group.
func (e *Engine) Exec(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Process, error) {
	if len(cmd.Args) == 0 || cmd.Args[0] == "" {
		return nil, fmt.Errorf("empty command: %w", sandbox.ErrCommandNotFound)
	}
	b, err := e.open(id)
	if err != nil {
		return nil, err
	}
	args := &control.ExecArgs{Argv: cmd.Args, Envv: environment(b.meta.Env, cmd), WorkingDirectory: cmd.Dir}
	if args.WorkingDirectory == "" {
		args.WorkingDirectory = b.meta.Dir
	}
	return e.exec(ctx, id, b, args, cmd, nil)
}

// environment joins the sandbox's and the command's environment; gVisor takes
// the last of several values.
func environment(base []string, cmd sandbox.Command) []string {
	env := slices.Concat([]string{defaultPath}, base, cmd.Env)
	if cmd.TTY != nil && !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		env = append(env, "TERM=xterm")
	}
	return env
}

// exec starts a program from args, or the program open in execFile.
func (e *Engine) exec(ctx context.Context, id string, b *box, args *control.ExecArgs, cmd sandbox.Command, execFile *os.File) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	args.ContainerID = containerID
	args.Capabilities = execCapabilities()
	if !e.config.Descriptors.Take(id, execDescriptors) {
		return nil, fmt.Errorf("starting program: %w", sandbox.ErrTooMany)
	}
	leave := func() { e.config.Descriptors.Give(id, execDescriptors) }
	if !b.users.enter() {
		leave()
		return nil, sandbox.ErrHibernated
	}
	proc := &process{engine: e, id: id, box: b, done: make(chan struct{}), released: make(chan struct{})}
	var theirs []*os.File
	var err error
	if cmd.TTY != nil {
		theirs, err = proc.openTerminal(cmd)
		args.StdioIsPty = true
	} else {
		theirs, err = proc.openPipes(cmd)
	}
	defer closeAll(theirs)
	if err != nil {
		b.users.leave()
		leave()
		return nil, err
	}
	args.FilePayload = control.NewFilePayload(map[int]*os.File{0: theirs[0], 1: theirs[1], 2: theirs[2]}, execFile)
	proc.pid, err = b.sandbox.Execute(b.conf, args)
	if err != nil {
		proc.abandon()
		b.users.leave()
		leave()
		return nil, e.execError(id, args.Argv[0], err)
	}
	closeAll(theirs)
	proc.copyAll(cmd)
	proc.holds.Go(proc.await)
	go func() {
		proc.holds.Wait()
		b.users.leave()
		leave()
		close(proc.released)
	}()
	if ctx.Err() != nil { // the caller has left and will not know of it
		_ = proc.Signal(context.WithoutCancel(ctx), int(unix.SIGKILL))
		return nil, ctx.Err()
	}
	return proc, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a second close is harmless
	}
}

// execCapabilities are what root has inside: the usual set of containers without
// raw sockets. None of it reaches outside of gVisor.
func execCapabilities() *auth.TaskCapabilities {
	var set auth.CapabilitySet
	for _, c := range []linux.Capability{
		linux.CAP_AUDIT_WRITE, linux.CAP_CHOWN, linux.CAP_DAC_OVERRIDE, linux.CAP_FOWNER, linux.CAP_FSETID, linux.CAP_KILL,
		linux.CAP_MKNOD, linux.CAP_NET_BIND_SERVICE, linux.CAP_SETFCAP, linux.CAP_SETGID, linux.CAP_SETPCAP,
		linux.CAP_SETUID, linux.CAP_SYS_CHROOT,
	} {
		set.Add(c)
	}
	return &auth.TaskCapabilities{PermittedCaps: set, EffectiveCaps: set, BoundingCaps: set}
}

// execError sorts gVisor's refusal to start a program. It arrives as text: the
// call crosses a process.
func (e *Engine) execError(id, program string, err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "error finding executable"),
		strings.Contains(text, "failed to load ") && (strings.Contains(text, "no such file") || strings.Contains(text, "permission denied") ||
			strings.Contains(text, "exec format error") || strings.Contains(text, "not a directory") || strings.Contains(text, "is a directory")):
		return fmt.Errorf("%s: %w", program, sandbox.ErrCommandNotFound)
	case strings.Contains(text, "failed to find initial working directory"):
		return fmt.Errorf("working directory: %w", sandbox.ErrNoFile)
	}
	if gone := e.goneSoon(id, err); gone != nil {
		return gone
	}
	return fmt.Errorf("starting program: %w", err)
}

// process is a program that runs in a sandbox.
type process struct {
	engine *Engine
	id     string
	box    *box
	pid    int32

	stdin    *os.File  // our end; nil if there is nothing to send
	outputs  []*output // stdout and stderr, or the terminal
	terminal *os.File  // our end; nil without a terminal
	sizing   sync.Mutex

	done chan struct{} // closed when the program ended and its output is delivered
	exit sandbox.Exit  // valid when done
	err  error         // valid when done

	holds    sync.WaitGroup // the program, and each output that something still holds open
	released chan struct{}  // closed when none is left: it no longer keeps the sandbox from hibernating
}

// await waits for the program's end, then for its output.
func (p *process) await() {
	status, err := p.box.sandbox.WaitPID(containerID, p.pid)
	if err != nil {
		p.exit = sandbox.Exit{Code: 128 + int(unix.SIGKILL), Signal: "SIGKILL"}
		p.err = p.engine.goneSoon(p.id, err)
		if p.err == nil {
			p.err = fmt.Errorf("waiting for program: %w", err)
		}
	} else {
		p.exit = decode(status)
	}
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	for _, out := range p.outputs {
		out.programEnded()
	}
	for _, out := range p.outputs {
		<-out.delivered
	}
	close(p.done)
}

func decode(status unix.WaitStatus) sandbox.Exit {
	if status.Signaled() {
		return sandbox.Exit{Code: 128 + int(status.Signal()), Signal: unix.SignalName(status.Signal())}
	}
	return sandbox.Exit{Code: status.ExitStatus()}
}

// Wait returns when the program has ended and its output was delivered.
func (p *process) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Signal delivers a signal to the program's process group.
func (p *process) Signal(ctx context.Context, number int) error {
	if number < 1 || number > 64 {
		return fmt.Errorf("%d is not a signal", number)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := p.box.sandbox.SignalProcessGroup(containerID, p.pid, unix.Signal(number))
	if err == nil || strings.Contains(err.Error(), "no such process group") || strings.Contains(err.Error(), "does not belong to container") {
		return nil
	}
	if gone := p.engine.gone(p.id); gone != nil {
		return nil // it ended with its sandbox
	}
	return fmt.Errorf("signalling program: %w", err)
}

var errNoTerminal = errors.New("the program has no terminal")

// Resize changes the size of the terminal and tells its foreground programs.
func (p *process) Resize(size sandbox.WindowSize) error {
	if p.terminal == nil {
		return errNoTerminal
	}
	p.sizing.Lock()
	defer p.sizing.Unlock()
	if err := setSize(p.terminal, size); err != nil {
		return err
	}
	p.signalForeground(unix.SIGWINCH)
	return nil
}
