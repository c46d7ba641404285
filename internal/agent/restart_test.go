package agent_test

import (
	"fmt"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/control"
)

// A loop that is ended at any event of a conversation is taken up by another,
// and the log ends like that of a loop that was never ended, but for the spans
// of requests that were made again.
func TestRestart(t *testing.T) {
	t.Parallel()
	script := modeltest.Script{
		{Thinking: "first", Text: "a", Tools: []modeltest.ToolUse{use("bash", `{"n":1}`), use("bash", `{"n":2}`)}},
		{Text: "b {{result}}", Tools: []modeltest.ToolUse{use("bash", `{"n":3}`)}},
		{Text: "end"},
	}
	undisturbed := func(w *world) []string {
		w.say(script)
		return kinds(withoutCutRequests(t, w.untilIdle(1)))
	}
	want := undisturbed(newWorld(t, builtin("bash", "always_allow")))
	for at := range len(want) {
		t.Run(fmt.Sprintf("after event %d", at+1), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, builtin("bash", "always_allow"))
			w.say(script)
			w.until("the moment", func(log []control.EventRecord) bool { return len(log) > at })
			w.stop()
			w.start()
			log := w.untilIdle(1)
			equal(t, "events", kinds(withoutCutRequests(t, log)), want)
			if got := texts(t, log); len(got) != 3 || got[2] != "end" {
				t.Errorf("messages %q", got)
			}
		})
	}
}

// withoutCutRequests leaves out the spans of requests without a reply.
func withoutCutRequests(t *testing.T, log []control.EventRecord) (out []control.EventRecord) {
	t.Helper()
	cut := map[string]bool{}
	for _, e := range of(log, api.EventModelRequestEnd) {
		if f := fields[api.ModelRequestEndFields](t, e); f.IsError != nil && *f.IsError {
			cut[f.ModelRequestStartID], cut[e.ID] = true, true
		}
	}
	for _, e := range log {
		if !cut[e.ID] {
			out = append(out, e)
		}
	}
	return out
}
