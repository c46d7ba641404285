package agent_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/control"
)

// asked is a model request as far as system messages matter.
type asked struct {
	System   []struct{ Text string }
	Messages []struct {
		Role    string
		Content json.RawMessage
	}
}

func (w *world) asked(i int) (a asked) {
	w.t.Helper()
	if err := json.Unmarshal(w.model.Requests()[i].Body, &a); err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (a asked) roles() (out []string) {
	for _, m := range a.Messages {
		out = append(out, m.Role)
	}
	return out
}

func (a asked) prompt() (out []string) {
	for _, b := range a.System {
		out = append(out, b.Text)
	}
	return out
}

// sayWith sends a message and a system message that accompanies it.
func (w *world) sayWith(s modeltest.Script, system string) {
	w.t.Helper()
	w.queueAll(
		input(w.t, api.EventUserMessage, api.MessageFields{Content: []json.RawMessage{text(s.Message())}}),
		input(w.t, api.EventSystemMessage, api.MessageFields{Content: []json.RawMessage{text(system)}}))
}

// A system message goes to the model where it was said, and stays there.
func TestSystemMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"), custom("ask_user"))
	w.sayWith(modeltest.Script{{Tools: []modeltest.ToolUse{use("ask_user", `{}`)}}, {Text: "yes"}}, "Be brief.")
	used := of(w.untilIdle(1), api.EventAgentCustomToolUse)[0]
	w.change(control.LogChange{
		Log:   []control.EventRecord{withID(w, input(t, api.EventUserCustomToolResult, api.CustomToolResultFields{CustomToolUseID: used.ID}))},
		Queue: []control.EventRecord{withID(w, input(t, api.EventSystemMessage, api.MessageFields{Content: []json.RawMessage{text("Be kind.")}}))},
	})
	w.untilIdle(2)
	w.say(modeltest.Script{{Text: "again"}})
	equal(t, "messages", texts(t, w.untilIdle(3)), []string{"yes", "again"})
	equal(t, "first request", w.asked(0).roles(), []string{"user", "system"})
	equal(t, "last request", w.asked(2).roles(), []string{"user", "system", "assistant", "user", "system", "assistant", "user"})
	equal(t, "system prompt", w.asked(2).prompt(), []string{"You play scripts."})
	if got := w.asked(2).Messages[4].Content; string(got) != `[{"text":"Be kind.","type":"text"}]` && string(got) != `[{"type":"text","text":"Be kind."}]` {
		t.Errorf("the second system message is %s", got)
	}
}

func withID(w *world, e control.EventRecord) control.EventRecord {
	e.ID, e.ProcessedAt = w.turns.EventID(), e.CreatedAt
	return e
}

// A model that takes no system messages gets them behind the system prompt.
func TestSystemMessageForOlderModels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.model.NoSystem = true
	w.sayWith(modeltest.Script{{Text: "one"}}, "Be brief.")
	w.untilIdle(1)
	w.sayWith(modeltest.Script{{Text: "two"}}, "Be kind.")
	log := w.untilIdle(2)
	equal(t, "messages", texts(t, log), []string{"one", "two"})
	if errs := of(log, api.EventSessionError); len(errs) > 0 {
		t.Errorf("errors: %s", show(errs))
	}
	if n := w.model.Total(); n != 3 { // the first was refused once
		t.Errorf("%d requests, want 3", n)
	}
	equal(t, "last request", w.asked(2).roles(), []string{"user", "assistant", "user"})
	equal(t, "system prompt", w.asked(2).prompt(), []string{"You play scripts.", "Be brief.", "Be kind."})
}

// A request that is refused for another reason is reported as such.
func TestSystemMessageAndBadRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sayWith(modeltest.Script{{Fail: &modeltest.Failure{Status: 400, Message: "no such thing"}}}, "Be brief.")
	errs := of(w.untilIdle(1), api.EventSessionError)
	if len(errs) != 1 || fields[api.ErrorFields](t, errs[0]).Error.Message != "no such thing" {
		t.Errorf("errors: %s", show(errs))
	}
	w.sayWith(modeltest.Script{{Text: "fine"}}, "Be kind.")
	w.untilIdle(2)
	equal(t, "the next request", w.asked(2).roles(), []string{"user", "system"})
}

// System messages hold for all that follows, a summary too.
func TestSystemMessageSurvivesCompaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.sayWith(modeltest.Script{
		{Tools: []modeltest.ToolUse{use("bash", `{}`)}, InputTokens: 19_500}, {Text: "after"},
	}, "Be brief.")
	log := w.untilIdle(1)
	equal(t, "messages", texts(t, log), []string{"after"})
	if len(of(log, api.EventContextCompacted)) != 1 {
		t.Fatalf("the log is\n%s", show(log))
	}
	last := w.asked(len(w.model.Requests()) - 1)
	equal(t, "last request", last.roles(), []string{"user", "system"})
	if !strings.Contains(string(last.Messages[1].Content), "Be brief.") {
		t.Errorf("the system message is %s", last.Messages[1].Content)
	}
}
