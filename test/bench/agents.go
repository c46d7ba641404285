package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// agents measures the agent loop: what a step costs beyond the model and the
// tool, and what sessions and streams cost in memory, on a server of its own
// with a scripted model.
func (b *bench) agents() (_ []group, err error) {
	model := &modeltest.Server{}
	endpoint := httptest.NewServer(model)
	defer endpoint.Close()
	defer endpoint.CloseClientConnections()
	w := &bench{dir: filepath.Join(b.dir, "agents"), n: b.n, quick: b.quick, atoll: b.atoll}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		return nil, err
	}
	defer w.close()
	config := fmt.Sprintf("model: {base_url: %q}\nsessions: {hibernate_after: 5s}\nlimits: {memory: 128MiB, disk: 64MiB, processes: 64}\n", endpoint.URL)
	if err := w.start(config); err != nil {
		return nil, err
	}
	if err := w.resources(); err != nil {
		return nil, err
	}
	var a struct{ ID string }
	if err := w.call("POST", "/v1/agents", object{"name": "tools", "model": "claude-opus-4-8", "tools": []object{{"type": "agent_toolset_20260401"}}}, &a); err != nil {
		return nil, err
	}
	w.agent = a.ID
	steps, events, err := w.steps(model, endpoint.URL)
	if err != nil {
		return nil, err
	}
	memory, err := w.memory()
	if err != nil {
		return nil, err
	}
	return []group{steps, events, memory}, nil
}

// steps plays one long conversation and takes its log apart.
func (b *bench) steps(model *modeltest.Server, endpoint string) (g, events group, err error) {
	g = group{Title: "A step of an agent: one model request, one command in its shell; times from the log"}
	session, _, err := b.firstExec(b.slim)
	if err != nil {
		return g, events, err
	}
	var script modeltest.Script
	for range 4 * b.n {
		script = append(script, modeltest.Reply{Tools: []modeltest.ToolUse{{Name: "bash", Input: json.RawMessage(`{"command":"true"}`)}}})
	}
	if len(script) > 190 {
		script = script[:190] // a turn is bounded
	}
	if err := b.say(session, script.Message()); err != nil {
		return g, events, err
	}
	log, err := b.untilIdle(session)
	if err != nil {
		return g, events, err
	}
	if took := log[len(log)-1].ProcessedAt.Sub(log[0].ProcessedAt).Seconds(); took > 0 {
		events = group{Title: "Events written by one conversation, each durable", Rows: []*sample{{Name: "atoll: one session", PerSec: float64(len(log)) / took}}}
	}
	whole := &sample{Name: "atoll: the whole step"}
	asking := &sample{Name: "of it: model request and one durable write"}
	running := &sample{Name: "of it: tool and one durable write"}
	rest := &sample{Name: "of it: between result and next request"}
	at := map[string]time.Time{}
	for _, e := range log {
		switch e.Type {
		case "span.model_request_start":
			if t, ok := at["agent.tool_result"]; ok {
				rest.add(e.ProcessedAt.Sub(t), nil)
			}
			if t, ok := at[e.Type]; ok {
				whole.add(e.ProcessedAt.Sub(t), nil)
			}
		case "span.model_request_end":
			asking.add(e.ProcessedAt.Sub(at["span.model_request_start"]), nil)
		case "agent.tool_result":
			running.add(e.ProcessedAt.Sub(at["span.model_request_end"]), nil)
		}
		at[e.Type] = e.ProcessedAt
	}
	direct := &sample{Name: "the model alone, asked the same"}
	requests := model.Requests()
	for i := range min(b.n, len(requests)) {
		t := time.Now()
		err := again(endpoint, requests[len(requests)-1-i])
		direct.add(time.Since(t), err)
	}
	g.Rows = []*sample{whole, asking, running, rest, direct}
	return g, events, b.call("DELETE", "/v1/sessions/"+session, nil, nil)
}

// again sends a request that the model got to it once more.
func again(endpoint string, r modeltest.Request) error {
	req, err := http.NewRequest(http.MethodPost, endpoint+"/v1/messages", bytes.NewReader(r.Body))
	if err != nil {
		return err
	}
	req.Header = r.Header
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// logEvent is an event as far as it is measured.
type logEvent struct {
	Type        string
	ProcessedAt time.Time `json:"processed_at"`
}

func (b *bench) say(session, text string) error {
	return b.call("POST", "/v1/sessions/"+session+"/events", object{"events": []object{
		{"type": "user.message", "content": []object{{"type": "text", "text": text}}}}}, nil)
}

// untilIdle waits for the end of a turn and answers the log.
func (b *bench) untilIdle(session string) ([]logEvent, error) {
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var list struct{ Data []logEvent }
		if err := b.call("GET", "/v1/sessions/"+session+"/events?limit=1000", nil, &list); err != nil {
			return nil, err
		}
		if n := len(list.Data); n > 0 && list.Data[n-1].Type == "session.status_idle" {
			return list.Data, nil
		}
	}
	return nil, errors.New("a turn does not end within five minutes")
}

// memory measures the server's own memory for sessions that have run and sleep,
// and for open streams.
func (b *bench) memory() (group, error) {
	sessions, streams := 40, 200
	if b.quick {
		sessions = 8
	}
	g := group{Title: fmt.Sprintf("Memory of the server, resident: %d sessions after a turn, their sandboxes asleep, then %d streams", sessions, streams), Unit: "KiB"}
	before, err := b.resident()
	if err != nil {
		return g, err
	}
	script := modeltest.Script{{Text: "hello", Tools: []modeltest.ToolUse{{Name: "bash", Input: json.RawMessage(`{"command":"echo hello"}`)}}}}.Message()
	var ids []string
	for range sessions {
		id, _, err := b.firstExec(b.slim)
		if err != nil {
			return g, err
		}
		ids = append(ids, id)
		if err := b.say(id, script); err != nil {
			return g, err
		}
		if _, err := b.untilIdle(id); err != nil {
			return g, err
		}
	}
	if err := b.allHibernate(sessions); err != nil {
		return g, err
	}
	idle, err := b.resident()
	if err != nil {
		return g, err
	}
	for i := range streams {
		req, err := http.NewRequest(http.MethodGet, b.url+"/v1/sessions/"+ids[i%len(ids)]+"/events/stream", nil)
		if err != nil {
			return g, err
		}
		req.Header.Set("x-api-key", key)
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return g, err
		}
		defer res.Body.Close()
	}
	open, err := b.resident()
	if err != nil {
		return g, err
	}
	g.Rows = []*sample{
		{Name: "atoll: a session that sleeps", Millis: []float64{max(0, idle-before) / float64(sessions)}},
		{Name: "atoll: an open stream", Millis: []float64{max(0, open-idle) / float64(streams)}},
	}
	return g, nil
}

// resident is the server's resident memory in KiB.
func (b *bench) resident() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.server.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 64)
		}
	}
	return 0, errors.New("the kernel does not tell the server's memory")
}
