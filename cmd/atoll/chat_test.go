package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// TestChat holds a conversation of two lines with a hand-made server: a tool
// that is asked for, a custom tool, an error, and a message.
func TestChat(t *testing.T) {
	t.Parallel()
	frames := make(chan string, 100)
	var mu sync.Mutex
	var sent []string
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/environments", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"data":[{"id":"env_other","name":"other"}],"next_page":null}`)
	})
	mux.HandleFunc("POST /v1/environments", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `{"id":"env_chat"}`) })
	mux.HandleFunc("POST /v1/sessions", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if got := string(b); got != `{"agent":"agent_x","environment_id":"env_chat","title":"atoll chat"}` {
			t.Errorf("session made of %s", got)
		}
		_, _ = io.WriteString(w, `{"id":"sesn_x"}`)
	})
	mux.HandleFunc("GET /v1/sessions/sesn_x/events/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case f := <-frames:
				var e struct{ Type string }
				_ = json.Unmarshal([]byte(f), &e)
				fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.Type, f)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("POST /v1/sessions/sesn_x/events", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		sent = append(sent, string(b))
		n := len(sent)
		mu.Unlock()
		_, _ = io.WriteString(w, `{"data":[]}`)
		switch n {
		case 1:
			frames <- `{"type":"agent.tool_use","id":"u1","name":"bash","input":{"command":"ls\u001b[2J"}}`
			frames <- `{"type":"agent.custom_tool_use","id":"u2","name":"ask","input":{"a":1,"b":2}}`
			frames <- `{"type":"session.status_idle","stop_reason":{"type":"requires_action","event_ids":["u1","u2"]}}`
		case 2:
			frames <- `{"type":"agent.tool_result","tool_use_id":"u1","is_error":true,"content":[{"type":"text","text":"one\ntwo"}]}`
			frames <- `{"type":"session.error","error":{"message":"overloaded"}}`
			frames <- `{"type":"agent.message","id":"m","content":[{"type":"text","text":"the answer"}]}`
			frames <- `{"type":"session.status_idle","stop_reason":{"type":"end_turn"}}`
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	env := map[string]string{"ATOLL_URL": server.URL, "ATOLL_API_KEY": "k"}
	code, stdout, stderr := command(t, env, "hello\nnot this one\n42\n", "chat", "agent_x")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	want := "· bash: ls[2J\n· ask {\"a\":1,\"b\":2}\n! one\n! two\nthe answer\n"
	if stdout != want {
		t.Errorf("stdout:\n%s\nwant:\n%s", stdout, want)
	}
	for _, words := range []string{"session sesn_x", "allow bash: ls[2J? [y/n]", "answer for ask", "! overloaded"} {
		if !strings.Contains(stderr, words) {
			t.Errorf("%q is not in %q", words, stderr)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(sent) != 2 || !strings.Contains(sent[0], `"text":"hello"`) || !strings.Contains(sent[1], `"deny_message":"not this one"`) ||
		!strings.Contains(sent[1], `"custom_tool_use_id":"u2"`) || !strings.Contains(sent[1], `"text":"42"`) {
		t.Errorf("sent %q", sent)
	}
	if code, _, stderr := command(t, env, "", "chat"); code != 2 || !strings.Contains(stderr, "an agent or --session") {
		t.Errorf("exit %d, %q", code, stderr)
	}
}
