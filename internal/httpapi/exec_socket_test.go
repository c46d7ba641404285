package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// socket opens an exec over a WebSocket and sends its request.
func (r *rig) socket(ctx context.Context, session, request string) *websocket.Conn {
	r.t.Helper()
	conn, _, err := websocket.Dial(ctx, r.url+"/atoll/v1/sessions/"+session+"/exec", &websocket.DialOptions{
		HTTPHeader: http.Header{"X-Api-Key": {key}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.CloseNow() }) // closed already where the server ended it
	conn.SetReadLimit(1 << 20)
	if err := conn.Write(ctx, websocket.MessageText, []byte(request)); err != nil {
		r.t.Fatal(err)
	}
	return conn
}

// event reads one frame.
func event(ctx context.Context, t *testing.T, conn *websocket.Conn) map[string]any {
	t.Helper()
	_, text, err := conn.Read(ctx)
	var out map[string]any
	if err != nil || json.Unmarshal(text, &out) != nil {
		t.Fatalf("frame %q, %v", text, err)
	}
	return out
}

// TestExecSocket: input is taken while the command runs, each piece is
// acknowledged, an empty one ends it.
func TestExecSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn := r.socket(ctx, "sesn_1", `{"shell":"read a; echo got $a; cat | wc -c; echo err >&2; exit 5"}`)
	send := func(data []byte) {
		t.Helper()
		if err := conn.Write(ctx, websocket.MessageBinary, data); err != nil {
			t.Fatal(err)
		}
	}
	send([]byte("one\n"))
	acknowledged, stdout, stderr := 0, "", ""
	for stdout == "" || acknowledged == 0 {
		switch e := event(ctx, t, conn); e["type"] {
		case "stdin":
			acknowledged++
		case "stdout":
			stdout += e["data"].(string)
		}
	}
	if stdout != "got one\n" {
		t.Errorf("before the input ended: %q", stdout)
	}
	for range 3 {
		send(bytes.Repeat([]byte("x"), 64<<10))
	}
	send(nil)
	var end map[string]any
	for end == nil {
		switch e := event(ctx, t, conn); e["type"] {
		case "stdin":
			acknowledged++
		case "stdout":
			stdout += e["data"].(string)
		case "stderr":
			stderr += e["data"].(string)
		case "exit":
			end = e
		}
	}
	if strings.TrimSpace(stdout) != "got one\n196608" || stderr != "err\n" || end["code"] != 5.0 || acknowledged != 4 {
		t.Errorf("stdout %q, stderr %q, end %v, acknowledged %d", stdout, stderr, end, acknowledged)
	}
	if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("after the end: %v", err)
	}
}

// TestExecSocketRefused: what is wrong with a request is an error body, the
// last frame.
func TestExecSocketRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, test := range []struct{ session, request, kind, message string }{
		{"sesn_9", `{"command":["true"]}`, "not_found_error", "Session sesn_9 not found."},
		{"sesn_1", `{"command":["true"],"stdin":"x"}`, "invalid_request_error", "stdin: "},
		{"sesn_1", `{"command":["true"],"sdtin":"x"}`, "invalid_request_error", "sdtin"},
		{"sesn_1", `{"command":[]}`, "invalid_request_error", "command: "},
		{"sesn_1", `nonsense`, "invalid_request_error", ""},
	} {
		conn := r.socket(ctx, test.session, test.request)
		got := event(ctx, t, conn)
		fault, _ := got["error"].(map[string]any)
		message, _ := fault["message"].(string)
		if got["type"] != "error" || fault["type"] != test.kind || !strings.Contains(message, test.message) || got["request_id"] == "" {
			t.Errorf("%s: %v", test.request, got)
		}
		if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("%s: after the error: %v", test.request, err)
		}
	}
	if got := r.ask("GET", execPath, ""); got.status != 400 || got.message() != "upgrade: This route speaks WebSocket only" {
		t.Errorf("%d %s", got.status, got.text)
	}
}

// TestExecSocketEnds: a client that leaves, also one whose input nobody reads,
// and one that breaks the protocol take the command with them; time does too.
func TestExecSocketEnds(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	piece := bytes.Repeat([]byte("x"), 64<<10)
	for name, leave := range map[string]func(*websocket.Conn){
		"close": func(c *websocket.Conn) { _ = c.Close(websocket.StatusNormalClosure, "") },
		"drop":  func(c *websocket.Conn) { _ = c.CloseNow() },
		"drop with input waiting": func(c *websocket.Conn) {
			for range 8 {
				_ = c.Write(ctx, websocket.MessageBinary, piece)
			}
			_ = c.CloseNow()
		},
		"text": func(c *websocket.Conn) { _ = c.Write(ctx, websocket.MessageText, []byte("{}")) },
		"more than the window": func(c *websocket.Conn) {
			for range 64 {
				if c.Write(ctx, websocket.MessageBinary, piece) != nil {
					return
				}
			}
		},
	} {
		conn := r.socket(ctx, "sesn_1", `{"shell":"echo up; sleep 60"}`)
		if e := event(ctx, t, conn); e["data"] != "up\n" {
			t.Fatalf("%s: %v", name, e)
		}
		leave(conn)
		select {
		case <-h.process().done:
		case <-ctx.Done():
			t.Fatalf("%s: the command goes on", name)
		}
	}
	conn := r.socket(ctx, "sesn_1", `{"shell":"sleep 60","timeout_ms":50}`)
	if e := event(ctx, t, conn); e["type"] != "exit" || e["timed_out"] != true || e["code"] != 137.0 {
		t.Errorf("%v", e)
	}
}
