package tools

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/creack/pty"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

const program = "/bin/bash"

// setUpTime is how long a new shell may take to answer.
const setUpTime = 30 * time.Second

var errTerminated = errors.New("bash session terminated")

// shell is the persistent shell of a sandbox. One call at a time has it.
type shell struct {
	turn chan struct{} // holds a token while a call has the shell
	dir  string        // where commands are handed over

	// The rest belongs to the call that has the turn; nil when no shell runs.
	now *session
}

// session is one run of the shell, from start to restart.
type session struct {
	cmd    *exec.Cmd
	pty    *os.File
	ended  chan struct{} // closed when the shell's process is gone
	closed chan struct{} // closed when nothing more comes from the terminal
	to     chan *output  // hands the terminal's reader the output to write to
}

func newShell(dir string) *shell { return &shell{turn: make(chan struct{}, 1), dir: dir} }

// run runs one bash call.
func (s *shell) run(ctx context.Context, req wire.ToolRequest) result {
	var in struct {
		Command   string `json:"command"`
		Restart   bool   `json:"restart"`
		TimeoutMS int64  `json:"timeout_ms"`
	}
	if r, ok := decode("bash", req.Input, &in); !ok {
		return r
	}
	if in.Command == "" && !in.Restart {
		return fail("bash: command is required")
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fail("bash: interrupted")
	}
	if in.Restart {
		s.stop()
		if in.Command == "" {
			return say("bash session restarted")
		}
	}
	if s.now == nil {
		if err := s.start(req.Dir, req.Env); err != nil {
			s.stop()
			return fail("bash: starting the shell: %v", err)
		}
	}
	timeout := defaultTimeout
	if in.TimeoutMS > 0 {
		timeout = min(time.Duration(min(in.TimeoutMS, maxTimeout.Milliseconds()))*time.Millisecond, maxTimeout)
	}
	spill := ""
	if req.Spill != "" {
		spill = filepath.Join(req.Spill, req.ID+".txt")
	}
	return s.command(ctx, in.Command, timeout, newOutput(spill))
}

// command runs a command in the shell. The shell reads it from a file, so that
// a quote that is not closed is an error at once and not a wait for more input.
func (s *shell) command(ctx context.Context, command string, timeout time.Duration, out *output) result {
	path := filepath.Join(s.dir, "command")
	if err := os.WriteFile(path, []byte(command), 0o600); err != nil {
		return fail("bash: handing over the command: %s", reason(err))
	}
	raw, status, err := s.exchange(ctx, fmt.Sprintf(`eval "$(<%s)" </dev/null 2>&1`, path), timeout, out)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		s.stop()
		return fail("%s\n[timed out]\nsession restarted after timeout", out.text(raw))
	case errors.Is(err, context.Canceled):
		s.stop()
		return fail("%s\n[interrupted]\nsession restarted after interrupt", out.text(raw))
	case err != nil:
		s.stop()
		_ = out.text(raw) // closes its file
		return fail("bash: %v", err)
	}
	if code, err := strconv.Atoi(status); err != nil || code != 0 {
		if err != nil {
			code = -1 // something wrote into the middle of the mark's line
		}
		return fail("%s\nexit code: %d", out.text(raw), code)
	}
	return say("%s", out.text(raw))
}

// exchange types a line, followed by a mark that no command can know and the
// status, and waits for the mark.
func (s *shell) exchange(ctx context.Context, line string, timeout time.Duration, out *output) (raw []byte, status string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var nonce [12]byte
	rand.Read(nonce[:])
	mark := "__ATOLL_" + hex.EncodeToString(nonce[:]) + "_"
	select {
	case s.now.to <- out:
	case <-s.now.closed:
		return nil, "", errTerminated
	}
	// The mark is typed in two halves: should the terminal show what is typed,
	// that is not the mark.
	half := len(mark) / 2
	if _, err := fmt.Fprintf(s.now.pty, "%s; printf '\\n%%s%%d\\n' '%s''%s' $?\n", line, mark[:half], mark[half:]); err != nil {
		return nil, "", errTerminated
	}
	for {
		if raw, status, ok := out.end(mark); ok {
			return raw, status, nil
		}
		select {
		case <-out.news:
		case <-ctx.Done():
			return out.all(), "", ctx.Err()
		case <-s.now.closed:
			return out.all(), "", errTerminated
		case <-s.now.ended:
			if raw, status, ok := out.end(mark); ok { // it ended right after
				return raw, status, nil
			}
			return out.all(), "", errTerminated
		}
	}
}

// start starts the shell on a terminal of its own.
func (s *shell) start(dir string, env []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	master, slave, err := pty.Open()
	if err != nil {
		return err
	}
	defer slave.Close()
	if err := setTerminal(slave); err != nil {
		_ = master.Close()
		return err
	}
	cmd := exec.Command(program, "--noprofile", "--norc", "--noediting")
	cmd.Dir, cmd.Env = dir, shellEnv(env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		_ = master.Close()
		return err
	}
	n := &session{cmd: cmd, pty: master, ended: make(chan struct{}), closed: make(chan struct{}), to: make(chan *output)}
	go func() { _ = cmd.Wait(); close(n.ended) }()
	go n.drain()
	s.now = n
	_, _, err = s.exchange(context.Background(), "set +m +H", setUpTime, newOutput(""))
	return err
}

// setTerminal lets the terminal show nothing of what is typed and leave what is
// written as it is.
func setTerminal(slave *os.File) error {
	var t syscall.Termios
	if err := ioctl(slave, syscall.TCGETS, &t); err != nil {
		return err
	}
	t.Lflag &^= syscall.ECHO
	t.Oflag &^= syscall.ONLCR
	return ioctl(slave, syscall.TCSETS, &t)
}

func ioctl(f *os.File, request uintptr, t *syscall.Termios) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(t))); errno != 0 {
		return fmt.Errorf("setting up the terminal: %w", errno)
	}
	return nil
}

// shellEnv is the sandbox's environment as the shell gets it.
func shellEnv(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(strings.ToUpper(v), "ANTHROPIC_") })
	return append(env, "PS1=", "PS2=", "TERM=dumb", "HISTFILE=")
}

// drain reads the terminal for as long as there is one, so that no program
// waits for a reader. Between calls what comes is dropped.
func (n *session) drain() {
	defer close(n.closed)
	out := newOutput("")
	pieces := make(chan []byte)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 32<<10)
			size, err := n.pty.Read(buf)
			if size > 0 {
				pieces <- buf[:size]
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case next := <-n.to:
			out = next
		case piece, ok := <-pieces:
			if !ok {
				return
			}
			_, _ = out.Write(piece)
		}
	}
}

// stop ends the shell with all that runs on its terminal.
func (s *shell) stop() {
	n := s.now
	if n == nil {
		return
	}
	s.now = nil
	killSession(n.cmd.Process.Pid)
	<-n.ended
	_ = n.pty.Close()
	<-n.closed
}

// killSession kills the programs of a session, whatever groups they have made.
// Those that have left the session go on.
func killSession(sid int) {
	for range 3 { // one may fork while the others are killed
		_ = syscall.Kill(-sid, syscall.SIGKILL)
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		killed := false
		for _, path := range stats {
			pid, session := statOf(path)
			if session == sid && pid > 1 {
				killed = syscall.Kill(pid, syscall.SIGKILL) == nil || killed
			}
		}
		if !killed {
			return
		}
	}
}

// statOf reads a process's id and its session from its stat file. The name of
// the program in it may hold anything.
func statOf(path string) (pid, session int) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0
	}
	end := strings.LastIndexByte(string(text), ')')
	fields := strings.Fields(string(text[end+1:]))
	if end < 0 || len(fields) < 4 {
		return 0, 0
	}
	pid, _ = strconv.Atoi(strings.Fields(string(text))[0])
	session, _ = strconv.Atoi(fields[3])
	return pid, session
}
