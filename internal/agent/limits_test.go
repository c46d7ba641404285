package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// Replies in a row whose calls are cut off end the turn at their own limit, long
// before that of a turn's requests; one whole call between them begins the count
// anew.
func TestCallsCutOffInARow(t *testing.T) {
	t.Parallel()
	cut := modeltest.Reply{Tools: []modeltest.ToolUse{use("bash", `{"command":"echo"}`)}, Stop: "max_tokens"}
	whole := modeltest.Reply{Tools: []modeltest.ToolUse{use("bash", `{}`)}}
	w := newWorld(t, builtin("bash", "always_allow"))
	w.say(modeltest.Script{cut, cut, cut, cut, whole, cut, cut, cut, cut, cut, {Text: "not reached"}})
	log := w.untilIdle(1)
	errs := of(log, api.EventSessionError)
	if len(errs) != 1 || w.model.Total() != 10 || len(w.tools.ran()) != 1 {
		t.Fatalf("%d requests, %d calls; the log is\n%s", w.model.Total(), len(w.tools.ran()), show(log))
	}
	e := fields[api.ErrorFields](t, errs[0]).Error
	if e.Type != api.ErrorToolUseLimit || e.RetryStatus.Type != api.RetryExhausted || !strings.Contains(e.Message, "5 replies in a row") {
		t.Errorf("error %+v", e)
	}
	w.checkExhausted(log)
	w.say(modeltest.Script{cut, {Text: "a new turn"}})
	equal(t, "messages", texts(t, w.untilIdle(2)), []string{"a new turn"})
}

// checkExhausted holds what the wire says of an error with the retry status
// exhausted: the turn ends with retries_exhausted.
func (w *world) checkExhausted(log []control.EventRecord) {
	w.t.Helper()
	if stop := fields[api.IdleFields](w.t, log[len(log)-1]).StopReason; stop.Type != api.StopRetriesExhausted {
		w.t.Errorf("the turn ended with %s", stop.Type)
	}
}

// Tokens count that the endpoint has told of a request which was interrupted, broke
// off or did not fit.
func TestTokensOfRequestsThatFail(t *testing.T) {
	t.Parallel()
	used := func(w *world, log []control.EventRecord) (ends []int) {
		total := 0
		for _, e := range of(log, api.EventModelRequestEnd) {
			n := fields[api.ModelRequestEndFields](t, e).ModelUsage.InputTokens
			ends, total = append(ends, n), total+n
		}
		s, err := w.service.Session(t.Context(), w.caller, w.session)
		if err != nil {
			t.Fatal(err)
		}
		if *s.Usage.InputTokens != total {
			t.Errorf("the session has used %d tokens, its requests %d", *s.Usage.InputTokens, total)
		}
		return ends
	}
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		stream, err := w.service.StreamEvents(t.Context(), w.caller, w.session, []string{api.EventAgentMessage})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		w.say(modeltest.Script{{Text: "half", Hang: true, InputTokens: 123}})
		for seen := false; !seen; { // the endpoint has begun to answer
			frames, err := stream.Next(t.Context(), 30*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range frames {
				seen = seen || f.Type == api.EventDelta
			}
		}
		w.queue(api.EventUserInterrupt, api.InterruptFields{})
		equal(t, "tokens", used(w, w.untilIdle(1)), []int{123})
	})
	t.Run("broken off", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.say(modeltest.Script{{Text: "at last", InputTokens: 77, Fail: &modeltest.Failure{Status: 200, Times: 1, Stream: "cut"}}})
		log := w.untilIdle(1)
		equal(t, "tokens", used(w, log), []int{77, 77})
		if e := fields[api.ErrorFields](t, of(log, api.EventSessionError)[0]).Error; e.Message != "The model's reply broke off." {
			t.Errorf("the log says %q", e.Message)
		}
	})
	t.Run("does not fit", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.say(modeltest.Script{{Text: "half", Stop: "model_context_window_exceeded", InputTokens: 55}})
		log := w.untilIdle(1)
		equal(t, "tokens", used(w, log), []int{55})
		e := fields[api.ErrorFields](t, of(log, api.EventSessionError)[0]).Error
		if e.Type != api.ErrorCompactionLimit || strings.Contains(e.Message, "did not help") {
			t.Errorf("nothing was compacted, and the log says %q", e.Message)
		}
		w.checkExhausted(log)
	})
}

// While some of the confirmations are missing nothing runs and the session stays
// idle; it says each time what is left, and runs when it has all.
func TestConfirmationsOneByOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_ask"), custom("lookup"))
	w.say(modeltest.Script{
		{Tools: []modeltest.ToolUse{use("bash", `{"n":1}`), use("lookup", `{}`), use("bash", `{"n":2}`), use("lookup", `{}`)}},
		{Text: "{{result}}"},
	})
	log := w.untilIdle(1)
	asked := fields[api.IdleFields](t, log[len(log)-1]).StopReason.EventIDs
	if len(asked) != 4 {
		t.Fatalf("the log is\n%s", show(log))
	}
	send := func(events ...api.EventParams) {
		t.Helper()
		if _, err := w.service.SendEvents(t.Context(), w.caller, w.session, api.EventsSend{Events: events}); err != nil {
			t.Fatal(err)
		}
	}
	confirm := func(id string) api.EventParams {
		return api.EventParams{Type: api.EventUserToolConfirmation, Confirmation: &api.ConfirmationFields{ToolUseID: id, Result: "allow"}}
	}
	answer := func(id string) api.EventParams {
		return api.EventParams{Type: api.EventUserCustomToolResult, ToolResult: &api.CustomToolResultFields{CustomToolUseID: id}}
	}
	for n, e := range []api.EventParams{confirm(asked[0]), answer(asked[1]), confirm(asked[2])} {
		send(e)
		log = w.untilIdle(n + 2)
		equal(t, fmt.Sprintf("left after %d", n+1), fields[api.IdleFields](t, log[len(log)-1]).StopReason.EventIDs, asked[n+1:])
		equal(t, "the end of the log", kinds(log[len(log)-4:]), []string{e.Type, api.EventThreadIdle, api.EventSessionUsage, api.EventSessionIdle})
		if ran := w.tools.ran(); len(ran) != 0 || len(of(log, api.EventSessionRunning)) != 1 {
			t.Fatalf("with %d answers %d calls ran:\n%s", n+1, len(ran), show(log))
		}
	}
	send(answer(asked[3]))
	if s, err := w.service.Session(t.Context(), w.caller, w.session); err != nil || s.Status == api.SessionIdle && len(w.tools.ran()) == 0 {
		t.Errorf("after the last answer the session is %s, %v", s.Status, err)
	}
	log = w.untilIdle(5)
	if len(texts(t, log)) != 1 || len(w.tools.ran()) != 2 || len(of(log, api.EventSessionRunning)) != 2 {
		t.Errorf("the log is\n%s", show(log))
	}
}

// What is sent before an interrupt belongs to the turn that it ends, and what is
// sent behind it begins one, whether they come together or not.
func TestInterruptWithMessages(t *testing.T) {
	t.Parallel()
	message := func(text string) api.EventParams {
		return api.EventParams{Type: api.EventUserMessage, Message: &api.MessageFields{Content: says(modeltest.Script{{Text: text}})}}
	}
	stop := api.EventParams{Type: api.EventUserInterrupt, Interrupt: &api.InterruptFields{}}
	for name, c := range map[string]struct {
		events []api.EventParams
		said   []string
		idle   int
	}{
		"before":            {[]api.EventParams{message("a"), stop}, nil, 1},
		"behind":            {[]api.EventParams{stop, message("b")}, []string{"b"}, 1},
		"before and behind": {[]api.EventParams{message("a"), stop, message("b")}, []string{"b"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			sent, err := w.service.SendEvents(t.Context(), w.caller, w.session, api.EventsSend{Events: c.events})
			if err != nil || len(sent.Data) != len(c.events) {
				t.Fatal(err)
			}
			log := w.untilIdle(c.idle)
			equal(t, "messages", texts(t, log), c.said)
			if s, err := w.service.Session(t.Context(), w.caller, w.session); err != nil || s.Status != api.SessionIdle || len(of(w.log(), api.EventSessionIdle)) != c.idle {
				t.Errorf("%s %v:\n%s", s.Status, err, show(w.log()))
			}
		})
	}
}

// What happened is told behind the beginning of the turn that meets it.
func TestServerIsMissedWithinTheTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tools.failed = []*toolset.ServerError{{Server: "other", Err: errFor("gone")}}
	w.say(modeltest.Script{{Text: "without it"}})
	log := w.untilIdle(1)
	equal(t, "the beginning", kinds(log[:5]), []string{api.EventSessionRunning, api.EventThreadRunning, api.EventSessionError, api.EventUserMessage, api.EventModelRequestStart})
	if e := fields[api.ErrorFields](t, log[2]).Error; e.RetryStatus.Type != api.RetryRetrying {
		t.Errorf("the turn goes on, and the error is %s", e.RetryStatus.Type)
	}
}

// A tool's result that the wire does not take is not stored.
func TestResultsAreChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.tools.content = []string{`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"bm90IGFuIGltYWdl"}}`}
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`)}}, {Text: "{{result}}"}})
	log := w.untilIdle(1)
	if got := strings.Join(texts(t, log), ""); !strings.Contains(got, "content[0].source.data: The data is not of type 'image/png'") {
		t.Errorf("the model was told %q", got)
	}
}

// A failed install of packages is told once, and never as the end of the session:
// terminal belongs to the step that terminates one.
func TestFailedInstallIsToldOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := control.SessionRecord{Workspace: w.caller.Workspace, ID: w.session}
	for range 2 {
		for words, once := range map[string]bool{"no such package": true, "died, and was started anew": false} {
			if err := w.turns.Report(t.Context(), rec, words, once); err != nil {
				t.Fatal(err)
			}
		}
	}
	told := map[string]int{}
	for _, e := range of(w.log(), api.EventSessionError) {
		f := fields[api.ErrorFields](t, e).Error
		told[f.Message]++
		if f.RetryStatus.Type != api.RetryRetrying {
			t.Errorf("%s: %s, though the session goes on", f.Message, f.RetryStatus.Type)
		}
	}
	if told["no such package"] != 1 || told["died, and was started anew"] != 2 {
		t.Errorf("told %v", told)
	}
	w.say(modeltest.Script{{Text: "still here"}})
	equal(t, "messages", texts(t, w.untilIdle(1)), []string{"still here"})
}
