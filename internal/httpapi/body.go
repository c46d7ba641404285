package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

const (
	// maxBody is how large a JSON body may be, in bytes.
	maxBody = 4 << 20
	// maxLargeBody is how large one may be that carries content of people's own:
	// events, the first events of a session, a command with its standard input.
	maxLargeBody = 32 << 20
	// freeMemory is how many bytes of a body, or of a stream of collected output,
	// are not counted against the memory for requests: small requests are served
	// while large ones have used it up.
	freeMemory = 16 << 10
	// bodyWeight is how many bytes of memory a byte of a JSON body takes at most
	// until it is decoded: the buffer, its predecessor while it grows, the texts.
	bodyWeight = 3
	// valueWeight is how many bytes of memory a value of a decoded body takes
	// beside its text.
	valueWeight = 160
	// slowestBody is how many bytes a second a client has to send, on average,
	// once the patience of [Config].BodyWait is used up.
	slowestBody = 1 << 10
	// unreadWait is how long the rest of a body that nobody reads is taken from
	// the connection after the reply, so that the reply arrives.
	unreadWait = 500 * time.Millisecond
)

// decode reads the JSON body of a request into what into points to, strictly.
func decode(r *http.Request, into any) error { return decodeWithin(r, into, maxBody) }

// decodeLarge is decode for bodies that carry content of people's own.
func decodeLarge(r *http.Request, into any) error { return decodeWithin(r, into, maxLargeBody) }

func decodeWithin(r *http.Request, into any, limit int64) error {
	body, err := readBody(r, limit)
	if err != nil {
		return err
	}
	if len(body) > 0 {
		if err := checkContentType(r); err != nil {
			return err
		}
	}
	return api.Decode(body, into)
}

// noBody is for requests that say all in their path. An empty object is taken
// for no body.
func noBody(r *http.Request) error {
	body, err := readBody(r, maxBody)
	if err != nil || len(body) == 0 {
		return err
	}
	return api.Decode(body, &struct{}{})
}

// readBody reads a JSON body of at most limit bytes.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, errTooLarge(limit)
	}
	return collect(r.Body, noteOf(r).memory, limit)
}

func errTooLarge(limit int64) error {
	return control.Faultf(control.TooLarge, "Request body is larger than %d bytes", limit)
}

// collect reads JSON to its end. It looks at what arrives: what is too large,
// has too many values, or finds no memory is refused before its rest is read.
func collect(from io.Reader, memory *memory, limit int64) ([]byte, error) {
	var bounds api.Bounds
	buf := make([]byte, 0, 2048)
	for {
		if len(buf) == cap(buf) {
			grown := min(2*int64(cap(buf)), limit+1)
			if grown > freeMemory && !memory.take((grown-int64(cap(buf)))*bodyWeight) {
				return nil, errNoMemory("Request body")
			}
			buf = append(make([]byte, 0, grown), buf...)
		}
		n, err := from.Read(buf[len(buf):cap(buf)])
		piece := buf[len(buf) : len(buf)+n]
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, errTooLarge(limit)
		}
		if err := bounds.Check(piece); err != nil {
			return nil, err
		}
		switch {
		case errors.Is(err, io.EOF):
			if n := int64(bounds.Values()) * valueWeight; n > freeMemory && !memory.take(n) {
				return nil, errNoMemory("Request body")
			}
			return buf, nil
		case err != nil:
			return nil, &control.Fault{Kind: control.Invalid, Message: "Request body could not be read", Cause: err}
		}
	}
}

// errNoMemory refuses what would need more memory than the requests have left.
func errNoMemory(what string) error {
	return control.Faultf(control.RateLimited, "%s: too many large requests are being served; try again in a moment", what)
}

// memory is what one request has of the memory for requests. Its methods may be
// called at the same time.
type memory struct {
	budget *control.Budget

	mu     sync.Mutex // guards what follows
	holder string     // the workspace; set before the first take
	held   int64      // bytes
	over   bool       // the request has ended and gets no more
}

func (m *memory) take(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over || !m.budget.Take(m.holder, n) {
		return false
	}
	m.held += n
	return true
}

// end returns everything.
func (m *memory) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.budget.Give(m.holder, m.held)
	m.held = 0
}

// patientBody is a request's body that waits for a client who is slow, and not
// for one who does not send: time that passes while nobody reads is not counted.
type patientBody struct {
	io.ReadCloser
	conn *http.ResponseController
	wait time.Duration // how long the client may send nothing; more for what it has sent

	mu       sync.Mutex    // guards what follows
	waited   time.Duration // for the client, so far
	received int64         // bytes, so far
	whole    bool          // it was read to its end
	failed   bool          // reading it has failed: the client broke it off or sent nothing for too long
	over     bool          // the reply has been decided; the connection's deadline is not the body's any more
}

// Read implements io.Reader.
func (b *patientBody) Read(p []byte) (int, error) {
	if err := b.begin(); err != nil {
		return 0, err
	}
	start := time.Now()
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waited += time.Since(start)
	b.received += int64(n)
	if err != nil {
		b.whole = errors.Is(err, io.EOF)
		b.failed = !b.whole
		if !b.over {
			// The server reads on, to see whether the client leaves, and for the next
			// request. A connection without deadlines does not block for ever either.
			_ = b.conn.SetReadDeadline(time.Time{})
		}
	}
	return n, err
}

// begin sets the time until which the next bytes have to come.
func (b *patientBody) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return http.ErrBodyReadAfterClose
	}
	if b.whole {
		return nil
	}
	earned := time.Duration(b.received) * (time.Second / slowestBody)
	_ = b.conn.SetReadDeadline(time.Now().Add(min(b.wait, max(b.wait+earned-b.waited, 0)))) // as in Read
	return nil
}

// broken tells whether the body could not be read to its end.
func (b *patientBody) broken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// giveUp ends the reading of a body whose rest nobody wants, and tells whether
// there is such a rest. The connection serves no other request then.
func (b *patientBody) giveUp() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole || b.over {
		return false
	}
	b.over = true
	_ = b.conn.SetReadDeadline(time.Now().Add(unreadWait)) // as in Read
	return true
}

// answerUnread makes the reply to a request go out before its body is read.
// What is still to come of the body is not read, and the connection is closed.
func answerUnread(w http.ResponseWriter, r *http.Request) {
	if body := noteOf(r).body; body != nil && body.giveUp() {
		_ = body.conn.EnableFullDuplex() // without it the reply waits for the body; HTTP/1 knows it
		w.Header().Set("Connection", "close")
	}
}

func checkContentType(r *http.Request) error {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || mediaType != "application/json" || charset != "" && charset != "utf-8" && charset != "UTF-8" {
		return control.Faultf(control.Invalid, "content-type: Input should be 'application/json'")
	}
	return nil
}

// reply writes a success.
func reply(w http.ResponseWriter, v any) error {
	writeJSON(w, http.StatusOK, v)
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic("httpapi: a reply that JSON does not take: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // the client may be gone
}
