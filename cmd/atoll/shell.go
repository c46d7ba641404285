package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/coder/websocket"
	"golang.org/x/term"
)

type shellCmd struct {
	clientFlags
	Session string `arg:"" help:"Session id."`
}

func (shellCmd) Help() string {
	return `Opens a shell on a terminal of its own in the session's sandbox. The exit code is the shell's; 125 when atoll itself
failed. Closing the connection ends the shell.`
}

// shellMessage is a text frame of the shell's WebSocket.
type shellMessage struct {
	Type string `json:"type"` // resize, exit, error
	Rows int    `json:"rows,omitempty"`
	Cols int    `json:"cols,omitempty"`
	Code int    `json:"code,omitempty"`
	// Message says why there is no shell.
	Message string `json:"message,omitempty"`
}

// Run connects this terminal, made raw, with one in the sandbox.
func (c shellCmd) Run(ctx context.Context, io *streams) error {
	in, ok := io.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return &exitError{code: codeOwn, err: errors.New("atoll shell needs a terminal; atoll exec runs single commands")}
	}
	client, err := c.client(io)
	if err != nil {
		return &exitError{code: codeOwn, err: err}
	}
	conn, err := client.dial(ctx, "/atoll/v1/sessions/"+url.PathEscape(c.Session)+"/shell")
	if err != nil {
		return &exitError{code: codeOwn, err: err}
	}
	defer conn.CloseNow()
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return &exitError{code: codeOwn, err: fmt.Errorf("preparing the terminal: %w", err)}
	}
	code, err := converse(ctx, conn, in, io.out)
	// Before a word is printed: a raw terminal shows it askew.
	if err := term.Restore(int(in.Fd()), before); err != nil {
		return &exitError{code: codeOwn, err: fmt.Errorf("restoring the terminal: %w", err)}
	}
	if err != nil {
		return &exitError{code: codeOwn, err: err}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// converse copies between the terminal and the connection until the shell
// ends, and answers its code.
func converse(ctx context.Context, conn *websocket.Conn, in *os.File, out io.Writer) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	go sendSizes(ctx, conn, in, resized)
	// A read of the terminal cannot be interrupted; the goroutine ends with the program.
	go func() { _ = sendInput(ctx, conn, in) }() // a dead connection shows in the read below
	for {
		kind, data, err := conn.Read(ctx)
		if err != nil {
			return 0, fmt.Errorf("the connection to the shell ended: %w", err)
		}
		if kind == websocket.MessageBinary {
			if _, err := out.Write(data); err != nil {
				return 0, fmt.Errorf("writing the shell's output: %w", err)
			}
			continue
		}
		var m shellMessage
		if err := json.Unmarshal(data, &m); err != nil {
			return 0, fmt.Errorf("reading from the shell: %w", err)
		}
		switch m.Type {
		case "exit":
			_ = conn.Close(websocket.StatusNormalClosure, "") // the other side may have closed first
			return m.Code, nil
		case "error":
			return 0, errors.New(m.Message)
		}
	}
}

// sendSizes tells the size of the terminal, now and whenever it changes.
func sendSizes(ctx context.Context, conn *websocket.Conn, in *os.File, resized <-chan os.Signal) {
	for {
		if cols, rows, err := term.GetSize(int(in.Fd())); err == nil && rows > 0 && cols > 0 {
			b, err := json.Marshal(shellMessage{Type: "resize", Rows: rows, Cols: cols})
			if err != nil || conn.Write(ctx, websocket.MessageText, b) != nil {
				return
			}
		}
		select {
		case <-resized:
		case <-ctx.Done():
			return
		}
	}
}

func sendInput(ctx context.Context, conn *websocket.Conn, in io.Reader) error {
	buffer := make([]byte, 4096)
	for {
		n, err := in.Read(buffer)
		if n > 0 {
			if err := conn.Write(ctx, websocket.MessageBinary, buffer[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}
