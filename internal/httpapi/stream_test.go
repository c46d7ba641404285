package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// frame is a frame of a stream.
type frame struct {
	name string
	body map[string]any
}

// reader reads a stream.
type reader struct {
	t     testing.TB
	lines *bufio.Scanner
	close func()
	pings int
	pang  func(pings int) // is told of each ping; may be nil
}

// stream opens a stream, which is there when it returns.
func (r *rig) stream(path string, header ...string) *reader {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	r.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != "text/event-stream" {
		text, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("%s: %d %s %s", path, resp.StatusCode, got, text)
	}
	s := &reader{t: r.t, lines: bufio.NewScanner(resp.Body), close: cancel}
	s.lines.Buffer(nil, 32<<20)
	return s
}

// next is the next frame that is no ping; false when the stream has ended as it
// should.
func (s *reader) next() (frame, bool) {
	s.t.Helper()
	var f frame
	for s.lines.Scan() {
		line := s.lines.Text()
		name, isName := strings.CutPrefix(line, "event: ")
		data, isData := strings.CutPrefix(line, "data: ")
		switch {
		case isName:
			f.name = name
		case isData && f.name == "ping":
			if s.pings++; s.pang != nil {
				s.pang(s.pings)
			}
		case isData:
			if err := json.Unmarshal([]byte(data), &f.body); err != nil {
				s.t.Fatal(err)
			}
		case f.body != nil:
			return f, true
		}
	}
	if err := s.lines.Err(); err != nil {
		s.t.Fatalf("the stream broke: %v", err)
	}
	return f, false
}

// through reads up to and with a frame of this name.
func (s *reader) through(last string) (frames []frame) {
	s.t.Helper()
	for {
		f, ok := s.next()
		if !ok {
			s.t.Fatalf("the stream ended before %s", last)
		}
		if frames = append(frames, f); f.name == last {
			return frames
		}
	}
}

func bodies(frames []frame) (list []map[string]any) {
	for _, f := range frames {
		list = append(list, f.body)
	}
	return list
}

// TestStream: what a stream shows is what the list shows from when it was opened.
func TestStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	r.send(id, message("before"))
	before := r.until(id, turn...)
	thread := fmt.Sprint(dataOf(r.must("GET", "/v1/sessions/"+id+"/threads", ""))[0]["id"])
	all := map[string]*reader{
		"plain":            r.stream("/v1/sessions/" + id + "/events/stream"),
		"query":            r.stream("/v1/sessions/" + id + "/events/stream?beta=true"),
		"thread":           r.stream("/v1/sessions/" + id + "/threads/" + thread + "/stream"),
		"first generation": r.stream("/v1/sessions/"+id+"/events/stream", "Anthropic-Version", "2023-06-01", "Accept", "application/json"),
	}
	previewed := r.stream("/v1/sessions/" + id + "/events/stream?event_deltas[]=agent.message&event_deltas[]=agent.thinking&event_deltas[]=agent.message")
	thinking := r.stream("/v1/sessions/" + id + "/events/stream?event_deltas[]=agent.thinking")
	r.send(id, message("after"))
	want := r.until(id, turn...)[len(before):]
	for name, s := range all {
		frames := s.through("session.status_idle")
		if diff := cmp.Diff(want, bodies(frames)); diff != "" {
			t.Errorf("%s (-list +stream):\n%s", name, diff)
		}
		for _, f := range frames {
			expected := fmt.Sprint(f.body["type"])
			if name == "first generation" && expected == "session.usage" {
				expected = "message"
			}
			if f.name != expected {
				t.Errorf("%s: a %v in a frame called %s", name, f.body["type"], f.name)
			}
		}
	}
	if diff := cmp.Diff(want, bodies(thinking.through("session.status_idle"))); diff != "" {
		t.Errorf("previews of thinking alone:\n%s", diff)
	}
	frames := previewed.through("session.status_idle")
	var names []string
	text := ""
	for _, f := range frames {
		names = append(names, f.name)
		if delta, ok := f.body["delta"].(map[string]any); ok {
			text += fmt.Sprint(delta["content"].(map[string]any)["text"])
		}
	}
	withPreview := slices.Insert(slices.Clone(turn), 4, "event_start", "event_delta", "event_delta", "event_delta")
	if diff := cmp.Diff(withPreview, names); diff != "" {
		t.Fatal(diff)
	}
	start, complete := frames[4].body["event"].(map[string]any), frames[8].body
	if start["id"] != complete["id"] || start["type"] != "agent.message" || frames[5].body["event_id"] != complete["id"] || text != "You said: after" {
		t.Errorf("preview %v of %v, text %q", start, complete, text)
	}
	for query, message := range map[string]string{
		"event_deltas[]=agent.tool_use":                      "event_deltas[0]: Input should be 'agent.message' or 'agent.thinking'",
		"event_deltas[]=":                                    "event_deltas[0]: Input should be 'agent.message' or 'agent.thinking'",
		strings.Repeat("event_deltas[]=agent.message&", 101): "event_deltas: List should have at most 100 items",
	} {
		if got := r.ask("GET", "/v1/sessions/"+id+"/events/stream?"+query, ""); got.status != 400 || got.message() != message {
			t.Errorf("%.60s: %d %s", query, got.status, got.text)
		}
	}
}

// TestStreamEnds: a deleted session and a server that stops end streams; a silent
// one says that it is alive.
func TestStreamEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id, kept := r.session(""), r.session("")
	s, other := r.stream("/v1/sessions/"+id+"/events/stream"), r.stream("/v1/sessions/"+kept+"/events/stream")
	r.must("POST", "/v1/sessions/"+id+"/archive", "")
	if frames := s.through("session.status_terminated"); len(frames) != 2 {
		t.Errorf("archived: %v", frames)
	}
	r.must("DELETE", "/v1/sessions/"+id, "")
	if f, ok := s.next(); !ok || f.name != "session.deleted" {
		t.Errorf("deleted: %v", f)
	}
	if f, ok := s.next(); ok {
		t.Errorf("after the deletion: %v", f)
	}
	other.pang = func(pings int) {
		if pings == 4 {
			r.turns.Close()
		}
	}
	if f, ok := other.next(); ok || other.pings < 4 {
		t.Errorf("%d pings, then %v", other.pings, f)
	}
	if got := r.ask("GET", "/v1/sessions/"+kept+"/events/stream", ""); got.status != 503 {
		t.Errorf("a stream of a server that stops: %d %s", got.status, got.text)
	}
}

// TestDeadReader: a client that does not read ends after a while, and holds up
// nobody.
func TestDeadReader(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/sessions/%s/events/stream HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\n\r\n", id, key)
	if _, err := bufio.NewReaderSize(conn, 16).ReadByte(); err != nil {
		t.Fatal(err)
	}
	alive := r.stream("/v1/sessions/" + id + "/events/stream")
	// Much more than sockets and the stream together hold.
	big := strings.Repeat("x", 1<<20)
	for range 32 {
		r.commit(id, control.EventRecord{Type: api.EventAgentMessage, Fields: []byte(`{"content":[{"type":"text","text":"` + big + `"}]}`)})
		if f, ok := alive.next(); !ok || f.name != "agent.message" {
			t.Fatalf("the other reader got %s", f.name)
		}
	}
	alive.close()
	for deadline := time.Now().Add(30 * time.Second); r.turns.Streams(id) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the dead reader's stream is still there")
		}
	}
}

// commit puts events into a session's log as the loop does.
func (r *rig) commit(session string, events ...control.EventRecord) {
	r.t.Helper()
	for i := range events {
		events[i].ID = r.turns.EventID()
	}
	last, err := r.store.LastEvent(context.Background(), session)
	if err == nil {
		_, _, err = r.turns.Commit(context.Background(), control.Step{Workspace: r.workspace, Session: session, After: last, Events: events})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}
