package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
)

const (
	shellFrame   = 1 << 20          // largest frame of a client, in bytes; it is passed on as it comes
	shellText    = 4 << 10          // largest text frame of a client, in bytes
	shellPing    = 30 * time.Second // how often a silent client is looked for
	shellEnd     = 5 * time.Second  // how long the last frames may take
	shellHangUp  = time.Second      // what programs get to end themselves in
	defaultShell = "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"
)

// shell runs a command, by default a login shell, on a terminal behind a
// WebSocket: binary frames are the terminal's bytes, text frames are
// [api.ShellControl]. The query takes rows, cols, term, cwd and command, which
// repeats for each argument.
func (s *server) shell(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := wantsSocket(r); err != nil {
		return err
	}
	cmd, err := shellCommand(queryOf(r))
	if err != nil {
		return err
	}
	// The command is started first, so that what is wrong with the session is
	// an HTTP error; its output waits for the connection.
	input, keyboard := io.Pipe()
	defer keyboard.Close()
	screen := &screen{ready: make(chan struct{})}
	cmd.Stdin, cmd.Stdout = input, screen
	p, err := s.sandboxes.Exec(r.Context(), caller, r.PathValue("id"), cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		screen.open(ctx, nil)
		s.hangUp(ctx, p)
		noteOf(r).err = err
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(shellFrame)
	screen.open(ctx, conn)
	typing := new(atomic.Bool)
	go readShell(ctx, conn, keyboard, typing, p, cancel)
	go pingSocket(ctx, conn, typing, cancel)
	exit, err := p.Wait(ctx)
	if err != nil {
		s.hangUp(ctx, p)
		return nil // the client has gone
	}
	endShell(conn, exit)
	return nil
}

// wantsSocket refuses a request that does not ask for a WebSocket.
func wantsSocket(r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return control.Faultf(control.Invalid, "upgrade: This route speaks WebSocket only")
	}
	return nil
}

func shellCommand(q *query) (sandbox.Command, error) {
	cmd := sandbox.Command{Args: q.values["command"], Dir: q.text("cwd")}
	if len(cmd.Args) == 0 {
		cmd.Args = []string{"/bin/sh", "-c", defaultShell}
	}
	term := q.text("term")
	if term == "" {
		term = "xterm-256color"
	}
	rows, cols := q.integer("rows").Or(24), q.integer("cols").Or(80)
	if rows < 1 || rows > 65535 || cols < 1 || cols > 65535 {
		q.bad("rows", "rows and cols are between 1 and 65535")
	}
	for _, text := range append([]string{term, cmd.Dir}, cmd.Args...) {
		if strings.Contains(text, "\x00") {
			q.bad("command", "NUL is not allowed")
		}
	}
	if cmd.Args[0] == "" {
		q.bad("command", "The program is empty")
	}
	cmd.Env = []string{"TERM=" + term}
	cmd.TTY = &sandbox.WindowSize{Rows: uint16(rows), Cols: uint16(cols)}
	return cmd, q.err
}

// readShell passes on what the client sends, until it goes; then it calls gone.
// typing is set while the terminal has no room and the connection is not read.
func readShell(ctx context.Context, conn *websocket.Conn, keyboard *io.PipeWriter, typing *atomic.Bool, p sandbox.Process, gone context.CancelFunc) {
	defer gone()
	buf := make([]byte, 4<<10)
	for {
		kind, frame, err := conn.Reader(ctx)
		if err != nil {
			_ = keyboard.CloseWithError(io.EOF) // never fails (io.Pipe)
			return
		}
		if kind == websocket.MessageBinary {
			if !typeFrame(keyboard, frame, buf, typing) {
				return
			}
			continue
		}
		data, err := io.ReadAll(io.LimitReader(frame, shellText+1))
		if err != nil {
			_ = keyboard.CloseWithError(io.EOF) // as above
			return
		}
		var msg api.ShellControl
		if len(data) > shellText || json.Unmarshal(data, &msg) != nil || msg.Type != "resize" || msg.Rows == 0 || msg.Cols == 0 {
			gone()                                                                             // before Close, which waits for the client's answer
			_ = conn.Close(websocket.StatusUnsupportedData, "text frames are resize messages") // it is over either way
			return
		}
		// A program that has just ended has no terminal any more.
		_ = p.Resize(sandbox.WindowSize{Rows: msg.Rows, Cols: msg.Cols})
	}
}

// typeFrame types a frame as it comes, and tells whether the connection and the
// terminal go on.
func typeFrame(keyboard *io.PipeWriter, frame io.Reader, buf []byte, typing *atomic.Bool) bool {
	for {
		n, err := frame.Read(buf)
		if n > 0 { // a pipe waits for a reader of nothing, too
			typing.Store(true)
			_, typed := keyboard.Write(buf[:n])
			typing.Store(false)
			if typed != nil {
				return false
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return true
		case err != nil:
			_ = keyboard.CloseWithError(io.EOF) // never fails (io.Pipe)
			return false
		}
	}
}

// pingSocket calls gone when the client does not answer. While unread is set
// nobody would see the answer, so that only a connection that is broken counts.
func pingSocket(ctx context.Context, conn *websocket.Conn, unread *atomic.Bool, gone context.CancelFunc) {
	tick := time.NewTicker(shellPing)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ping, cancel := context.WithTimeout(ctx, shellPing)
		err := conn.Ping(ping)
		cancel()
		if err != nil && !(unread.Load() && errors.Is(err, context.DeadlineExceeded)) {
			gone()
			return
		}
	}
}

// hangUp ends a command whose client has gone, as a terminal that is closed
// would.
func (s *server) hangUp(ctx context.Context, p sandbox.Process) {
	ctx = context.WithoutCancel(ctx)
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGHUP, shellHangUp}, {syscall.SIGKILL, killWait}} {
		wait, cancel := context.WithTimeout(ctx, step.wait)
		err := p.Signal(wait, int(step.signal))
		if err == nil {
			_, err = p.Wait(wait)
		}
		cancel()
		if err == nil {
			return
		}
	}
	s.log.ErrorContext(ctx, "a shell outlived its client")
}

func endShell(conn *websocket.Conn, exit sandbox.Exit) {
	ctx, cancel := context.WithTimeout(context.Background(), shellEnd)
	defer cancel()
	msg := api.ShellControl{Type: "exit", Code: &exit.Code}
	if exit.Signal != "" {
		msg.Signal = &exit.Signal
	}
	text, err := json.Marshal(msg)
	if err != nil {
		return
	}
	if conn.Write(ctx, websocket.MessageText, text) == nil {
		_ = conn.Close(websocket.StatusNormalClosure, "") // the client may be gone already
	}
}

// screen is the terminal's output: it waits for the connection and then
// passes everything on.
type screen struct {
	ready chan struct{}   // closed by open
	ctx   context.Context // of the connection; set before ready
	conn  *websocket.Conn // nil: there will be none; set before ready
}

func (s *screen) open(ctx context.Context, conn *websocket.Conn) {
	s.ctx, s.conn = ctx, conn
	close(s.ready)
}

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	<-s.ready
	if s.conn == nil {
		return 0, errClosed
	}
	if err := s.conn.Write(s.ctx, websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
