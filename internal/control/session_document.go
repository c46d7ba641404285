package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/atoll-run/atoll/api"
)

// sessionDocument is what a record holds beside its columns.
type sessionDocument struct {
	Title       *string           `json:"title"`
	Metadata    map[string]string `json:"metadata"`
	Agent       api.SessionAgent  `json:"agent"`
	Environment api.CloudConfig   `json:"environment"`
	Thread      string            `json:"thread"` // id of the primary thread
	Totals      totals            `json:"totals,omitzero"`
	// Waiting are the ids of the uses that a session which is idle with
	// requires_action waits for.
	Waiting []string `json:"waiting,omitempty"`
}

// totals are what a session has used. They follow from its events (see account).
type totals struct {
	Input       int           `json:"input,omitempty"` // tokens
	Output      int           `json:"output,omitempty"`
	CacheRead   int           `json:"cache_read,omitempty"`
	CacheWrite  int           `json:"cache_write,omitempty"`
	WebFetches  int           `json:"web_fetches,omitempty"` // calls that this server ran
	WebSearches int           `json:"web_searches,omitempty"`
	Active      time.Duration `json:"active,omitempty"`      // without the time since RunningFrom
	RunningFrom time.Time     `json:"running_from,omitzero"` // zero: it does not run
	Started     time.Time     `json:"started,omitzero"`      // when it first ran
	Idled       bool          `json:"idled,omitempty"`       // it has been idle after running
	Changed     bool          `json:"changed,omitempty"`     // its status has changed since it was made
	EndedAt     time.Time     `json:"ended_at,omitzero"`     // when it was terminated
}

func readSession(rec SessionRecord) (sessionDocument, error) {
	var d sessionDocument
	if err := json.Unmarshal(rec.Document, &d); err != nil {
		return d, fmt.Errorf("reading the document of %s: %w", rec.ID, err)
	}
	if d.Thread == "" { // made before there were threads
		d.Thread = "sthr_" + strings.TrimPrefix(rec.ID, "sesn_")
	}
	return d, nil
}

func (d sessionDocument) set(rec *SessionRecord) error {
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("writing a session's document: %w", err)
	}
	rec.Document = text
	return nil
}

// thread is what the status events of a session's primary thread say of it.
func (d sessionDocument) thread() api.ThreadFields {
	return api.ThreadFields{SessionThreadID: d.Thread, AgentName: d.Agent.Name}
}

// SessionThread reads the primary thread of a stored session.
func SessionThread(rec SessionRecord) (api.ThreadFields, error) {
	d, err := readSession(rec)
	return d.thread(), err
}

// ServerToolRun is kept beside the agent.tool_result of a tool that this server
// ran itself: the event names the call, not the tool.
type ServerToolRun struct {
	Tool string `json:"tool"` // api.ToolWebFetch or api.ToolWebSearch
}

// accounted tells the events that account is about.
func accounted(e EventRecord) bool {
	switch e.Type {
	case api.EventAgentToolResult:
		return len(e.Private) > 0
	case api.EventSessionRunning, api.EventSessionRescheduled, api.EventSessionTerminated, api.EventSessionIdle, api.EventModelRequestEnd, api.EventSessionUsage:
		return true
	}
	return false
}

// account follows the events that enter a session's log at about now: status,
// usage, time and what it waits for. It fills in the Fields of a session.usage
// that has none. The result tells whether the row changed.
func (d *sessionDocument) account(rec *SessionRecord, events []EventRecord, now time.Time) (changed bool, err error) {
	for i := range events {
		e := &events[i]
		touched := true
		switch e.Type {
		case api.EventSessionRunning:
			d.turn(rec, api.SessionRunning, now)
		case api.EventSessionRescheduled:
			d.turn(rec, api.SessionRescheduling, now)
		case api.EventSessionTerminated:
			d.turn(rec, api.SessionTerminated, now)
		case api.EventSessionIdle:
			var f api.IdleFields
			if err := e.read(&f); err != nil {
				return false, err
			}
			d.turn(rec, api.SessionIdle, now)
			d.Waiting = f.StopReason.EventIDs
		case api.EventModelRequestEnd:
			var f api.ModelRequestEndFields
			if err := e.read(&f); err != nil {
				return false, err
			}
			d.Totals.Input += f.ModelUsage.InputTokens
			d.Totals.Output += f.ModelUsage.OutputTokens
			d.Totals.CacheRead += f.ModelUsage.CacheReadInputTokens
			d.Totals.CacheWrite += f.ModelUsage.CacheCreationInputTokens
		case api.EventAgentToolResult:
			if touched = len(e.Private) > 0; touched {
				if err := d.Totals.toolRun(e); err != nil {
					return false, err
				}
			}
		case api.EventSessionUsage:
			if touched = false; e.Fields == nil {
				if e.Fields, err = json.Marshal(api.UsageFields{Usage: d.usage(now)}); err != nil {
					return false, fmt.Errorf("writing a usage event: %w", err)
				}
			}
		default:
			touched = false
		}
		changed = changed || touched
	}
	return changed, nil
}

// toolRun counts a call that this server ran.
func (t *totals) toolRun(e *EventRecord) error {
	var run ServerToolRun
	if err := json.Unmarshal(e.Private, &run); err != nil {
		return fmt.Errorf("reading what is kept beside %s: %w", e.ID, err)
	}
	switch run.Tool {
	case api.ToolWebFetch:
		t.WebFetches++
	case api.ToolWebSearch:
		t.WebSearches++
	}
	return nil
}

// turn gives a session a status.
func (d *sessionDocument) turn(rec *SessionRecord, status string, now time.Time) {
	t := &d.Totals
	if !t.RunningFrom.IsZero() {
		t.Active += max(0, now.Sub(t.RunningFrom))
		t.RunningFrom = time.Time{}
	}
	d.Waiting, t.Changed = nil, true
	switch status {
	case api.SessionRunning:
		t.RunningFrom = now
		if t.Started.IsZero() {
			t.Started = now
		}
	case api.SessionIdle:
		t.Idled = true
	case api.SessionTerminated:
		t.EndedAt = now
	}
	rec.Status = status
}

// active is how long a session has been running.
func (t totals) active(now time.Time) *float64 {
	sum := t.Active
	if !t.RunningFrom.IsZero() {
		sum += max(0, now.Sub(t.RunningFrom))
	}
	return seconds(sum)
}

// seconds are a time as the wire shows it, in milliseconds' resolution.
func seconds(d time.Duration) *float64 {
	s := float64(d.Round(time.Millisecond).Milliseconds()) / 1000 // not Seconds, which gives 1.3780000000000001
	return &s
}

// usage is what a session has used so far.
func (d *sessionDocument) usage(now time.Time) api.SessionUsage {
	t := d.Totals
	short, long := t.CacheWrite, 0
	return api.SessionUsage{
		InputTokens: &t.Input, OutputTokens: &t.Output, CacheReadInputTokens: &t.CacheRead,
		CacheCreation: &api.CacheCreation{Ephemeral5mInputTokens: &short, Ephemeral1hInputTokens: &long},
		ServerToolUse: &api.ServerToolUsage{WebFetchRequests: t.WebFetches, WebSearchRequests: t.WebSearches},
		ActiveSeconds: t.active(now),
	}
}

// duration is how long there has been a session, or was until it ended.
func (d *sessionDocument) duration(rec SessionRecord, now time.Time) *float64 {
	end := now
	switch {
	case !d.Totals.EndedAt.IsZero():
		end = d.Totals.EndedAt
	case !rec.ArchivedAt.IsZero():
		end = rec.ArchivedAt
	}
	return seconds(max(0, end.Sub(rec.CreatedAt)))
}
