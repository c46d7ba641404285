package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

func (s *server) sendEvents(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.EventsSend
	if err := decodeLarge(r, &req); err != nil {
		return err
	}
	sent, err := s.service.SendEvents(r.Context(), caller, r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return reply(w, sent)
}

func (s *server) listEvents(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	ask := control.EventQuery{
		Limit: q.integer("limit"), Page: q.text("page"), Order: q.text("order"), Types: q.list("types"),
		CreatedGT: q.moment("created_at[gt]"), CreatedGTE: q.moment("created_at[gte]"),
		CreatedLT: q.moment("created_at[lt]"), CreatedLTE: q.moment("created_at[lte]"),
	}
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListEvents(r.Context(), caller, r.PathValue("id"), ask)
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) listThreads(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	limit := q.integer("limit")
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListThreads(r.Context(), caller, r.PathValue("id"), limit, q.text("page"), q.list("statuses"))
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) getThread(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	thread, err := s.service.Thread(r.Context(), caller, r.PathValue("id"), r.PathValue("thread"))
	if err != nil {
		return err
	}
	return reply(w, thread)
}

func (s *server) archiveThread(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := noBody(r); err != nil {
		return err
	}
	return s.service.ArchiveThread(r.Context(), caller, r.PathValue("id"), r.PathValue("thread"))
}

func (s *server) listThreadEvents(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	limit := q.integer("limit")
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListThreadEvents(r.Context(), caller, r.PathValue("id"), r.PathValue("thread"), limit, q.text("page"))
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) streamEvents(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	if q.err != nil {
		return q.err
	}
	stream, err := s.service.StreamEvents(r.Context(), caller, r.PathValue("id"), q.list("event_deltas"))
	if err != nil {
		return err
	}
	defer stream.Close()
	return s.stream(w, r, stream)
}

func (s *server) streamThread(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	if q.err != nil {
		return q.err
	}
	stream, err := s.service.StreamThread(r.Context(), caller, r.PathValue("id"), r.PathValue("thread"), q.list("event_deltas"))
	if err != nil {
		return err
	}
	defer stream.Close()
	return s.stream(w, r, stream)
}

// firstGeneration is the version that the first generation of clients names.
const firstGeneration = "2023-06-01"

// frameName is what a frame is called. The oldest clients drop the names they do
// not know, and session.usage is one; they read it in a frame called message.
func frameName(r *http.Request, event string) string {
	if event == api.EventSessionUsage && r.Header.Get("Anthropic-Version") == firstGeneration {
		return "message"
	}
	return event
}

// sse writes server-sent events. A client that does not take a frame in time
// ends it.
type sse struct {
	w    http.ResponseWriter
	ctl  *http.ResponseController
	wait time.Duration
	buf  []byte
}

// frame adds a frame to what the next flush writes.
func (s *sse) frame(name string, data []byte) {
	s.buf = append(append(append(append(append(s.buf, "event: "...), name...), "\ndata: "...), data...), "\n\n"...)
}

// maxWrite is how much is written at once, each time within the client's time.
const maxWrite = 64 << 10

func (s *sse) flush() error {
	for rest := s.buf; len(rest) > 0; {
		piece := rest[:min(len(rest), maxWrite)]
		// The error is for connections that have no deadline; those do not block.
		_ = s.ctl.SetWriteDeadline(time.Now().Add(s.wait))
		if _, err := s.w.Write(piece); err != nil {
			return err
		}
		rest = rest[len(piece):]
	}
	if s.buf = s.buf[:0]; cap(s.buf) > maxWrite {
		s.buf = nil // a large event does not stay
	}
	return s.ctl.Flush()
}

// stream sends what a stream brings until it ends or the client is gone.
func (s *server) stream(w http.ResponseWriter, r *http.Request, stream *control.Stream) error {
	out := &sse{w: w, ctl: http.NewResponseController(w), wait: s.streamWait}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // proxies that would gather the frames
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	// A first frame tells clients behind proxies that the stream is open.
	out.frame("ping", pingData)
	defer func() { _ = out.ctl.SetWriteDeadline(time.Time{}) }() // the connection may serve other requests
	for {
		if err := out.flush(); err != nil {
			return nil // the client is gone
		}
		frames, err := stream.Next(r.Context(), s.ping)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && r.Context().Err() != nil:
			return nil
		case err != nil:
			s.log.ErrorContext(r.Context(), "reading a stream of events", "request_id", noteOf(r).requestID, "error", err)
			out.frame("error", errorFrame(r, err))
			_ = out.flush() // the client may be gone
			return nil
		}
		for _, f := range frames {
			out.frame(frameName(r, f.Type), f.Data)
		}
		if len(frames) == 0 {
			out.frame("ping", pingData)
		}
	}
}

// errorFrame is an error in a reply that has begun.
func errorFrame(r *http.Request, err error) []byte {
	wire, fault := asFault(r, err)
	text, err := json.Marshal(errorBody(noteOf(r), wire, fault))
	if err != nil {
		panic("httpapi: an error that JSON does not take: " + err.Error())
	}
	return text
}

var pingData = []byte(`{"type":"ping"}`)
