package agent_test

import (
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/control"
)

// An error that may pass is tried again, and the log says so.
func TestModelErrorsThatPass(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail modeltest.Failure
		want string
	}{
		"429":       {modeltest.Failure{Status: 429, Times: 2, RetryAfter: "0.01"}, api.ErrorModelRateLimited},
		"500":       {modeltest.Failure{Status: 500, Times: 1}, api.ErrorModelRequest},
		"529":       {modeltest.Failure{Status: 529, Times: 1}, api.ErrorModelOverloaded},
		"cut":       {modeltest.Failure{Status: 200, Times: 1, Stream: "cut"}, api.ErrorModelRequest},
		"malformed": {modeltest.Failure{Status: 200, Times: 1, Stream: "malformed"}, api.ErrorModelRequest},
		"error":     {modeltest.Failure{Status: 200, Times: 1, Stream: "error"}, api.ErrorModelOverloaded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.say(modeltest.Script{{Text: "at last", Fail: &c.fail}})
			log := w.untilIdle(1)
			equal(t, "messages", texts(t, log), []string{"at last"})
			errs := of(log, api.EventSessionError)
			if len(errs) != c.fail.Times || len(of(log, api.EventSessionRescheduled)) != c.fail.Times || len(of(log, api.EventThreadRescheduled)) != c.fail.Times {
				t.Fatalf("the log is\n%s", show(log))
			}
			e := fields[api.ErrorFields](t, errs[0]).Error
			if e.Type != c.want || e.RetryStatus.Type != api.RetryRetrying {
				t.Errorf("error %+v", e)
			}
		})
	}
}

// An error that stays ends the turn, and the session can go on.
func TestModelErrorsThatStay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail  modeltest.Failure
		want  string
		tries int
	}{
		"400": {modeltest.Failure{Status: 400, Message: "no such field"}, api.ErrorModelRequest, 1},
		"401": {modeltest.Failure{Status: 401}, api.ErrorModelRequest, 1},
		"402": {modeltest.Failure{Status: 402}, api.ErrorBilling, 1},
		"529": {modeltest.Failure{Status: 529}, api.ErrorModelOverloaded, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.say(modeltest.Script{{Fail: &c.fail}})
			log := w.untilIdle(1)
			errs := of(log, api.EventSessionError)
			if len(errs) != c.tries || w.model.Total() != c.tries {
				t.Fatalf("%d errors, %d requests, want %d:\n%s", len(errs), w.model.Total(), c.tries, show(log))
			}
			e := fields[api.ErrorFields](t, errs[len(errs)-1]).Error
			if e.Type != c.want || e.RetryStatus.Type != api.RetryExhausted {
				t.Errorf("error %+v", e)
			}
			if stop := fields[api.IdleFields](t, log[len(log)-1]).StopReason; stop.Type != api.StopRetriesExhausted {
				t.Errorf("stop reason %+v", stop)
			}
			w.say(modeltest.Script{{Text: "better"}})
			equal(t, "messages", texts(t, w.untilIdle(2)), []string{"better"})
		})
	}
}

func TestNoModel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stop()
	w.config.Model = nil
	w.start()
	w.say(modeltest.Script{{Text: "never"}})
	log := w.untilIdle(1)
	e := fields[api.ErrorFields](t, of(log, api.EventSessionError)[0]).Error
	if !strings.Contains(e.Message, "model.base_url") || e.RetryStatus.Type != api.RetryExhausted {
		t.Errorf("error %+v", e)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.say(modeltest.Script{{Text: "I will not.", Stop: "refusal"}})
	log := w.untilIdle(1)
	stop := fields[api.IdleFields](t, log[len(log)-1])
	if stop.StopReason.Type != api.StopRefusal || stop.StopDetails == nil || stop.StopDetails.Type != "refusal" {
		t.Errorf("stop: %s", log[len(log)-1].Fields)
	}
}

// A conversation that outgrows the window is replaced by a summary, and goes on.
func TestCompaction(t *testing.T) {
	t.Parallel()
	t.Run("before the window is full", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, builtin("bash", "always_allow"))
		w.say(modeltest.Script{
			{Tools: []modeltest.ToolUse{use("bash", `{}`)}, InputTokens: 19_500},
			{Text: "after"},
		})
		log := w.untilIdle(1)
		equal(t, "messages", texts(t, log), []string{"after"})
		if len(of(log, api.EventContextCompacted)) != 1 {
			t.Fatalf("the log is\n%s", show(log))
		}
		requests := w.model.Requests()
		if last := string(requests[len(requests)-1].Body); !strings.Contains(last, "replaced by this summary") || strings.Contains(last, "tool_use_id") {
			t.Errorf("the last request is not short: %s", last)
		}
	})
	t.Run("when a request is too long", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		before := strings.Repeat("before ", 1000)
		w.say(modeltest.Script{{Text: before}})
		w.untilIdle(1)
		w.say(modeltest.Script{{Text: "after", Fail: &modeltest.Failure{Status: 400, OverBytes: 3000, Message: "prompt is too long: 250000 tokens > 200000 maximum"}}})
		log := w.untilIdle(2)
		equal(t, "messages", texts(t, log), []string{before, "after"})
		if len(of(log, api.EventContextCompacted)) != 1 {
			t.Fatalf("the log is\n%s", show(log))
		}
	})
	t.Run("in vain", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.say(modeltest.Script{{Text: "before"}})
		w.untilIdle(1)
		w.say(modeltest.Script{{Fail: &modeltest.Failure{Status: 413}}})
		log := w.untilIdle(2)
		errs := of(log, api.EventSessionError)
		if len(errs) != 1 || fields[api.ErrorFields](t, errs[0]).Error.Type != api.ErrorCompactionLimit {
			t.Fatalf("the log is\n%s", show(log))
		}
		w.checkExhausted(log)
	})
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.stop()
	w.config.MaxRequests = 3
	w.start()
	var script modeltest.Script
	for range 10 {
		script = append(script, modeltest.Reply{Tools: []modeltest.ToolUse{use("bash", `{}`)}})
	}
	w.say(script)
	log := w.untilIdle(1)
	errs := of(log, api.EventSessionError)
	if len(errs) != 1 || fields[api.ErrorFields](t, errs[0]).Error.Type != api.ErrorToolUseLimit || w.model.Total() != 3 {
		t.Fatalf("%d requests; the log is\n%s", w.model.Total(), show(log))
	}
	w.checkExhausted(log)
}

// The tools of a session whose packages could not be installed answer with the
// manager's words, the turn goes on, and so does the session. What the log has
// to say of it was said when the build failed: terminal belongs to the step that
// terminates a session, and nothing here does.
func TestBuildFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.tools.err = &control.Fault{Kind: control.Conflict, Code: control.CodeBuildFailed, Message: "pip: no matching distribution"}
	for n := range 2 {
		w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`)}}, {Text: "heard {{result}}"}})
		log := w.untilIdle(n + 1)
		if got := texts(t, log); len(got) != n+1 || got[n] != "heard pip: no matching distribution" {
			t.Errorf("the agent says %q", got)
		}
	}
	if log := w.log(); len(of(log, api.EventSessionError))+len(of(log, api.EventSessionTerminated)) != 0 {
		t.Errorf("the log is\n%s", show(log))
	}
}

// The title of a running session changes; nothing of the turn is lost by that.
func TestChangeDuringTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtin("bash", "always_allow"))
	w.tools.hold = make(chan struct{})
	w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{}`)}}, {Text: "done"}})
	<-w.tools.begun
	if _, err := w.service.UpdateSession(t.Context(), w.caller, w.session, api.SessionUpdate{Title: api.Some("new")}); err != nil {
		t.Fatal(err)
	}
	close(w.tools.hold)
	log := w.untilIdle(1)
	equal(t, "messages", texts(t, log), []string{"done"})
	if n := len(w.tools.ran()); n != 1 || w.model.Total() != 2 {
		t.Errorf("%d calls, %d requests", n, w.model.Total())
	}
}
