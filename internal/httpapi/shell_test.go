package httpapi_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/sandbox"
)

func (r *rig) dial(ctx context.Context, query string) (*websocket.Conn, *http.Response, error) {
	return websocket.Dial(ctx, r.url+"/atoll/v1/sessions/sesn_1/shell"+query, &websocket.DialOptions{
		HTTPHeader: http.Header{"X-Api-Key": {key}},
	})
}

// TestShell: bytes both ways, the size of the window, and the end.
func TestShell(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, _, err := r.dial(ctx, "?rows=30&cols=100&term=vt100&command=sh&command=-c&command="+
		"echo+$TERM%3B+read+line%3B+echo+got+$line%3B+exit+7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	read := func(want string) {
		t.Helper()
		text := ""
		for text != want {
			kind, data, err := conn.Read(ctx)
			if err != nil || kind != websocket.MessageBinary || !strings.HasPrefix(want, text+string(data)) {
				t.Fatalf("read %q and %v %q, %v; want %q", text, kind, data, err, want)
			}
			text += string(data)
		}
	}
	read("vt100\n")
	if err := conn.Write(ctx, websocket.MessageText, []byte(`{"type":"resize","rows":50,"cols":120}`)); err != nil {
		t.Fatal(err)
	}
	if got := <-h.process().resized; got != (sandbox.WindowSize{Rows: 50, Cols: 120}) {
		t.Errorf("resized to %v", got)
	}
	if err := conn.Write(ctx, websocket.MessageBinary, []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	read("got hello\n")
	kind, data, err := conn.Read(ctx)
	var end api.ShellControl
	if err != nil || kind != websocket.MessageText || json.Unmarshal(data, &end) != nil || end.Type != "exit" || *end.Code != 7 {
		t.Errorf("end %s, %v", data, err)
	}
	if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("after the end: %v", err)
	}
}

// TestShellHangsUp: a client that leaves takes the command with it.
func TestShellHangsUp(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, leave := range []func(*websocket.Conn){
		func(c *websocket.Conn) { _ = c.Close(websocket.StatusNormalClosure, "") },
		func(c *websocket.Conn) { _ = c.CloseNow() },
		func(c *websocket.Conn) { _ = c.Write(ctx, websocket.MessageText, []byte("nonsense")) },
	} {
		conn, _, err := r.dial(ctx, "?command=sh&command=-c&command=trap+''+HUP%3B+echo+up%3B+sleep+60")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.Read(ctx); err != nil {
			t.Fatal(err)
		}
		leave(conn)
		<-h.process().done
		_ = conn.CloseNow() // it is closed already but in one case
	}
}

func TestShellRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	ctx := context.Background()
	for query, status := range map[string]int{"?rows=0": 400, "?cols=70000": 400, "?rows=x": 400, "?command=": 400, "?a;b": 400, "?a=%zz": 400, "?term=%00": 400, "?command=/no/such": 400} {
		_, resp, err := r.dial(ctx, query)
		if err == nil || resp.StatusCode != status {
			t.Errorf("%s: %v", query, err)
		}
	}
	if got := r.ask("GET", "/atoll/v1/sessions/sesn_1/shell", ""); got.status != 400 || got.message() != "upgrade: This route speaks WebSocket only" {
		t.Errorf("%d %s", got.status, got.text)
	}
	if got := r.do(r.request("GET", "/atoll/v1/sessions/sesn_1/shell", nil, "Upgrade", "websocket", "Connection", "Upgrade")); got.status != 401 {
		t.Errorf("%d %s", got.status, got.text)
	}
	// A handshake that is no WebSocket leaves no command behind.
	if got := r.do(r.request("GET", "/atoll/v1/sessions/sesn_1/shell", nil, "Upgrade", "websocket", "X-Api-Key", key)); got.status < 400 || got.status >= 500 {
		t.Errorf("%d %s", got.status, got.text)
	}
}
