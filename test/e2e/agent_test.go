package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// TestAgentTurn sends one message and sees the whole turn: the model's words,
// its tools in the sandbox, and the final answer that uses their output.
func TestAgentTurn(t *testing.T) {
	s, model := newAgentServer(t, "", quickstart)
	session := s.session(s.toolAgent("always_allow"), s.environment(object{"base_template": "slim"}))
	s.say(session, "Print the Fibonacci numbers.")
	log := s.idle(session, 1, 2*time.Minute)
	want := []string{"session.status_running", "session.thread_status_running", "user.message",
		"span.model_request_start", "agent.thinking", "agent.message", "agent.tool_use", "agent.tool_use", "span.model_request_end",
		"agent.tool_result", "agent.tool_result",
		"span.model_request_start", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle"}
	if got := kinds(log); !slices.Equal(got, want) {
		t.Fatalf("events:\n got %v\nwant %v", got, want)
	}
	if got := log[12].text(); !strings.Contains(got, "0 1 1 2 3 5 8 13 21 34") {
		t.Errorf("the answer is %q", got)
	}
	var got struct {
		Status string
		Usage  struct {
			InputTokens int `json:"input_tokens"`
		}
	}
	s.call("GET", "/v1/sessions/"+session, nil, &got)
	if got.Status != "idle" || got.Usage.InputTokens == 0 {
		t.Errorf("session: %+v", got)
	}
	if model.Total() != 2 {
		t.Errorf("%d model requests, want 2", model.Total())
	}
	t.Run("secrets", func(t *testing.T) { secretsStayOut(t, s, session) })
}

// secretsStayOut looks for the keys in all that a sandbox can read, from the
// agent's own shell too.
func secretsStayOut(t *testing.T, s *server, session string) {
	look := `{ env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n'; ` +
		`grep -rslE "$PATTERN" / --include='*' --exclude-dir=sys --exclude-dir=proc --exclude-dir=dev 2>/dev/null; } > /tmp/found 2>&1; ` +
		`grep -cE "$PATTERN" /tmp/found | sed 's/^/matches: /'`
	// The pattern is put together inside, so that it does not find itself.
	pattern := `PATTERN="sk-(model|atoll)-e""2e"; `
	s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{bash(pattern + look)}}, {Text: "{{result}}"}}.Message())
	log := s.idle(session, 2, 4*time.Minute)
	answer := log[len(log)-5].text()
	if !strings.Contains(answer, "matches: 0") {
		t.Errorf("a key is visible inside, or the search failed: %q", answer)
	}
}

// TestAgentSurvivesKills kills the server at random moments of long
// conversations. Each log ends as if nothing had happened, but for the spans of
// model requests that were made again, and no command has run twice.
// ATOLL_KILLS says how often; 200 takes some minutes.
func TestAgentSurvivesKills(t *testing.T) {
	kills := 30
	if text := os.Getenv("ATOLL_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("ATOLL_KILLS: %v", err)
		}
		kills = n
	}
	s, _ := newAgentServer(t, "")
	agent, env := s.toolAgent("always_allow"), s.environment(object{"base_template": "slim"})
	const steps = 30
	var script modeltest.Script
	var want []string
	want = append(want, "session.status_running", "session.thread_status_running", "user.message")
	for i := range steps {
		script = append(script, modeltest.Reply{Text: fmt.Sprintf("step %d", i), Tools: []modeltest.ToolUse{bash(fmt.Sprintf("echo %d >> /workspace/log; echo %d", i, i))}})
		want = append(want, "span.model_request_start", "agent.message", "agent.tool_use", "span.model_request_end", "agent.tool_result")
	}
	script = append(script, modeltest.Reply{Text: "all done"})
	want = append(want, "span.model_request_start", "agent.message", "span.model_request_end",
		"session.thread_status_idle", "session.usage", "session.status_idle")
	random := rand.New(rand.NewPCG(7, 7)) // the moments are the machine's all the same
	for done := 0; done < kills; {
		session := s.session(agent, env)
		s.must(session, "true")
		s.say(session, script.Message())
		for done < kills {
			wait := time.After(time.Duration(random.IntN(400)) * time.Millisecond)
			<-wait // the moment is random; nothing is waited for
			if log, ok := s.events(session); ok && count(log, "session.status_idle") > 0 {
				break
			}
			s.kill9()
			done++
		}
		log := withoutCutRequests(s.idle(session, 1, 2*time.Minute))
		if got := kinds(log); !slices.Equal(got, want) {
			t.Fatalf("after %d kills: events:\n got %v\nwant %v", done, got, want)
		}
		seen := map[string]bool{}
		for _, e := range log {
			if seen[e.ID] {
				t.Errorf("event %s is there twice", e.ID)
			}
			seen[e.ID] = true
		}
		var lines []string
		for i := range steps {
			lines = append(lines, strconv.Itoa(i))
		}
		if got := strings.Fields(s.must(session, "cat /workspace/log")); !slices.Equal(got, lines) {
			t.Fatalf("after %d kills: the commands ran as %v, want each once", done, got)
		}
		s.call("DELETE", "/v1/sessions/"+session, nil, nil)
	}
	t.Logf("%d kills", kills)
}

// TestAgentAsks confirms, denies and interrupts over the wire.
func TestAgentAsks(t *testing.T) {
	s, _ := newAgentServer(t, "")
	session := s.session(s.toolAgent("always_ask"), s.environment(object{"base_template": "slim"}))
	s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{bash("echo one"), bash("echo two")}}, {Text: "{{result}}"}}.Message())
	log := s.idle(session, 1, 2*time.Minute)
	ids := log[len(log)-1].StopReason.EventIDs
	if len(ids) != 2 {
		t.Fatalf("waits for %v", ids)
	}
	s.call("POST", "/v1/sessions/"+session+"/events", object{"events": []object{
		{"type": "user.tool_confirmation", "tool_use_id": ids[0], "result": "allow"},
		{"type": "user.tool_confirmation", "tool_use_id": ids[1], "result": "deny", "deny_message": "not now"},
	}}, nil)
	var answer string
	waitFor(t, time.Minute, "the answer", func() bool {
		log, _ := s.events(session)
		i := slices.IndexFunc(log, func(e event) bool { return e.Type == "agent.message" })
		if i >= 0 {
			answer = log[i].text()
		}
		return i >= 0
	})
	if !strings.Contains(answer, "one") || strings.Contains(answer, "two") || !strings.Contains(answer, "not now") {
		t.Errorf("the model was told %q", answer)
	}
	s.idle(session, 2, time.Minute)

	// An interrupt ends a command that would run for long.
	quick := s.session(s.toolAgent("always_allow"), s.environment(object{"base_template": "slim"}))
	s.say(quick, modeltest.Script{{Tools: []modeltest.ToolUse{bash("touch /workspace/begun; sleep 1000")}}, {Text: "never"}}.Message())
	waitFor(t, time.Minute, "the command to run", func() bool { return s.exec(quick, "test -e /workspace/begun").Code == 0 })
	s.send(quick, object{"type": "user.interrupt"})
	log = s.idle(quick, 1, time.Minute)
	if count(log, "agent.message") > 0 || log[len(log)-1].StopReason.Type != "end_turn" {
		t.Errorf("the log is %v", kinds(log))
	}
	if out := s.must(quick, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(out, "sleep 1000") {
		t.Errorf("the command still runs: %s", out)
	}
}

// TestManyAgents runs many sessions' turns at once; none loses an event.
func TestManyAgents(t *testing.T) {
	many := 20
	if text := os.Getenv("ATOLL_SESSIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("ATOLL_SESSIONS: %v", err)
		}
		many = n
	}
	s, _ := newAgentServer(t, "limits: {memory: 128MiB, disk: 64MiB, processes: 200}\n")
	agent, env := s.toolAgent("always_allow"), s.environment(object{"base_template": "slim"})
	script := modeltest.Script{{Text: "a", Tools: []modeltest.ToolUse{bash("echo hello")}}, {Tools: []modeltest.ToolUse{bash("echo again")}}, {Text: "{{result}}"}}.Message()
	var work sync.WaitGroup
	var mu sync.Mutex
	var first []string
	for i := range many {
		work.Go(func() {
			session := s.session(agent, env)
			s.say(session, script)
			got := kinds(s.idle(session, 1, 10*time.Minute))
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = got
			}
			if !slices.Equal(first, got) {
				t.Errorf("session %d: events %v, want %v", i, got, first)
			}
		})
	}
	work.Wait()
}

// TestAgentHearsOfAFailedBuild: a session whose packages cannot be installed is
// told so without asking, once, and goes on: its agent hears it from each call that
// needs the sandbox, and answers all the same.
func TestAgentHearsOfAFailedBuild(t *testing.T) {
	s, _ := newAgentServer(t, "")
	env := s.environment(object{"base_template": "slim", "packages": object{"type": "packages", "apt": []string{"atoll-no-such-package-7f3a"}}})
	session := s.session(s.toolAgent("always_allow"), env)
	var told event
	waitFor(t, 4*time.Minute, "the session to be told", func() bool {
		log, _ := s.events(session)
		i := slices.IndexFunc(log, func(e event) bool { return e.Type == "session.error" })
		if i >= 0 {
			told = log[i]
		}
		return i >= 0
	})
	if told.Error.Type != "unknown_error" || !strings.Contains(told.Error.Message, "apt") || !strings.Contains(told.Error.Message, "atoll-no-such-package-7f3a") {
		t.Errorf("the session was told %+v", told.Error)
	}
	var words struct{ Error struct{ Message string } }
	var body string
	if code := s.try("POST", "/atoll/v1/sessions/"+session+"/exec", object{"shell": "true"}, &body); code != 409 {
		t.Errorf("exec answers %d: %s", code, body)
	}
	if err := json.Unmarshal([]byte(body), &words); err != nil || words.Error.Message != told.Error.Message {
		t.Errorf("exec says %q, the event %q", words.Error.Message, told.Error.Message)
	}
	for n := 1; n <= 2; n++ {
		s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{bash("true")}}, {Text: "I heard: {{result}}"}}.Message())
		log := s.idle(session, n, 2*time.Minute)
		last := log[slices.IndexFunc(log, func(e event) bool { return e.Type == "agent.message" }):]
		if said := last[0].text(); said != "I heard: "+told.Error.Message {
			t.Errorf("the agent says %q, the event %q", said, told.Error.Message)
		}
		if count(log, "session.error") != 1 || count(log, "session.status_terminated") != 0 || count(log, "agent.message") != n {
			t.Errorf("turn %d: %v", n, kinds(log))
		}
	}
}
