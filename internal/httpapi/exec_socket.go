package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

const (
	// inputFrame is the largest piece of standard input, in bytes.
	inputFrame = 64 << 10
	// inputWindow is how many pieces a client may send ahead of the
	// acknowledgements, so that reading the connection never waits for the
	// command: a client that leaves is seen at once.
	inputWindow = 16
	// requestWait is how long the first frame may take.
	requestWait = 30 * time.Second
)

// execSocket is exec over a WebSocket, for standard input that is sent while
// the command runs. The client's first frame is the text of the request that a
// POST would carry, without stdin. Binary frames are standard input, an empty
// one its end; each of the others is acknowledged by {"type":"stdin"} once the
// command has taken it, and at most [inputWindow] wait for that. The server
// sends the lines of a streamed POST as text frames, or an error body, which
// is then the last.
func (s *server) execSocket(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := wantsSocket(r); err != nil {
		return err
	}
	if !noteOf(r).memory.take(inputWindow * inputFrame) {
		return errNoMemory("Standard input")
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		noteOf(r).err = err
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	frames := &frameWriter{conn: conn, ctx: ctx, cut: cancel}
	if err := s.runSocket(ctx, cancel, r, caller, conn, frames); err != nil {
		wire, fault := asFault(r, err)
		if ctx.Err() != nil {
			return nil // the client has gone
		}
		if wire.status >= 500 {
			s.log.ErrorContext(ctx, "exec", "request_id", noteOf(r).requestID, "error", noteOf(r).err)
		}
		if frames.write(errorBody(noteOf(r), wire, fault)) != nil {
			return nil
		}
	}
	_ = conn.Close(websocket.StatusNormalClosure, "") // the client may be gone already
	return nil
}

// runSocket reads the request, runs the command and reports how it ended.
func (s *server) runSocket(ctx context.Context, gone context.CancelFunc, r *http.Request, caller control.Caller, conn *websocket.Conn, frames *frameWriter) error {
	req, err := readExec(ctx, conn, noteOf(r).memory)
	if err != nil {
		return err
	}
	cmd, err := execCommand(req)
	if err != nil {
		return err
	}
	if cmd.Stdin != nil {
		return control.Faultf(control.Invalid, "stdin: Standard input is sent as binary frames here")
	}
	input, keyboard := io.Pipe()
	defer input.Close()
	defer keyboard.Close()
	pieces := make(chan []byte, inputWindow)
	cmd.Stdin = input
	stdout, stderr := &outputWriter{lines: frames, name: "stdout"}, &outputWriter{lines: frames, name: "stderr"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	go readInput(ctx, gone, conn, pieces)
	go passInput(keyboard, pieces, frames)
	go pingSocket(ctx, conn, new(atomic.Bool), gone) // it is always read
	limit := time.Duration(req.TimeoutMS.Or(0)) * time.Millisecond
	end, err := s.run(ctx, caller, r.PathValue("id"), cmd, limit, frames.unblock)
	if err != nil {
		return err
	}
	stdout.flush()
	stderr.flush()
	_ = frames.write(api.ExecExit{Type: "exit", ExecEnd: end}) // the client may be gone
	return nil
}

// readExec reads the frame that says what to run.
func readExec(ctx context.Context, conn *websocket.Conn, memory *memory) (req api.Exec, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	conn.SetReadLimit(maxLargeBody)
	kind, frame, err := conn.Reader(ctx)
	if err != nil {
		return req, &control.Fault{Kind: control.Invalid, Message: "The request could not be read", Cause: err}
	}
	if kind != websocket.MessageText {
		return req, control.Faultf(control.Invalid, "The first frame should be a text frame with the request")
	}
	text, err := collect(frame, memory, maxLargeBody)
	if err != nil {
		return req, err
	}
	conn.SetReadLimit(inputFrame)
	return req, api.Decode(text, &req)
}

// readInput passes on the pieces of standard input until the client goes or
// breaks the protocol; then it calls gone.
func readInput(ctx context.Context, gone context.CancelFunc, conn *websocket.Conn, pieces chan<- []byte) {
	defer gone()
	open := true
	defer func() {
		if open {
			close(pieces)
		}
	}()
	for {
		kind, data, err := conn.Read(ctx)
		switch {
		case err != nil || kind != websocket.MessageBinary || !open:
			return
		case len(data) == 0:
			open = false
			close(pieces)
			continue
		}
		select {
		case pieces <- data:
		default:
			return // more than the window
		}
	}
}

// passInput hands pieces to the command and acknowledges them. A command that
// reads no more gets no more acknowledged.
func passInput(keyboard *io.PipeWriter, pieces <-chan []byte, frames *frameWriter) {
	for data := range pieces {
		if _, err := keyboard.Write(data); err != nil {
			return
		}
		if frames.write(api.ExecInput{Type: "stdin"}) != nil {
			return
		}
	}
	_ = keyboard.Close() // never fails (io.Pipe)
}

// frameWriter writes JSON objects, one a text frame. A client that does not
// read blocks it. Its methods may be called at the same time.
type frameWriter struct {
	conn *websocket.Conn
	ctx  context.Context // ends a write that waits
	cut  context.CancelFunc
}

func (f *frameWriter) write(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.conn.Write(f.ctx, websocket.MessageText, text)
}

// unblock ends a write that waits for the client before long.
func (f *frameWriter) unblock() {
	time.AfterFunc(killWait/2, f.cut)
}
