package control

import (
	"context"
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/atoll-run/atoll/api"
)

// What a stream holds in memory at most: frames that its reader has not taken
// yet, and one page read from the store for a reader that has fallen behind. Half
// of the first is for events alone: previews are shed before it fills.
const (
	maxStreamFrames = 512
	maxStreamBytes  = 256 << 10
	maxCatchUp      = 256 << 10
	// maxHead is what an event has around its Fields.
	maxHead = 256
	// maxStreams is how many streams a session may have.
	maxStreams = 100
)

// Frame is one message of a stream: the type of the event and the event as JSON.
type Frame struct {
	// Type is the event's type, and the name of the server-sent event.
	Type string
	// Data is the event as clients see it, on one line.
	Data json.RawMessage
}

// hub gives what enters the sessions' logs to the streams.
type hub struct {
	mu       sync.Mutex
	closed   bool
	sessions map[string]map[*Stream]struct{}
}

// publish never waits for a reader.
func (h *hub) publish(session string, events []EventRecord) {
	for _, s := range h.of(session) {
		s.push(events)
	}
}

// preview gives a frame to the streams that asked for previews of the event's
// type.
func (h *hub) preview(session string, event api.EventPreview, frame string, body any) {
	var data []byte
	for _, s := range h.of(session) {
		if !s.previews[event.Type] {
			continue
		}
		if data == nil {
			var err error
			if data, err = json.Marshal(body); err != nil {
				return // strings and numbers always encode
			}
		}
		s.pushPreview(event.ID, Frame{Type: frame, Data: data})
	}
}

// of are the streams of a session.
func (h *hub) of(session string) []*Stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	streams := make([]*Stream, 0, len(h.sessions[session]))
	for s := range h.sessions[session] {
		streams = append(streams, s)
	}
	return streams
}

// end ends the streams of a session; last, unless it has no type, is the last
// frame of each.
func (h *hub) end(session string, last Frame) {
	for _, s := range h.of(session) {
		s.end(last)
	}
}

func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	var all []*Stream
	for _, streams := range h.sessions {
		for s := range streams {
			all = append(all, s)
		}
	}
	h.mu.Unlock()
	for _, s := range all {
		s.end(Frame{})
	}
}

// Stream is a reader's view of what enters a session's log after it was opened:
// every event once, in order. A reader that is slow is caught up from the store,
// so it costs a bounded amount of memory and never holds up the log. One
// goroutine reads it.
type Stream struct {
	turns    *Turns
	session  string
	previews map[string]bool // the types of events to preview

	mu      sync.Mutex
	frames  []Frame
	size    int            // bytes in frames
	at      int64          // Seq of the newest event that was put into frames
	seen    int64          // Seq of the newest event that was published
	behind  bool           // events after at are to be read from the store
	partial map[string]int // previews begun and not shed: event → frames
	ended   bool
	last    Frame         // the last frame of all, if it has a type
	wake    chan struct{} // has room for one
}

// subscribe opens a stream of what enters the log of a session from now on.
func (t *Turns) subscribe(ctx context.Context, session string, previews []string) (*Stream, error) {
	s := &Stream{turns: t, session: session, previews: map[string]bool{}, partial: map[string]int{}, behind: true, wake: make(chan struct{}, 1)}
	for _, name := range previews {
		s.previews[name] = true
	}
	h := &t.hub
	h.mu.Lock()
	switch {
	case h.closed:
		h.mu.Unlock()
		return nil, Faultf(Unavailable, "The server is shutting down")
	case len(h.sessions[session]) >= maxStreams:
		h.mu.Unlock()
		return nil, Faultf(RateLimited, "Session %s has %d open streams", session, maxStreams)
	}
	if h.sessions[session] == nil {
		h.sessions[session] = map[*Stream]struct{}{}
	}
	h.sessions[session][s] = struct{}{}
	h.mu.Unlock()
	// What is published from here on is noted; the log is followed from its end.
	last, err := t.store.LastEvent(ctx, session)
	if err != nil {
		s.Close()
		return nil, err
	}
	s.mu.Lock()
	s.at = last
	s.behind = s.seen > last
	s.mu.Unlock()
	return s, nil
}

// Close takes the stream out of the hub. The reader calls it last.
func (s *Stream) Close() {
	h := &s.turns.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions[s.session], s)
	if len(h.sessions[s.session]) == 0 {
		delete(h.sessions, s.session)
	}
}

func (s *Stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// push appends events that were published, or notes that they are to be read
// from the store: when the reader is slow, or when two writers publish in the
// other order than they wrote.
func (s *Stream) push(events []EventRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		s.seen = max(s.seen, e.Seq)
		if s.behind || e.Seq <= s.at {
			continue
		}
		size := len(e.Fields) + maxHead
		if e.Seq != s.at+1 || len(s.frames) >= maxStreamFrames || s.size+size > maxStreamBytes {
			s.fallBehind()
			continue
		}
		s.add(Frame{Type: e.Type, Data: e.Wire()})
		s.at = e.Seq
		delete(s.partial, e.ID)
		if e.Type == api.EventModelRequestEnd {
			clear(s.partial)
		}
	}
	s.signal()
}

func (s *Stream) fallBehind() {
	s.behind = true
	clear(s.partial)
}

func (s *Stream) add(f Frame) {
	s.frames = append(s.frames, f)
	s.size += len(f.Data)
}

// pushPreview appends a preview's frame or sheds it, and then the rest of that
// preview too.
func (s *Stream) pushPreview(event string, f Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, begun := s.partial[event]
	if s.behind || begun == (f.Type == api.EventStart) {
		return
	}
	if len(s.frames) >= maxStreamFrames/2 || s.size+len(f.Data) > maxStreamBytes/2 {
		delete(s.partial, event)
		return
	}
	s.partial[event]++
	s.add(f)
	s.signal()
}

func (s *Stream) end(last Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended, s.last = true, last
	}
	s.signal()
}

// Next waits for frames and takes them; none when none came in so long. It
// answers io.EOF when the stream has ended: the session was deleted, or the server
// shuts down.
func (s *Stream) Next(ctx context.Context, patience time.Duration) ([]Frame, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		frames, behind, err := s.take()
		if len(frames) > 0 || err != nil {
			return frames, err
		}
		if behind {
			if err := s.catchUp(ctx); err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-s.wake:
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take takes what there is.
func (s *Stream) take() (frames []Frame, behind bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	frames, s.frames, s.size = s.frames, nil, 0
	switch {
	case len(frames) > 0 || !s.ended:
		return frames, s.behind, nil
	case s.last.Type != "":
		frames, s.last = []Frame{s.last}, Frame{}
		return frames, false, nil
	}
	return nil, false, io.EOF
}

// catchUp reads a page of what the reader missed.
func (s *Stream) catchUp(ctx context.Context) error {
	s.mu.Lock()
	after := s.at
	s.mu.Unlock()
	events, more, err := s.turns.store.Events(ctx, s.session, EventFilter{}, EventPage{After: after, Limit: maxStreamFrames, Bytes: maxCatchUp})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		s.add(Frame{Type: e.Type, Data: e.Wire()})
		s.at = e.Seq
	}
	// What was published meanwhile was not kept. Where nothing is left to read,
	// the session was deleted.
	s.behind = more || s.seen > s.at && len(events) > 0
	return nil
}

// Streams is how many streams a session has, or with no session named, all.
func (t *Turns) Streams(session string) int {
	t.hub.mu.Lock()
	defer t.hub.mu.Unlock()
	if session != "" {
		return len(t.hub.sessions[session])
	}
	sum := 0
	for _, streams := range t.hub.sessions {
		sum += len(streams)
	}
	return sum
}
