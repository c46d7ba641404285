package e2e

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal with somebody who reads it.
type terminal struct {
	t     *testing.T
	user  *os.File // where a person sits
	tty   *os.File // what the program has
	mu    sync.Mutex
	shown bytes.Buffer // under mu
}

func newTerminal(t *testing.T, rows, cols uint16) *terminal {
	user, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, user: user, tty: tty}
	t.Cleanup(func() { user.Close(); tty.Close() })
	term.resize(rows, cols)
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := user.Read(buffer)
			term.mu.Lock()
			term.shown.Write(buffer[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (term *terminal) resize(rows, cols uint16) {
	term.t.Helper()
	if err := pty.Setsize(term.user, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		term.t.Fatal(err)
	}
}

// see waits for a text and forgets what was shown up to its end.
func (term *terminal) see(text string) {
	term.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		term.mu.Lock()
		shown := term.shown.String()
		if i := strings.Index(shown, text); i >= 0 {
			term.shown.Next(i + len(text))
			term.mu.Unlock()
			return
		}
		term.mu.Unlock()
		if time.Now().After(deadline) {
			term.t.Fatalf("waited for %q on the terminal, which shows %q", text, shown)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (term *terminal) enter(keys string) {
	term.t.Helper()
	if _, err := term.user.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
}

func (term *terminal) settings() unix.Termios {
	term.t.Helper()
	settings, err := unix.IoctlGetTermios(int(term.tty.Fd()), unix.TCGETS)
	if err != nil {
		term.t.Fatal(err)
	}
	return *settings
}

// TestCommandShell sits at a terminal: prompt, window size, Ctrl-C, the exit
// code, and a terminal that is afterwards as it was.
func TestCommandShell(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	term := newTerminal(t, 31, 91)
	before := term.settings()
	cmd := s.cli("shell", id)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.tty, term.tty, term.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.see("# ")
	if now := term.settings(); now.Lflag&unix.ECHO != 0 || now.Lflag&unix.ISIG != 0 {
		t.Errorf("the terminal is not raw: %x", now.Lflag)
	}
	term.enter("echo $((6*7)) $(pwd)\r")
	term.see("42 /workspace")
	term.see("# ")
	term.enter("stty size\r")
	term.see("31 91")
	term.see("# ")
	term.resize(40, 120)
	term.enter("until stty size | grep '^40 120'; do sleep 0.1; done; echo en''d\r")
	term.see("end\r\n")
	term.enter("sleep 4711\r")
	waitFor(t, 30*time.Second, "the sleep", func() bool {
		return s.runs(id, "sleep 4711")
	})
	term.enter("\x03")
	term.see("^C\r\n") // and a prompt: what is typed ahead of it counts
	term.enter("echo co''de $?\r")
	term.see("code 130")
	term.enter("exit 9\r")
	if code := exitOf(t, cmd.Wait()); code != 9 {
		t.Errorf("exit %d, want 9", code)
	}
	if after := term.settings(); after != before {
		t.Errorf("the terminal was\n%+v and is\n%+v", before, after)
	}
}

// TestCommandShellRefused: no terminal, no session, and a connection that
// breaks off; each time the terminal is as before.
func TestCommandShellRefused(t *testing.T) {
	s := newServer(t, "")
	id := s.session(s.agent(), s.environment(object{"base_template": "slim"}))
	if code, _, stderr := s.atoll("", "shell", id); code != 125 || !strings.Contains(stderr, "needs a terminal") {
		t.Errorf("without a terminal: exit %d, %s", code, stderr)
	}
	term := newTerminal(t, 24, 80)
	before := term.settings()
	run := func(session string, while func()) {
		t.Helper()
		cmd := s.cli("shell", session)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = term.tty, term.tty, term.tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		while()
		if code := exitOf(t, cmd.Wait()); code != 125 {
			t.Errorf("shell %s: exit %d", session, code)
		}
		if after := term.settings(); after != before {
			t.Errorf("the terminal was\n%+v and is\n%+v", before, after)
		}
	}
	run("sesn_nothing", func() { term.see("Session sesn_nothing not found.") })
	run(id, func() {
		term.see("# ")
		s.kill9()
		term.see("atoll: the connection to the shell ended")
	})
}
