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

// session is one run of the shell, from start to restart. The shell has no
// terminal: it reads what it is to do from a pipe, and all that runs in it writes
// to another.
type session struct {
	cmd    *exec.Cmd
	input  *os.File      // our end of the shell's standard input
	output *os.File      // our end of the pipe that everything writes to; closed by drain
	quirk  *os.File      // keeps the terminal there whose settings the shell sees to; see start
	ended  chan struct{} // closed when the shell's process is gone
	closed chan struct{} // closed when nobody is left who could write
	to     chan *output  // hands the reader of the pipe the output to write to
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

// exchange sends the shell a line, followed by a mark that no command can know and the
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
	// The mark is sent in two halves: should the shell show what it reads (set -v
	// and -x do), that is not the mark.
	half := len(mark) / 2
	if _, err := fmt.Fprintf(s.now.input, "%s; printf '\\n%%s%%s%%d\\n' %s %s $?\n", line, mark[:half], mark[half:]); err != nil {
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

// start starts the shell in a session of its own that has no terminal: nobody
// sits at one, so nothing may wait for a key or a password there. A program that
// opens /dev/tty is told that there is none, and one that reads its standard
// input finds the end at once.
//
// The shell itself is interactive all the same, so that a mistake in a command
// does not end it. An interactive bash repairs the settings of its terminal
// whenever a signal ended a program, and complains where it has none. So it
// begins with one as its standard error, which it remembers for that purpose and
// its programs never see.
func (s *shell) start(dir string, env []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	input, stdin, err := pipe(false)
	if err != nil {
		return err
	}
	defer stdin.Close()
	from, stdout, err := pipe(true)
	if err != nil {
		_ = input.Close()
		return err
	}
	defer stdout.Close()
	quirk, stderr, err := pty.Open()
	if err != nil {
		_, _ = input.Close(), from.Close()
		return err
	}
	defer stderr.Close()
	cmd := exec.Command(program, "--noprofile", "--norc", "--noediting", "-i")
	cmd.Dir, cmd.Env = dir, shellEnv(env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_, _, _ = input.Close(), from.Close(), quirk.Close()
		return err
	}
	n := &session{
		cmd: cmd, input: input, output: from, quirk: quirk,
		ended: make(chan struct{}), closed: make(chan struct{}), to: make(chan *output),
	}
	go func() { _ = cmd.Wait(); close(n.ended) }()
	go n.drain()
	s.now = n
	_, _, err = s.exchange(context.Background(), "exec 2>&1; set +m +H", setUpTime, newOutput(""))
	return err
}

// pipe makes a pipe. Our end is polled by this process; the other end blocks, as
// programs expect of their standard files.
func pipe(oursReads bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	mine, other := fds[0], fds[1]
	if !oursReads {
		mine, other = other, mine
	}
	if err := syscall.SetNonblock(mine, true); err != nil {
		_, _ = syscall.Close(mine), syscall.Close(other)
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	return os.NewFile(uintptr(mine), "pipe"), os.NewFile(uintptr(other), "pipe"), nil
}

// nobodyThere tells programs that they are read by a program: no pager, no
// question. The sandbox's own environment comes behind it and wins.
var nobodyThere = []string{
	"PAGER=cat", "GIT_PAGER=cat", "MANPAGER=cat", "SYSTEMD_PAGER=cat", "PSQL_PAGER=cat", "MYSQL_PAGER=cat", "GH_PAGER=cat", "BAT_PAGER=cat",
	"DELTA_PAGER=cat", "AWS_PAGER=", "GIT_TERMINAL_PROMPT=0", "GCM_INTERACTIVE=never", "GH_PROMPT_DISABLED=1", "PIP_NO_INPUT=1",
	"DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true", "NPM_CONFIG_YES=true",
	// What a program has written by the time it is killed is told; Python holds
	// it back from anything but a terminal.
	"PYTHONUNBUFFERED=1",
}

// shellEnv is the sandbox's environment as the shell gets it.
func shellEnv(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(strings.ToUpper(v), "ANTHROPIC_") })
	return slices.Concat(nobodyThere, env, []string{"PS1=", "PS2=", "TERM=dumb", "HISTFILE="})
}

// drain reads what the shell and its programs write for as long as there is
// somebody who could, also when the shell is gone, so that no program waits for a
// reader. Between calls what comes is dropped.
func (n *session) drain() {
	defer close(n.closed)
	defer n.output.Close()
	out := newOutput("")
	pieces := make(chan []byte)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 32<<10)
			size, err := n.output.Read(buf)
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

// stop ends the shell with all that runs in its session. A program that has left
// the session goes on; what it writes is dropped from here on.
func (s *shell) stop() {
	n := s.now
	if n == nil {
		return
	}
	s.now = nil
	killSession(n.cmd.Process.Pid)
	<-n.ended
	_, _ = n.input.Close(), n.quirk.Close()
	select {
	case n.to <- newOutput(""):
	case <-n.closed:
	}
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
