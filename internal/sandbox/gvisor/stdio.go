package gvisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// pipe makes a pipe of which this process polls one end and the sandbox has the
// other, which blocks: gVisor's programs see its flags.
func pipe(oursReads bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("making pipe: %w", err)
	}
	mine, other := fds[0], fds[1]
	if !oursReads {
		mine, other = other, mine
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		return nil, nil, fmt.Errorf("making pipe: %w", err)
	}
	return os.NewFile(uintptr(mine), "pipe"), os.NewFile(uintptr(other), "pipe"), nil
}

// openPipes makes standard input, output and error. A program never gets one of
// the server's own files: only pipes.
func (p *process) openPipes(cmd sandbox.Command) (theirs []*os.File, err error) {
	stdin, in, err := pipe(false)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, in)
	if cmd.Stdin == nil {
		_ = stdin.Close()
	} else {
		p.stdin = stdin
	}
	for _, w := range []io.Writer{cmd.Stdout, cmd.Stderr} {
		ours, out, err := pipe(true)
		if err != nil {
			p.abandon()
			return theirs, err
		}
		theirs = append(theirs, out)
		p.outputs = append(p.outputs, newOutput(ours, w, &p.box.held))
	}
	return theirs, nil
}

// openTerminal makes a terminal for all three.
func (p *process) openTerminal(cmd sandbox.Command) (theirs []*os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening terminal: %w", err)
	}
	master := os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		_ = master.Close()
		return nil, fmt.Errorf("opening terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		_ = master.Close()
		return nil, fmt.Errorf("opening terminal: %w", errno)
	}
	slave := os.NewFile(peer, "terminal")
	p.terminal = master
	p.outputs = []*output{newOutput(master, cmd.Stdout, &p.box.held)}
	if err := setSize(master, *cmd.TTY); err != nil {
		p.abandon()
		return []*os.File{slave}, err
	}
	return []*os.File{slave, slave, slave}, nil
}

func setSize(terminal *os.File, size sandbox.WindowSize) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return fmt.Errorf("sizing terminal: %w", err)
	}
	var ioctl error
	err = raw.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err := errors.Join(err, ioctl); err != nil {
		return fmt.Errorf("sizing terminal: %w", err)
	}
	return nil
}

// abandon closes our ends of a program that was not started.
func (p *process) abandon() {
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	for _, out := range p.outputs {
		_ = out.from.Close()
	}
}

// copyAll starts the copying in both directions.
func (p *process) copyAll(cmd sandbox.Command) {
	for _, out := range p.outputs {
		p.holds.Go(out.run)
	}
	switch {
	case p.terminal != nil && cmd.Stdin != nil:
		go p.typeIn(cmd.Stdin)
	case p.stdin != nil:
		go func() {
			_, _ = io.Copy(p.stdin, onlyReader{cmd.Stdin}) // the program may not want it all
			_ = p.stdin.Close()
		}()
	}
}

// onlyReader hides what else a reader can do: io.Copy must not hand our pipe's
// descriptor around.
type onlyReader struct{ io.Reader }

// typeIn sends input to the terminal. The terminal's host side turns control
// characters into signals for processes of the host, where there are none; so
// the signal is sent into the sandbox here.
func (p *process) typeIn(from io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := p.terminal.Write(buf[:n]); err != nil {
				return
			}
			for _, c := range buf[:n] {
				p.signalKey(c)
			}
		}
		if err != nil {
			return
		}
	}
}

// signalKey sends the signal of a control character, if the terminal's settings
// give it one now.
func (p *process) signalKey(c byte) {
	if c >= 0x20 && c != 0x7f {
		return // the usual case, without a system call
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return
	}
	var t *unix.Termios
	if cerr := raw.Control(func(fd uintptr) { t, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) }); cerr != nil || err != nil {
		return
	}
	if t.Lflag&unix.ISIG == 0 || c == 0 {
		return
	}
	for key, signal := range map[int]unix.Signal{unix.VINTR: unix.SIGINT, unix.VQUIT: unix.SIGQUIT, unix.VSUSP: unix.SIGTSTP} {
		if t.Cc[key] == c {
			p.settleInput()
			p.signalForeground(signal)
		}
	}
}

// settleInput waits until the terminal's host side has taken what was typed.
// It works that off in its own time, and for a signal it throws away what is
// to be shown: coming after our signal, that would be the program's answer to
// it, a shell's new prompt. A poll of the other end finishes the work first.
func (p *process) settleInput() {
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return
	}
	var peer uintptr
	var errno unix.Errno
	if raw.Control(func(fd uintptr) {
		peer, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	}) != nil || errno != 0 {
		return // it is being closed: nobody will look
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(peer), Events: unix.POLLIN}}, 0) // what it finds does not matter
	_ = unix.Close(int(peer))
}

// signalForeground signals the terminal's foreground programs. It fails when
// the program has ended, which is fine.
func (p *process) signalForeground(signal unix.Signal) {
	_ = p.box.sandbox.SignalProcess(containerID, p.pid, signal, true)
}

// output copies what a program writes to a writer of the caller's.
type output struct {
	from      *os.File
	to        io.Writer     // nil discards; touched only by run
	delivered chan struct{} // closed when nothing more will be written to to
	held      *heldOutputs  // where it is while something holds it open after the program's end
}

func newOutput(from *os.File, to io.Writer, held *heldOutputs) *output {
	return &output{from: from, to: to, delivered: make(chan struct{}), held: held}
}

// programEnded gives what still comes a little time.
func (o *output) programEnded() { _ = o.from.SetReadDeadline(time.Now().Add(outputGrace)) }

// run copies until the end of the stream. If a child of the ended program keeps
// it open, it is read on for nobody, so that the child can write, until too many
// are held open.
func (o *output) run() {
	defer o.from.Close()
	buf := make([]byte, 32<<10)
	err := o.copy(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		o.drain(buf)
	}
	o.to = nil
	close(o.delivered)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = o.from.SetReadDeadline(time.Time{})
		o.held.add(o)
		_ = o.copy(buf)
		o.held.remove(o)
	}
}

func (o *output) copy(buf []byte) error {
	for {
		n, err := o.from.Read(buf)
		o.write(buf[:n])
		if err != nil {
			return err
		}
	}
}

// write passes output on. After the writer failed the rest is discarded: the
// program must not notice.
func (o *output) write(p []byte) {
	if len(p) == 0 || o.to == nil {
		return
	}
	if _, err := o.to.Write(p); err != nil {
		o.to = nil
	}
}

// drain delivers what lies in the pipe at this moment: a slow writer must not
// cost output that was there in time. More than a pipe holds is newer.
func (o *output) drain(buf []byte) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	for left := 64 << 10; left > 0; {
		n := 0
		cerr := raw.Control(func(fd uintptr) { n, err = syscall.Read(int(fd), buf[:min(len(buf), left)]) })
		if cerr != nil || err != nil || n <= 0 {
			return
		}
		o.write(buf[:n])
		left -= n
	}
}
