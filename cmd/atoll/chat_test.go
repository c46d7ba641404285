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

// TestChatScreen prints messages that are previewed whole, in part, and not.
func TestChatScreen(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := &chat{out: &out, err: io.Discard, uses: map[string]chatEvent{}}
	for _, text := range []string{
		`{"type":"event_delta","event_id":"m1","delta":{"content":{"text":"Hel"}}}`,
		`{"type":"event_delta","event_id":"m1","delta":{"content":{"text":"lo"}}}`,
		`{"type":"event_delta","event_id":"m1","delta":{"index":1,"content":{"text":"two"}}}`,
		`{"type":"agent.message","id":"m1","content":[{"type":"text","text":"Hello"},{"type":"text","text":"two"}]}`,
		`{"type":"event_delta","event_id":"m2","delta":{"content":{"text":"the begin"}}}`,
		`{"type":"agent.message","id":"m2","content":[{"type":"text","text":"the beginning and the rest"}]}`,
		`{"type":"agent.message","id":"m3","content":[{"type":"text","text":"whole"}]}`,
		`{"type":"event_delta","event_id":"m4","delta":{"content":{"text":"cut off"}}}`,
		`{"type":"session.status_idle","stop_reason":{"type":"end_turn"}}`,
	} {
		var e chatEvent
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		if _, err := c.show(chatFrame{event: e}); err != nil {
			t.Fatal(err)
		}
	}
	if want := "Hello\ntwo\nthe beginning and the rest\nwhole\ncut off\n"; out.String() != want {
		t.Errorf("on the screen is %q, want %q", out.String(), want)
	}
}

// TestChatTakesUp goes on with a session that waits for a confirmation.
func TestChatTakesUp(t *testing.T) {
	t.Parallel()
	answered := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sessions/sesn_x", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `{"status":"idle"}`) })
	mux.HandleFunc("GET /v1/sessions/sesn_x/events/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-answered
		for _, f := range []string{`{"type":"agent.message","id":"m","content":[{"type":"text","text":"done"}]}`, `{"type":"session.status_idle","stop_reason":{"type":"end_turn"}}`} {
			fmt.Fprintf(w, "event: x\ndata: %s\n\n", f)
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /v1/sessions/sesn_x/events", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("types[]") == "session.status_idle" {
			_, _ = io.WriteString(w, `{"data":[{"type":"session.status_idle","stop_reason":{"type":"requires_action","event_ids":["u1"]}}]}`)
			return
		}
		_, _ = io.WriteString(w, `{"data":[{"type":"agent.tool_use","id":"u1","name":"bash","input":{"command":"ls"}}]}`)
	})
	mux.HandleFunc("POST /v1/sessions/sesn_x/events", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if got := string(b); got != `{"events":[{"result":"allow","tool_use_id":"u1","type":"user.tool_confirmation"}]}` {
			t.Errorf("sent %s", got)
		}
		_, _ = io.WriteString(w, `{"data":[]}`)
		close(answered)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	env := map[string]string{"ATOLL_URL": server.URL, "ATOLL_API_KEY": "k"}
	code, stdout, stderr := command(t, env, "y\n", "chat", "--session", "sesn_x")
	if code != 0 || stdout != "done\n" || !strings.Contains(stderr, "allow bash: ls? [y/n]") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

// TestChatLongLine: what cannot be sent is said, not taken for the end.
func TestChatLongLine(t *testing.T) {
	t.Parallel()
	lines, unread := readLines(t.Context(), strings.NewReader("short\n"+strings.Repeat("x", 200<<10)+"\n"+strings.Repeat("x", maxLine+1)+"\n"))
	for _, want := range []int{5, 200 << 10} {
		if got, ok := <-lines; !ok || len(got) != want {
			t.Errorf("a line of %d bytes, want %d", len(got), want)
		}
	}
	if _, ok := <-lines; ok {
		t.Error("a line that is too long was given")
	}
	if err := <-unread; err == nil || !strings.Contains(err.Error(), "cannot be a message") {
		t.Errorf("got %v", err)
	}
}
