package agent_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

func use(name, input string) modeltest.ToolUse {
	return modeltest.ToolUse{Name: name, Input: json.RawMessage(input)}
}

// The order of events is the one that was recorded on the hosted service.
func TestTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.say(modeltest.Script{
		{Thinking: "hm", Text: "I look.", Tools: []modeltest.ToolUse{use("bash", `{"command":"ls"}`)}},
		{Text: "It said: {{result}}"},
	})
	log := w.untilIdle(1)
	equal(t, "events", kinds(log), []string{
		api.EventSessionRunning, api.EventThreadRunning, api.EventUserMessage,
		api.EventModelRequestStart, api.EventAgentThinking, api.EventAgentMessage, api.EventAgentToolUse, api.EventModelRequestEnd,
		api.EventAgentToolResult,
		api.EventModelRequestStart, api.EventAgentMessage, api.EventModelRequestEnd,
		api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle,
	})
	equal(t, "messages", texts(t, log), []string{"I look.", `It said: bash ran with {"command":"ls"}`})
	u := fields[api.ToolUseFields](t, log[6])
	if u.EvaluatedPermission != "allow" || u.Evaluation == nil || u.Evaluation.Type != "always_allow" {
		t.Errorf("evaluation: %s", log[6].Fields)
	}
	if r := fields[api.ToolResultFields](t, log[8]); r.ToolUseID != log[6].ID {
		t.Errorf("the result answers %s, want %s", r.ToolUseID, log[6].ID)
	}
	if stop := fields[api.IdleFields](t, log[14]).StopReason; stop.Type != api.StopEndTurn {
		t.Errorf("stop reason %+v", stop)
	}
	usage := fields[api.UsageFields](t, log[13]).Usage
	if usage.InputTokens == nil || *usage.InputTokens == 0 || usage.OutputTokens == nil || *usage.OutputTokens == 0 || usage.ActiveSeconds == nil {
		t.Errorf("usage: %s", log[13].Fields)
	}
	request := w.model.Requests()[0]
	if request.Model != "local-model" || request.Header.Get("Authorization") != "Bearer sk-model" {
		t.Errorf("asked for %q with %q", request.Model, request.Header.Get("Authorization"))
	}
	if !strings.Contains(string(request.Body), `"cache_control"`) || !strings.Contains(string(request.Body), "You play scripts.") {
		t.Errorf("no cache mark or system prompt in %s", request.Body)
	}
}

// A second message goes on with the same conversation.
func TestSecondTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.say(modeltest.Script{{Text: "one"}})
	w.untilIdle(1)
	w.say(modeltest.Script{{Text: "two"}})
	log := w.untilIdle(2)
	equal(t, "messages", texts(t, log), []string{"one", "two"})
	last := w.model.Requests()[1].Body
	if !strings.Contains(string(last), `"text":"one"`) {
		t.Errorf("the second request lacks the first reply: %s", last)
	}
}

// A message that arrives during a turn is taken at its next step.
func TestMessageDuringTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.tools.hold = make(chan struct{})
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`)}}, {Text: "not reached"}})
	<-w.tools.begun
	w.say(modeltest.Script{{Text: "the newer script"}})
	close(w.tools.hold)
	log := w.untilIdle(1)
	equal(t, "messages", texts(t, log), []string{"the newer script"})
	if n := len(of(log, api.EventSessionRunning)); n != 1 {
		t.Errorf("ran %d times, want one turn", n)
	}
}

func TestConfirmation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_ask"), builtin("read", "always_allow"))
	w.say(modeltest.Script{
		{Tools: []modeltest.ToolUse{use("bash", `{"command":"a"}`), use("read", `{"file_path":"f"}`), use("bash", `{"command":"b"}`)}},
		{Text: "{{result}}"},
	})
	log := w.untilIdle(1)
	uses := of(log, api.EventAgentToolUse)
	stop := fields[api.IdleFields](t, of(log, api.EventSessionIdle)[0]).StopReason
	equal(t, "asked", stop.EventIDs, []string{uses[0].ID, uses[2].ID})
	if stop.Type != api.StopRequiresAction {
		t.Errorf("stop reason %+v", stop)
	}
	if ran := w.tools.ran(); len(ran) != 1 || ran[0].Name != "read" {
		t.Errorf("ran before it was confirmed: %+v", ran)
	}
	why := "too risky"
	w.queue(api.EventUserToolConfirmation, api.ConfirmationFields{ToolUseID: uses[2].ID, Result: "deny", DenyMessage: &why})
	w.until("the first result", func(log []control.EventRecord) bool {
		idles := of(log, api.EventSessionIdle)
		return len(idles) >= 2 && len(fields[api.IdleFields](t, idles[len(idles)-1]).StopReason.EventIDs) == 1
	})
	w.queue(api.EventUserToolConfirmation, api.ConfirmationFields{ToolUseID: uses[0].ID, Result: "allow"})
	log = w.until("the end", func(log []control.EventRecord) bool { return len(texts(t, log)) == 1 })
	if got := texts(t, log)[0]; !strings.Contains(got, `bash ran with {"command":"a"}`) || !strings.Contains(got, "The user denied this call. too risky") {
		t.Errorf("the model was told %q", got)
	}
	if ran := w.tools.ran(); len(ran) != 2 {
		t.Errorf("ran %+v", ran)
	}
}

func TestAuto(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "auto"), builtin("grep", "auto"), mcp("srv", "go", "auto"))
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`), use("grep", `{}`), use("mcp__srv__go", `{}`)}}})
	log := w.untilIdle(1)
	want := map[string]string{"bash": "ask", "grep": "allow", "go": "ask"}
	for _, e := range log {
		if e.Type != api.EventAgentToolUse && e.Type != api.EventAgentMCPToolUse {
			continue
		}
		u := fields[api.ToolUseFields](t, e)
		if u.EvaluatedPermission != want[u.Name] || u.Evaluation.Type != "auto" || u.Evaluation.EvaluatedPermission.Type != want[u.Name] ||
			(want[u.Name] == "ask") != (u.Evaluation.EvaluatedPermission.ReasonCode == "indeterminate") {
			t.Errorf("%s: %s", u.Name, e.Fields)
		}
	}
}

func TestCustomTool(t *testing.T) {
	t.Parallel()
	w := newWorld(t, custom("ask_user"))
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("ask_user", `{"q":1}`)}}, {Text: "heard {{result}}"}})
	log := w.untilIdle(1)
	used := of(log, api.EventAgentCustomToolUse)[0]
	equal(t, "asked", fields[api.IdleFields](t, of(log, api.EventSessionIdle)[0]).StopReason.EventIDs, []string{used.ID})
	w.answer(api.EventUserCustomToolResult, api.CustomToolResultFields{CustomToolUseID: used.ID, Content: []json.RawMessage{text("42")}})
	log = w.untilIdle(2)
	equal(t, "messages", texts(t, log), []string{"heard 42"})
}

func TestMCPTool(t *testing.T) {
	t.Parallel()
	w := newWorld(t, mcp("srv", "add", "always_allow"))
	w.tools.failed = []*toolset.ServerError{{Server: "other", Auth: true, Err: errFor("401")}}
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("mcp__srv__add", `{"a":1}`)}}, {Text: "ok"}})
	log := w.untilIdle(1)
	u := fields[api.ToolUseFields](t, of(log, api.EventAgentMCPToolUse)[0])
	if u.Name != "add" || u.MCPServerName != "srv" {
		t.Errorf("use: %+v", u)
	}
	r := fields[api.ToolResultFields](t, of(log, api.EventAgentMCPToolResult)[0])
	if r.MCPToolUseID == "" {
		t.Errorf("result: %+v", r)
	}
	errs := of(log, api.EventSessionError)
	if len(errs) != 1 || fields[api.ErrorFields](t, errs[0]).Error.Type != api.ErrorMCPAuthentication {
		t.Errorf("errors: %s", show(errs))
	}
}

type errFor string

func (e errFor) Error() string { return string(e) }

// What the model makes up, and what the token limit cuts off, is answered.
func TestBadToolUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.say(modeltest.Script{
		{Tools: []modeltest.ToolUse{use("no_such", `{}`)}},
		{Tools: []modeltest.ToolUse{use("bash", `{"command":"echo`+strings.Repeat(" x", 40)+`"}`)}, Stop: "max_tokens"},
		{Text: "{{result}}"},
	})
	log := w.untilIdle(1)
	got := show(of(log, api.EventAgentToolResult)) + texts(t, log)[0]
	for _, want := range []string{`There is no tool \"no_such\"`, "cut off at the token limit"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if ran := w.tools.ran(); len(ran) != 0 {
		t.Errorf("ran %+v", ran)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	t.Run("in a model request", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.say(modeltest.Script{{Text: "for ever", Hang: true}})
		w.until("a request", func(log []control.EventRecord) bool { return w.model.Total() == 1 })
		w.queue(api.EventUserInterrupt, api.InterruptFields{})
		log := w.untilIdle(1)
		equal(t, "events", kinds(log)[3:], []string{api.EventModelRequestStart, api.EventModelRequestEnd, api.EventUserInterrupt,
			api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle})
		w.say(modeltest.Script{{Text: "again"}})
		equal(t, "messages", texts(t, w.untilIdle(2)), []string{"again"})
	})
	t.Run("in a tool", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, builtin("bash", "always_allow"))
		w.tools.hold = make(chan struct{})
		w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`), use("bash", `{"n":2}`)}}})
		<-w.tools.begun
		w.queue(api.EventUserInterrupt, api.InterruptFields{})
		log := w.untilIdle(1)
		equal(t, "events", kinds(log)[7:], []string{api.EventAgentToolResult, api.EventUserInterrupt,
			api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle})
		if stop := fields[api.IdleFields](t, log[len(log)-1]).StopReason; stop.Type != api.StopEndTurn {
			t.Errorf("stop reason %+v", stop)
		}
		w.say(modeltest.Script{{Text: "again"}})
		equal(t, "messages", texts(t, w.untilIdle(2)), []string{"again"})
	})
	t.Run("before the tools are known", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		listing := make(chan struct{})
		w.tools.listing = listing
		w.say(modeltest.Script{{Text: "never"}})
		<-listing
		w.queue(api.EventUserInterrupt, api.InterruptFields{})
		equal(t, "events", kinds(w.untilIdle(1)), []string{api.EventSessionRunning, api.EventThreadRunning, api.EventUserMessage, api.EventUserInterrupt,
			api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle})
		w.say(modeltest.Script{{Text: "again"}})
		equal(t, "messages", texts(t, w.untilIdle(2)), []string{"again"})
	})
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, builtin("bash", "always_ask"))
		w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`)}}})
		w.untilIdle(1)
		w.queue(api.EventUserInterrupt, api.InterruptFields{})
		w.untilIdle(2)
		w.say(modeltest.Script{{Text: "again"}})
		equal(t, "messages", texts(t, w.untilIdle(3)), []string{"again"})
	})
	t.Run("when nothing runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.queue(api.EventUserInterrupt, api.InterruptFields{})
		log := w.until("the interrupt", func(log []control.EventRecord) bool { return len(log) > 0 })
		equal(t, "events", kinds(log), []string{api.EventUserInterrupt})
	})
}

// What waits behind an interrupted turn begins the next one; a message that is
// interrupted before its turn has begun is not answered.
func TestInterruptAndMessages(t *testing.T) {
	t.Parallel()
	message := func(s modeltest.Script) control.EventRecord {
		return input(t, api.EventUserMessage, api.MessageFields{Content: []json.RawMessage{text(s.Message())}})
	}
	stop := func() control.EventRecord { return input(t, api.EventUserInterrupt, api.InterruptFields{}) }
	t.Run("in a turn", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, builtin("bash", "always_allow"))
		w.tools.hold = make(chan struct{})
		w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`)}}, {Text: "never"}})
		<-w.tools.begun
		w.queueAll(message(modeltest.Script{{Text: "the next"}}), stop())
		log := w.untilIdle(2)
		equal(t, "messages", texts(t, log), []string{"the next"})
		equal(t, "events", kinds(log)[6:], []string{api.EventAgentToolResult, api.EventUserInterrupt, api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle,
			api.EventSessionRunning, api.EventThreadRunning, api.EventUserMessage, api.EventModelRequestStart, api.EventAgentMessage, api.EventModelRequestEnd,
			api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle})
	})
	t.Run("before a turn", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.queueAll(message(modeltest.Script{{Text: "never"}}), stop(), message(modeltest.Script{{Text: "the next"}}))
		log := w.untilIdle(2)
		equal(t, "messages", texts(t, log), []string{"the next"})
		equal(t, "events", kinds(log)[:7], []string{api.EventSessionRunning, api.EventThreadRunning, api.EventUserMessage, api.EventUserInterrupt,
			api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle})
	})
}

// An image in a message reaches the model as it was sent.
func TestImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}`
	w.queue(api.EventUserMessage, api.MessageFields{Content: []json.RawMessage{json.RawMessage(image), text(modeltest.Script{{Text: "seen"}}.Message())}})
	equal(t, "messages", texts(t, w.untilIdle(1)), []string{"seen"})
	if body := string(w.model.Requests()[0].Body); !strings.Contains(body, image) {
		t.Errorf("the request has no image as it was sent: %s", body)
	}
}

// A turn that the model's endpoint pauses goes on by itself.
func TestPausedTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.say(modeltest.Script{{Text: "half, " + modeltest.Paused, Stop: "pause_turn"}, {Text: "whole"}})
	log := w.untilIdle(1)
	equal(t, "messages", texts(t, log), []string{"half, " + modeltest.Paused, "whole"})
	if errs := of(log, api.EventSessionError); len(errs) > 0 {
		t.Errorf("errors: %s", show(errs))
	}
}

// The session's usage counts what the server ran for the agent, and not what was
// denied or runs elsewhere.
func TestServerToolUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("web_fetch", "always_allow"), builtin("web_search", "always_ask"), builtin("bash", "always_allow"), mcp("srv", "web_fetch", "always_allow"))
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("web_fetch", `{"url":"a"}`), use("web_search", `{"query":"b"}`), use("web_search", `{"query":"c"}`),
		use("web_fetch", `{"url":"d"}`), use("bash", `{}`), use("mcp__srv__web_fetch", `{}`)}}})
	asked := fields[api.IdleFields](t, of(w.untilIdle(1), api.EventSessionIdle)[0]).StopReason.EventIDs
	w.queue(api.EventUserToolConfirmation, api.ConfirmationFields{ToolUseID: asked[0], Result: "allow"})
	w.queue(api.EventUserToolConfirmation, api.ConfirmationFields{ToolUseID: asked[1], Result: "deny"})
	log := w.until("the end", func(log []control.EventRecord) bool {
		idles := of(log, api.EventSessionIdle)
		return len(idles) > 1 && fields[api.IdleFields](t, idles[len(idles)-1]).StopReason.Type == api.StopEndTurn
	})
	want := api.ServerToolUsage{WebFetchRequests: 2, WebSearchRequests: 1}
	usages := of(log, api.EventSessionUsage)
	if told := fields[api.UsageFields](t, usages[len(usages)-1]).Usage.ServerToolUse; told == nil || *told != want {
		t.Errorf("session.usage tells %+v, want %+v", told, want)
	}
	s, err := w.service.Session(t.Context(), w.caller, w.session)
	if err != nil || *s.Usage.ServerToolUse != want {
		t.Errorf("the session has used %+v, %v, want %+v", s.Usage.ServerToolUse, err, want)
	}
}

// Text that is only white space is refused by the API wherever it stands, and
// would come back with every request: it is left out of them.
func TestBlankText(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"), custom("ask_user"))
	w.queue(api.EventUserMessage, api.MessageFields{Content: []json.RawMessage{text(" \n"), text(modeltest.Script{
		{Text: "\n\n", Tools: []modeltest.ToolUse{use("ask_user", `{}`)}}, {Text: " "}}.Message())}})
	asked := of(w.untilIdle(1), api.EventAgentCustomToolUse)[0]
	w.answer(api.EventUserCustomToolResult, api.CustomToolResultFields{CustomToolUseID: asked.ID, Content: []json.RawMessage{text("\t")}})
	w.untilIdle(2)
	w.queue(api.EventUserMessage, api.MessageFields{Content: []json.RawMessage{text("  ")}})
	w.untilIdle(3)
	w.say(modeltest.Script{{Text: "on we go"}})
	log := w.untilIdle(4)
	if said := texts(t, log); said[len(said)-1] != "on we go" {
		t.Errorf("the agent said %q", said)
	}
}

// Images that the model's endpoint refuses, the user's or a tool's, do not end the
// session: the agent goes on without them, and the log says so once for each.
func TestRefusedImages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, custom("look"))
	w.model.NoImage = true
	image := json.RawMessage(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}`)
	w.queue(api.EventUserMessage, api.MessageFields{Content: []json.RawMessage{image, text(modeltest.Script{
		{Tools: []modeltest.ToolUse{use("look", `{}`)}}, {Text: "{{result}}"}}.Message())}})
	used := of(w.untilIdle(1), api.EventAgentCustomToolUse)[0]
	w.answer(api.EventUserCustomToolResult, api.CustomToolResultFields{CustomToolUseID: used.ID, Content: []json.RawMessage{text("seen"), image}})
	w.untilIdle(2)
	w.say(modeltest.Script{{Text: "on we go"}})
	log := w.untilIdle(3)
	equal(t, "messages", texts(t, log), []string{"seen\n[an image or document was here; the model's endpoint refused it]", "on we go"})
	errs := of(log, api.EventSessionError)
	if len(errs) != 2 {
		t.Fatalf("errors: %s", show(errs))
	}
	if e := fields[api.ErrorFields](t, errs[0]).Error; e.Type != api.ErrorModelRequest || e.RetryStatus.Type != api.RetryRetrying || !strings.HasSuffix(e.Message, "refused them: Could not process image") {
		t.Errorf("the log says %+v", e)
	}
}
