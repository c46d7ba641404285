package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
)

// shelf is a log that keeps what streams read.
type shelf struct {
	Store  // what a stream does not call
	mu     sync.Mutex
	events []EventRecord
	reads  int
}

func (s *shelf) LastEvent(context.Context, string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.events)), nil
}

func (s *shelf) Events(_ context.Context, _ string, _ EventFilter, page EventPage) ([]EventRecord, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	var out []EventRecord
	size := 0
	for _, e := range s.events[page.After:] {
		if len(out) == page.Limit || len(out) > 0 && size >= page.Bytes {
			return out, true, nil
		}
		out, size = append(out, e), size+len(e.Fields)
	}
	return out, false, nil
}

// add puts events of so many bytes into the log and does not publish them.
func (s *shelf) add(n, size int) []EventRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		seq := int64(len(s.events) + 1)
		s.events = append(s.events, EventRecord{Session: "s", Seq: seq, ID: fmt.Sprint("e", seq), Type: api.EventAgentMessage,
			ProcessedAt: time.UnixMicro(seq), Fields: []byte(`{"x":"` + strings.Repeat("x", size) + `"}`)})
	}
	return s.events[len(s.events)-n:]
}

func newStream(t *testing.T, previews ...string) (*shelf, *Turns, *Stream) {
	t.Helper()
	shelf := &shelf{}
	shelf.add(3, 1)
	turns := NewTurns(shelf, nil)
	s, err := turns.subscribe(t.Context(), "s", previews)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return shelf, turns, s
}

// drain reads a stream until it has an event with this id.
func drain(t *testing.T, s *Stream, last string) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		frames, err := s.Next(ctx, time.Minute)
		if err != nil {
			t.Fatalf("after %d events: %v", len(ids), err)
		}
		for _, f := range frames {
			_, id, _ := strings.Cut(string(f.Data), `"id":"`)
			id, _, _ = strings.Cut(id, `"`)
			if ids = append(ids, id); id == last {
				return ids
			}
		}
	}
}

// inOrder checks that ids are e<from>… each once.
func inOrder(t *testing.T, ids []string, from int) {
	t.Helper()
	for i, id := range ids {
		if want := fmt.Sprint("e", from+i); id != want {
			t.Fatalf("event %d is %s, want %s", i, id, want)
		}
	}
}

// TestSlowReader: a reader that does not read holds a bounded amount, and gets
// everything in order when it reads again.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 1000, 100_000, 1 << 20} {
		shelf, turns, s := newStream(t, api.EventAgentMessage)
		n := max(20, 4*maxStreamBytes/size)
		n = min(n, 5*maxStreamFrames)
		for range n {
			turns.hub.publish("s", shelf.add(1, size))
			turns.PreviewStart("s", api.EventPreview{Type: api.EventAgentMessage, ID: "p"})
			if len(s.frames) > maxStreamFrames || s.size > maxStreamBytes {
				t.Fatalf("%d frames of %d bytes are held", len(s.frames), s.size)
			}
		}
		s.frames = filterEvents(s.frames)
		ids := drain(t, s, fmt.Sprint("e", 3+n))
		inOrder(t, ids, 4)
		// It keeps up again, without the store.
		reads := shelf.reads
		turns.hub.publish("s", shelf.add(1, 1))
		inOrder(t, drain(t, s, fmt.Sprint("e", 4+n)), 4+n)
		if reads == 0 || shelf.reads > reads+1 {
			t.Errorf("size %d: %d reads of the store, then %d", size, reads, shelf.reads)
		}
	}
}

func filterEvents(frames []Frame) (events []Frame) {
	for _, f := range frames {
		if f.Type == api.EventAgentMessage {
			events = append(events, f)
		}
	}
	return events
}

// TestPublishedOutOfOrder: two writers publish in the other order than they
// wrote.
func TestPublishedOutOfOrder(t *testing.T) {
	t.Parallel()
	shelf, turns, s := newStream(t)
	events := shelf.add(4, 1)
	turns.hub.publish("s", events[2:3])
	turns.hub.publish("s", events[:2])
	turns.hub.publish("s", events[3:])
	turns.hub.publish("s", events[:1])
	inOrder(t, drain(t, s, "e7"), 4)
	if frames, err := s.Next(t.Context(), time.Millisecond); len(frames) > 0 || err != nil {
		t.Errorf("more: %v %v", frames, err)
	}
}

// TestPreviewsAreShed: what a reader gets of a preview is a beginning of it, and
// never something after the event itself.
func TestPreviewsAreShed(t *testing.T) {
	t.Parallel()
	shelf, turns, s := newStream(t, api.EventAgentMessage)
	turns.PreviewStart("s", api.EventPreview{Type: api.EventAgentThinking, ID: "t"}) // was not asked for
	turns.PreviewText("s", "unknown", 0, "x")                                        // has not begun
	turns.PreviewStart("s", api.EventPreview{Type: api.EventAgentMessage, ID: "e4"})
	turns.PreviewStart("s", api.EventPreview{Type: api.EventAgentMessage, ID: "e4"})
	for range 2 * maxStreamFrames {
		turns.PreviewText("s", "e4", 0, "x")
	}
	shown := len(s.frames)
	if shown < 10 || shown > maxStreamFrames/2 || s.frames[0].Type != api.EventStart {
		t.Fatalf("%d frames of a preview", shown)
	}
	_, _ = s.Next(t.Context(), time.Minute)
	turns.PreviewText("s", "e4", 0, "late")
	if len(s.frames) != 0 {
		t.Error("a preview goes on after a piece of it was shed")
	}
	turns.PreviewStart("s", api.EventPreview{Type: api.EventAgentMessage, ID: "e5"})
	turns.hub.publish("s", shelf.add(2, 1))
	turns.PreviewText("s", "e5", 0, "late")
	if n := len(s.frames); n != 3 || s.frames[2].Type != api.EventAgentMessage {
		t.Errorf("%d frames; the last must be the event", n)
	}
}

// TestStreamsRace has writers, readers that come and go, and an end, at once.
func TestStreamsRace(t *testing.T) {
	t.Parallel()
	shelf := &shelf{}
	turns := NewTurns(shelf, nil)
	const events = 2000
	var readers, writers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			s, err := turns.subscribe(t.Context(), "s", []string{api.EventAgentMessage})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			s.mu.Lock() // the writers are at work already
			from := s.at - int64(len(filterEvents(s.frames)))
			s.mu.Unlock()
			for from < events {
				frames, err := s.Next(t.Context(), time.Minute)
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				for _, f := range filterEvents(frames) {
					if from++; !strings.Contains(string(f.Data), fmt.Sprintf(`"id":"e%d"`, from)) {
						t.Errorf("%.80s instead of e%d", f.Data, from)
						return
					}
				}
			}
		})
		readers.Go(func() {
			for range 50 {
				s, err := turns.subscribe(t.Context(), "s", nil)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = s.Next(t.Context(), time.Millisecond)
				s.Close()
			}
		})
	}
	for range 4 {
		writers.Go(func() {
			for range events / 4 {
				turns.PreviewStart("s", api.EventPreview{Type: api.EventAgentMessage, ID: "p"})
				turns.PreviewText("s", "p", 0, "x")
				turns.hub.publish("s", shelf.add(1, 500))
			}
		})
	}
	writers.Wait()
	readers.Wait()
	if n := turns.Streams(""); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// TestStreamLimits: a session has so many streams and no more.
func TestStreamLimits(t *testing.T) {
	t.Parallel()
	_, turns, _ := newStream(t)
	for range maxStreams - 1 {
		if _, err := turns.subscribe(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := turns.subscribe(t.Context(), "s", nil); err == nil {
		t.Error("no end of streams")
	}
	if s, err := turns.subscribe(t.Context(), "other", nil); err != nil {
		t.Error(err)
	} else {
		turns.Close()
		if _, err := s.Next(t.Context(), time.Minute); !errors.Is(err, io.EOF) {
			t.Errorf("closed: %v", err)
		}
	}
	if _, err := turns.subscribe(t.Context(), "new", nil); err == nil {
		t.Error("a stream of what is closed")
	}
}
