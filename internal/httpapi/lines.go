package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/atoll-run/atoll/api"
)

// lineWriter writes JSON objects, one a line, as they come. A client that does
// not read blocks it. Its methods may be called at the same time.
type lineWriter struct {
	flusher *http.ResponseController

	mu     sync.Mutex
	w      http.ResponseWriter // under mu
	open   bool                // the header is out; under mu
	closed bool                // under mu
}

func (l *lineWriter) write(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	if !l.open {
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.Header().Set("X-Content-Type-Options", "nosniff")
		l.w.WriteHeader(http.StatusOK)
		l.open = true
	}
	if _, err := l.w.Write(append(text, '\n')); err != nil {
		return err
	}
	return l.flusher.Flush()
}

func (l *lineWriter) begun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// unblock ends a write that waits for the client before long.
func (l *lineWriter) unblock() {
	// The error is for connections that have no deadline; those do not block.
	_ = l.flusher.SetWriteDeadline(time.Now().Add(killWait / 2))
}

// close refuses what comes later: the reply is over when the handler returns.
// The connection serves other requests then, so its deadline goes.
func (l *lineWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	_ = l.flusher.SetWriteDeadline(time.Time{}) // as in unblock
}

// outputWriter makes lines of what a command writes. A character that is cut
// in two by a write is held back until its rest comes. It is not for
// concurrent use.
type outputWriter struct {
	lines interface{ write(any) error }
	name  string
	held  []byte
}

// Write implements io.Writer.
func (o *outputWriter) Write(p []byte) (int, error) {
	data := append(o.held, p...)
	cut := len(data) - unfinished(data)
	o.held = append([]byte(nil), data[cut:]...)
	if cut == 0 {
		return len(p), nil
	}
	if err := o.send(data[:cut]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes what was held back. Its error is the client's loss only.
func (o *outputWriter) flush() {
	if len(o.held) > 0 {
		_ = o.send(o.held)
	}
}

func (o *outputWriter) send(data []byte) error {
	text, encoding := encodeOutput(data)
	return o.lines.write(api.ExecEvent{Type: o.name, Data: text, Encoding: encoding})
}

// unfinished is how many bytes at the end begin a character that is not whole.
func unfinished(data []byte) int {
	for n := 1; n <= min(utf8.UTFMax-1, len(data)); n++ {
		tail := data[len(data)-n:]
		if utf8.RuneStart(tail[0]) {
			if tail[0] >= utf8.RuneSelf && !utf8.FullRune(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}

// encodeOutput is output as JSON takes it: as text, or as base64 where it is
// not UTF-8.
func encodeOutput(data []byte) (text, encoding string) {
	if utf8.Valid(data) {
		return string(data), ""
	}
	return base64.StdEncoding.EncodeToString(data), "base64"
}
