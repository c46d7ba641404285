package httpapi_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// session makes a session and returns its id.
func (r *rig) session(more string) string {
	r.t.Helper()
	env := r.must("POST", "/v1/environments", `{"name":"`+fmt.Sprint("e", time.Now().UnixNano())+`"}`).str("id")
	agent := r.must("POST", "/v1/agents", `{"name":"talker","model":"m"}`).str("id")
	return r.must("POST", "/v1/sessions", create(agent, env, more)).str("id")
}

// message is a user.message of one text.
func message(text string) string {
	return `{"type":"user.message","content":[{"type":"text","text":` + quote(text) + `}]}`
}

// send sends events that must be taken and returns them as they are stored.
func (r *rig) send(session string, events ...string) []map[string]any {
	r.t.Helper()
	return dataOf(r.must("POST", "/v1/sessions/"+session+"/events", `{"events":[`+strings.Join(events, ",")+`]}`))
}

func dataOf(a answer) (list []map[string]any) {
	data, _ := a.body["data"].([]any)
	for _, item := range data {
		m, _ := item.(map[string]any)
		list = append(list, m)
	}
	return list
}

// log lists a session's events, in pages of so many.
func (r *rig) events(session, query string) (events []map[string]any) {
	r.t.Helper()
	for page := ""; ; {
		a := r.must("GET", "/v1/sessions/"+session+"/events?"+query+"&page="+url.QueryEscape(page), "")
		events = append(events, dataOf(a)...)
		if page = a.str("next_page"); page == "" {
			return events
		}
	}
}

// types are the types of events, with * behind those that wait.
func types(events []map[string]any) (names []string) {
	for _, e := range events {
		name := fmt.Sprint(e["type"])
		if e["processed_at"] == nil {
			name += "*"
		}
		names = append(names, name)
	}
	return names
}

// until polls until the newest events of a session are of these types.
func (r *rig) until(session string, tail ...string) []map[string]any {
	r.t.Helper()
	var events []map[string]any
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		events = r.events(session, "")
		if names := types(events); len(names) >= len(tail) && slices.Equal(names[len(names)-len(tail):], tail) {
			return events
		}
	}
	r.t.Fatalf("the log does not end in %v: %v", tail, types(events))
	return nil
}

var turn = []string{"session.status_running", "session.thread_status_running", "user.message", "span.model_request_start",
	"agent.message", "span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle"}

// TestTurn: a message, what comes of it, and what the session says of itself.
func TestTurn(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session(`"initial_events":[` + message("one") + `]`)
	first := r.until(id, turn...)
	if len(first) != len(turn) {
		t.Fatalf("%v", types(first))
	}
	sent := r.send(id, message("two"), `{"type":"user.message","content":[{"type":"text","text":"three"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}]}`)
	if len(sent) != 2 || sent[0]["processed_at"] != nil || sent[1]["id"] == sent[0]["id"] {
		t.Errorf("sent: %v", sent)
	}
	var events []map[string]any
	for deadline := time.Now().Add(30 * time.Second); len(events) < 3*len(turn) && time.Now().Before(deadline); {
		events = r.events(id, "")
	}
	if diff := cmp.Diff(slices.Concat(turn, turn, turn), types(events)); diff != "" {
		t.Fatal(diff)
	}
	last := ""
	seen := map[any]bool{}
	for _, e := range events {
		at := fmt.Sprint(e["processed_at"])
		if at <= last || seen[e["id"]] {
			t.Errorf("%v at %s after %s", e["type"], at, last)
		}
		last, seen[e["id"]] = at, true
	}
	if e := events[len(turn)+2]; e["id"] != sent[0]["id"] || fmt.Sprint(e["content"]) != fmt.Sprint(sent[0]["content"]) {
		t.Errorf("in the log %v, sent %v", e, sent[0])
	}
	session := r.must("GET", "/v1/sessions/"+id, "").body
	usage := session["usage"].(map[string]any)
	if usage["input_tokens"] != 30.0 || usage["output_tokens"] != 15.0 || usage["cache_read_input_tokens"] != 9.0 ||
		usage["cache_creation"].(map[string]any)["ephemeral_5m_input_tokens"] != 6.0 || session["status"] != "idle" {
		t.Errorf("session: %v", session)
	}
	if told := events[len(events)-2]["usage"]; cmp.Diff(without(usage, "active_seconds"), without(told.(map[string]any), "active_seconds")) != "" {
		t.Errorf("session.usage %v, the session %v", told, usage)
	}
}

func without(m map[string]any, key string) map[string]any {
	m = with(m)
	delete(m, key)
	return m
}

// TestEventPages: pages in both directions, filters, and what waits at the end.
func TestEventPages(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	r.send(id, message("hang"))
	r.until(id, turn[:3]...)
	r.send(id, message("a"), message("b"))
	r.send(id, message("c"))
	all := r.events(id, "")
	if diff := cmp.Diff(append(slices.Clone(turn[:3]), "user.message*", "user.message*", "user.message*"), types(all)); diff != "" {
		t.Fatal(diff)
	}
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	for _, limit := range []int{1, 2, 3, 5, 6, 1000} {
		for order, want := range map[string][]map[string]any{"": all, "asc": all, "desc": backwards} {
			got := r.events(id, fmt.Sprintf("limit=%d&order=%s", limit, order))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("limit %d %s (-want +got):\n%s", limit, order, diff)
			}
		}
	}
	at := fmt.Sprint(all[1]["processed_at"])
	for query, want := range map[string][]map[string]any{
		"types[]=user.message":                                        {all[2], all[3], all[4], all[5]},
		"types[]=user.message&limit=1&order=desc":                     {all[5], all[4], all[3], all[2]},
		"types=user.message":                                          {all[2], all[3], all[4], all[5]},
		"types[]=agent.message":                                       nil,
		"types[]=session.status_running&types[]=user.message&limit=2": {all[0], all[2], all[3], all[4], all[5]},
		"created_at[gte]=" + at:                                       {all[1], all[2]},
		"created_at[gt]=" + at:                                        {all[2]},
		"created_at[lt]=" + at:                                        {all[0]},
		"order=desc&limit=1&created_at[lte]=" + at:                    {all[1], all[0]},
	} {
		if diff := cmp.Diff(want, r.events(id, query)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	for query, message := range map[string]string{
		"limit=0":             "limit: Input should be greater than or equal to 1",
		"limit=1001":          "limit: Input should be less than or equal to 1000",
		"order=up":            "order: Input should be 'asc' or 'desc'",
		"types[]=odd":         "types[0]: odd is not a type of event",
		"page=page_x":         "invalid page cursor",
		"created_at[gt]=soon": "created_at[gt]: Input should be a valid RFC 3339 datetime",
	} {
		if got := r.ask("GET", "/v1/sessions/"+id+"/events?"+query, ""); got.status != 400 || got.message() != message {
			t.Errorf("%s: %d %s", query, got.status, got.text)
		}
	}
	other := r.must("GET", "/v1/sessions/"+id+"/events?limit=1", "").str("next_page")
	for _, query := range []string{"order=desc&page=", "types[]=user.message&page="} {
		if got := r.ask("GET", "/v1/sessions/"+id+"/events?"+query+other, ""); got.status != 400 {
			t.Errorf("a cursor of another list: %d %s", got.status, got.text)
		}
	}
}

// TestEventPagesWhileTheLogGrows: between two pages events leave the queue, out
// of turn too, and others come: each event that was there at first is shown once.
func TestEventPagesWhileTheLogGrows(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"asc", "desc"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			id := r.session("")
			r.send(id, message("hang"))
			r.until(id, turn[:3]...)
			r.send(id, message("a"), message("b"), message("c"), message("d"))
			want := map[any]bool{}
			for _, e := range r.events(id, "") {
				want[e["id"]] = true
			}
			rec, _, queue, err := r.turns.Load(t.Context(), r.workspace, id, 0)
			if err != nil {
				t.Fatal(err)
			}
			take := func(e control.EventRecord) {
				_, log, _, err := r.turns.Load(t.Context(), r.workspace, id, 0)
				if err == nil {
					_, _, err = r.turns.Commit(t.Context(), control.Step{Workspace: rec.Workspace, Session: id, After: int64(len(log)),
						Events: []control.EventRecord{e, {ID: r.turns.EventID(), Type: api.EventAgentThinking}}})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			got := map[any]int{}
			for i, page := 0, ""; ; i++ {
				a := r.must("GET", "/v1/sessions/"+id+"/events?limit=1&order="+order+"&page="+page, "")
				for _, e := range dataOf(a) {
					got[e["id"]]++
				}
				if page = a.str("next_page"); page == "" {
					break
				}
				switch i {
				case 1:
					take(queue[3]) // out of turn
				case 3:
					take(queue[0])
					r.send(id, message("late"))
				case 4:
					take(queue[1])
				}
				if i > 50 {
					t.Fatal("the list does not end")
				}
			}
			for e := range want {
				if got[e] != 1 {
					t.Errorf("%v was shown %d times", e, got[e])
				}
			}
			for e, n := range got {
				if n != 1 {
					t.Errorf("%v was shown %d times", e, n)
				}
			}
		})
	}
}

// TestConfirmation: a tool that asks, and who may answer what.
func TestConfirmation(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	path := "/v1/sessions/" + id + "/events"
	for _, result := range []string{"allow", "deny"} {
		r.send(id, message("ask"))
		events := r.until(id, "agent.tool_use", "session.thread_status_idle", "session.usage", "session.status_idle")
		use := fmt.Sprint(events[len(events)-4]["id"])
		if reason := events[len(events)-1]["stop_reason"].(map[string]any); reason["type"] != "requires_action" || fmt.Sprint(reason["event_ids"]) != "["+use+"]" {
			t.Errorf("idle for %v", reason)
		}
		running := fmt.Sprint(events[0]["id"])
		for body, message := range map[string]string{
			`{"type":"user.tool_confirmation","tool_use_id":"sevt_x","result":"allow"}`:                         "events[0].tool_use_id: sevt_x is not a tool use of this session",
			`{"type":"user.tool_confirmation","tool_use_id":"` + running + `","result":"allow"}`:                "events[0].tool_use_id: " + running + " is not a tool use that can be confirmed",
			`{"type":"user.custom_tool_result","custom_tool_use_id":"` + use + `"}`:                             "events[0].custom_tool_use_id: " + use + " is not the use of a custom tool",
			message("x") + `,{"type":"system.message","content":[{"type":"text","text":"y"}]}`:                  "events[1]: While the session waits for " + use + ", a system.message is accepted only behind a tool result",
			`{"type":"user.tool_confirmation","tool_use_id":"` + use + `","result":"allow","deny_message":"x"}`: "events[0].deny_message: Only allowed when result is 'deny'",
		} {
			if got := r.ask("POST", path, `{"events":[`+body+`]}`); got.status != 400 || got.message() != message {
				t.Errorf("%s: %d %s", body, got.status, got.text)
			}
		}
		confirm := `{"type":"user.tool_confirmation","tool_use_id":"` + use + `","result":"` + result + `"}`
		first := r.send(id, confirm, confirm)
		if first[0]["id"] != first[1]["id"] {
			t.Errorf("confirmed twice: %v", first)
		}
		done := r.until(id, append([]string{"session.status_running", "session.thread_status_running", "user.tool_confirmation", "agent.tool_result"}, turn[3:]...)...)
		if again := r.send(id, confirm); again[0]["id"] != first[0]["id"] || again[0]["processed_at"] == nil {
			t.Errorf("confirmed again: %v", again)
		}
		if now := r.events(id, ""); len(now) != len(done) {
			t.Errorf("a repeated confirmation did something: %v", types(now[len(done):]))
		}
	}
	r.send(id, message("ask"))
	events := r.until(id, "agent.tool_use", "session.thread_status_idle", "session.usage", "session.status_idle")
	use := fmt.Sprint(events[len(events)-4]["id"])
	r.send(id, `{"type":"user.interrupt"}`)
	r.until(id, "user.interrupt", "session.thread_status_idle", "session.usage", "session.status_idle")
	late := r.ask("POST", path, `{"events":[{"type":"user.tool_confirmation","tool_use_id":"`+use+`","result":"allow"}]}`)
	if want := "events[0].tool_use_id: " + use + " does not wait for an answer any more"; late.status != 400 || late.message() != want {
		t.Errorf("after the interrupt: %d %s", late.status, late.text)
	}
}

// TestContradiction: a use is answered once. The same answer again is met with what
// was stored, another one is refused.
func TestContradiction(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	path := "/v1/sessions/" + id + "/events"
	use := func(word, kind string) string {
		r.send(id, message(word))
		events := r.until(id, kind, "session.thread_status_idle", "session.usage", "session.status_idle")
		return fmt.Sprint(events[len(events)-4]["id"])
	}
	check := func(first string, equal, other []string) {
		t.Helper()
		stored := r.send(id, first)[0]["id"]
		r.until(id, turn[3:]...)
		for _, again := range equal {
			if got := r.send(id, again)[0]["id"]; got != stored {
				t.Errorf("%s again is %v, want %v", again, got, stored)
			}
		}
		for _, change := range other {
			got := r.ask("POST", path, `{"events":[`+change+`]}`)
			if got.status != 400 || !strings.HasSuffix(got.message(), "has been answered already, and differently") {
				t.Errorf("%s: %d %s", change, got.status, got.text)
			}
		}
	}
	asked := use("ask", "agent.tool_use")
	confirm := func(rest string) string {
		return `{"type":"user.tool_confirmation","tool_use_id":"` + asked + `",` + rest + `}`
	}
	both := r.ask("POST", path, `{"events":[`+confirm(`"result":"allow"`)+`,`+confirm(`"result":"deny"`)+`]}`)
	if both.status != 400 || !strings.HasPrefix(both.message(), "events[1]: ") {
		t.Errorf("allow and deny at once: %d %s", both.status, both.text)
	}
	check(confirm(`"result":"deny","deny_message":"no"`), []string{confirm(`"deny_message":"no","result":"deny"`)},
		[]string{confirm(`"result":"allow"`), confirm(`"result":"deny"`), confirm(`"result":"deny","deny_message":"never"`)})
	waits := use("custom", "agent.custom_tool_use")
	result := func(rest string) string {
		return `{"type":"user.custom_tool_result","custom_tool_use_id":"` + waits + `"` + rest + `}`
	}
	check(result(`,"content":[{"type":"text","text":"v"}]`),
		[]string{result(`,"is_error":false,"content":[{"text":"v","type":"text"}]`)},
		[]string{result(``), result(`,"content":[{"type":"text","text":"w"}]`), result(`,"is_error":true,"content":[{"type":"text","text":"v"}]`)})
}

// TestRunningWhenAcknowledged: a session with something to do is running when what
// it has to do is acknowledged, whether the loop has looked or not.
func TestRunningWhenAcknowledged(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.loop.Close() // nobody takes anything up
	status := func(id string) string { return r.must("GET", "/v1/sessions/"+id, "").str("status") }
	id := r.session("")
	if got := status(id); got != "idle" {
		t.Errorf("a new session is %s", got)
	}
	r.send(id, `{"type":"user.interrupt"}`)
	if got := status(id); got != "idle" {
		t.Errorf("after an interrupt alone it is %s", got)
	}
	r.send(id, message("hello"))
	r.send(id, message("again"))
	if got := status(id); got != "running" {
		t.Errorf("after a message it is %s", got)
	}
	if got := types(r.events(id, "")); !slices.Equal(got, []string{"session.status_running", "session.thread_status_running", "user.interrupt*", "user.message*", "user.message*"}) {
		t.Errorf("the log is %v", got)
	}
	if got := status(r.session(`"initial_events":[` + message("hello") + `]`)); got != "running" {
		t.Errorf("a session with initial events is %s", got)
	}
}

// TestCustomTool: a result enters the log at once, and makes the session run in
// the same moment.
func TestCustomTool(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	r.send(id, message("custom"))
	events := r.until(id, "agent.custom_tool_use", "session.thread_status_idle", "session.usage", "session.status_idle")
	use := fmt.Sprint(events[len(events)-4]["id"])
	result := `{"type":"user.custom_tool_result","custom_tool_use_id":"` + use + `","is_error":false,"content":[{"type":"text","text":"v"},
		{"type":"search_result","source":"s","title":"t","content":[{"type":"text","text":"x"}],"citations":{"enabled":true}},
		{"type":"document","title":"d","source":{"type":"text","media_type":"text/plain","data":"z"}}]}`
	sent := r.send(id, result, `{"type":"system.message","content":[{"type":"text","text":"be brief"}]}`)
	if sent[0]["processed_at"] == nil || sent[1]["type"] != "system.message" {
		t.Errorf("sent: %v", sent)
	}
	r.until(id, "session.status_idle")
	if again := r.send(id, result); again[0]["id"] != sent[0]["id"] || again[0]["processed_at"] != sent[0]["processed_at"] {
		t.Errorf("sent again: %v", again)
	}
	log := types(r.events(id, ""))
	at := slices.Index(log, "user.custom_tool_result")
	if at < 2 || log[at-2] != "session.status_running" || slices.Index(log[at+1:], "user.custom_tool_result") >= 0 {
		t.Errorf("log: %v", log)
	}
}

// TestInterrupt: what runs ends, what waited goes on.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	r.send(id, message("hang"))
	r.until(id, turn[:3]...)
	thread := dataOf(r.must("GET", "/v1/sessions/"+id+"/threads", ""))[0]
	if bad := r.ask("POST", "/v1/sessions/"+id+"/events", `{"events":[{"type":"user.interrupt","session_thread_id":"sthr_x"}]}`); bad.status != 400 {
		t.Errorf("an unknown thread: %d %s", bad.status, bad.text)
	}
	for _, verb := range []string{"archive", ""} {
		method := map[string]string{"archive": "POST", "": "DELETE"}[verb]
		got := r.ask(method, strings.TrimSuffix("/v1/sessions/"+id+"/"+verb, "/"), "")
		if got.status != 400 || !strings.Contains(got.message(), "while it is running. Send an interrupt event or wait for the session to complete.") {
			t.Errorf("%s while it runs: %d %s", verb, got.status, got.text)
		}
	}
	r.send(id, message("next"), `{"type":"user.interrupt","session_thread_id":"`+fmt.Sprint(thread["id"])+`"}`)
	events := r.until(id, append([]string{"user.interrupt", "session.thread_status_idle", "session.usage", "session.status_idle"}, turn...)...)
	if reason := events[6]["stop_reason"].(map[string]any); reason["type"] != "end_turn" {
		t.Errorf("idle for %v", reason)
	}
	r.send(id, message("fail"))
	r.until(id, "session.error", "session.thread_status_rescheduled", "session.status_rescheduled", "session.status_running",
		"session.thread_status_running", "session.error", "session.thread_status_idle", "session.usage", "session.status_idle")
}

// TestSendRefusals: what is not taken leaves nothing behind.
func TestSendRefusals(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	path := "/v1/sessions/" + id + "/events"
	block := func(b string) string { return `{"type":"user.message","content":[` + b + `]}` }
	for events, message := range map[string]string{
		``:                         "events: List should have at least 1 item",
		`{}`:                       "events[0].type: Field required",
		`{"type":"agent.message"}`: "events[0].type: Input should be 'user.message', 'user.interrupt', 'user.tool_confirmation', 'user.custom_tool_result', 'user.define_outcome', 'user.tool_result' or 'system.message'",
		`{"type":"user.define_outcome","description":"d","rubric":{"type":"text","content":"c"}}`: "events[0].type: 'user.define_outcome' is not supported yet by this server: it has no outcomes",
		`{"type":"user.tool_result","tool_use_id":"x"}`:                                           "events[0].type: 'user.tool_result' is for sessions on self-hosted environments, which this server does not have yet",
		`{"type":"user.message"}`:                    "events[0].content: Field required",
		`{"type":"user.message","content":"hi"}`:     "events[0].content: Input should be a valid list",
		`{"type":"user.message","content":[],"x":1}`: "events[0].x: Extra inputs are not permitted",
		block(``):                          "events[0].content: List should have at least 1 item",
		block(`{"type":"text","text":""}`): "events[0].content[0].text: String should have at least 1 character",
		block(`{"type":"text","text":" "},{"type":"text","text":"\n\t"}`):                           "events[0].content: At least one block must hold more than white space",
		block(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"aGk="}}`): "events[0].content[0].source.data: The data is not of type 'image/png'",
		block(`{"type":"redacted"}`):                                                                                                   "events[0].content[0].type: A block of type 'redacted' cannot be sent",
		block(`{"type":"search_result"}`):                                                                                              "events[0].content[0].type: Input should be 'text', 'image' or 'document'",
		block(`{"type":"image","source":{"type":"file","file_id":"f"}}`):                                                               "events[0].content[0].source.type: 'file' is not supported yet by this server: it has no files API",
		block(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%"}}`):                                       "events[0].content[0].source.data: Input should be valid base64",
		block(`{"type":"image","source":{"type":"base64","media_type":"image/bmp","data":"aGk="}}`):                                    "events[0].content[0].source.media_type: Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'",
		block(`{"type":"image","source":{"type":"url","url":"ftp://example.com/x"}}`):                                                  "events[0].content[0].source.url: Input should be an http or https URL",
		block(`{"type":"document","source":{"type":"base64","media_type":"text/plain","data":"aGk="}}`):                                "events[0].content[0].source.media_type: Input should be 'application/pdf'",
		`{"type":"user.interrupt","session_thread_id":1}`:                                                                              "events[0].session_thread_id: Input should be a valid string",
		`{"type":"user.tool_confirmation","tool_use_id":"x","result":"maybe"}`:                                                         "events[0].result: Input should be 'allow' or 'deny'",
		`{"type":"user.tool_confirmation","tool_use_id":"","result":"allow"}`:                                                          "events[0].tool_use_id: String should have at least 1 character",
		`{"type":"system.message","content":[{"type":"text","text":"x"}]}`:                                                             "events[0]: A system.message must directly follow the user.message or user.custom_tool_result that it accompanies",
		message("a") + `,{"type":"system.message","content":[{"type":"text","text":"x"}]},` + message("b"):                             "events[1]: A system.message must be the last event of a request",
		message("a") + `,{"type":"system.message","content":[{"type":"image","source":{"type":"url","url":"https://example.com/x"}}]}`: "events[1].content[0].type: Input should be 'text'",
		strings.TrimSuffix(strings.Repeat(message("a")+",", 101), ","):                                                                 "events: List should have at most 100 items",
	} {
		got := r.ask("POST", path, `{"events":[`+events+`]}`)
		if got.status != 400 || got.message() != message {
			t.Errorf("%.200s:\n%d %s, want\n%s", events, got.status, got.text, message)
		}
	}
	if got := r.ask("POST", path, `{"events":[`+message("a")+`],"x":1}`); got.status != 400 {
		t.Errorf("an unknown field: %d %s", got.status, got.text)
	}
	if log := r.events(id, ""); len(log) != 0 {
		t.Errorf("refused events are in the log: %v", types(log))
	}
	for _, missing := range []string{"/v1/sessions/sesn_x/events", "/v1/sessions/sesn_x/threads", "/v1/sessions/sesn_x/events/stream", "/v1/sessions/" + id + "/threads/sthr_x",
		"/v1/sessions/" + id + "/threads/sthr_x/events", "/v1/sessions/" + id + "/threads/sthr_x/stream"} {
		if got := r.ask("GET", missing, ""); got.status != 404 {
			t.Errorf("%s: %d %s", missing, got.status, got.text)
		}
	}
	env := r.must("GET", "/v1/sessions/"+id, "").str("environment_id")
	agent := r.must("POST", "/v1/agents", `{"name":"a","model":"m"}`).str("id")
	for more, message := range map[string]string{
		`"initial_events":[{"type":"user.interrupt"}]`:                                             "initial_events[0].type: Input should be 'user.message' or 'user.define_outcome'",
		`"initial_events":[` + strings.TrimSuffix(strings.Repeat(message("a")+",", 51), ",") + `]`: "initial_events: List should have at most 50 items",
	} {
		if got := r.ask("POST", "/v1/sessions", create(agent, env, more)); got.status != 400 || got.message() != message {
			t.Errorf("%.60s: %d %s", more, got.status, got.text)
		}
	}
	r.must("POST", "/v1/sessions/"+id+"/archive", "")
	if got := r.ask("POST", path, `{"events":[`+message("a")+`]}`); got.status != 400 || got.message() != "Session "+id+" is archived." {
		t.Errorf("archived: %d %s", got.status, got.text)
	}
}

// TestQueueIsBounded: a session whose agent does not keep up refuses more.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	r.send(id, message("hang"))
	r.until(id, turn[:3]...)
	hundred := `{"events":[` + strings.TrimSuffix(strings.Repeat(message("a")+",", 100), ",") + `]}`
	for range 10 {
		r.must("POST", "/v1/sessions/"+id+"/events", hundred)
	}
	if got := r.ask("POST", "/v1/sessions/"+id+"/events", `{"events":[`+message("a")+`]}`); got.status != 429 {
		t.Errorf("a full queue: %d %s", got.status, got.text)
	}
	if n := len(r.events(id, "")); n != 1003 {
		t.Errorf("%d events", n)
	}
}

// TestUpdateAndEndEvents: what a session tells of its own changes.
func TestUpdateAndEndEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session(`"title":"t","metadata":{"a":"1"}`)
	path := "/v1/sessions/" + id
	r.must("POST", path, `{}`)
	r.must("POST", path, `{"title":"t","metadata":{"a":"1"}}`)
	r.must("POST", path, `{"title":"u"}`)
	r.must("POST", path, `{"title":null,"metadata":{"b":"2"}}`)
	r.must("POST", path, `{"metadata":{"a":null,"b":null}}`)
	r.must("POST", path, `{"agent":{"tools":[{"type":"agent_toolset_20260401"}]}}`)
	events := r.events(id, "")
	agent := r.must("GET", path, "").body["agent"]
	want := []map[string]any{
		{"title": "u"},
		{"title": nil, "metadata": map[string]any{"a": "1", "b": "2"}},
		{},
		{"agent": agent},
	}
	for i, e := range events {
		e = with(e)
		for _, key := range []string{"type", "id", "processed_at"} {
			delete(e, key)
		}
		if i >= len(want) || cmp.Diff(want[i], e) != "" {
			t.Errorf("update %d tells %v", i, e)
		}
	}
	thread := dataOf(r.must("GET", path+"/threads", ""))[0]
	if thread["usage"] != nil || thread["stats"] != nil || thread["status"] != "idle" || cmp.Diff(without(agent.(map[string]any), "multiagent"), thread["agent"]) != "" {
		t.Errorf("thread before the first turn: %v", thread)
	}
	one := r.must("GET", path+"/threads/"+fmt.Sprint(thread["id"]), "").body
	if diff := cmp.Diff(thread, one, timeless); diff != "" {
		t.Error(diff)
	}
	if got := r.ask("POST", path+"/threads/"+fmt.Sprint(thread["id"])+"/archive", ""); got.status != 400 {
		t.Errorf("archive of the primary thread: %d %s", got.status, got.text)
	}
	if n := len(dataOf(r.must("GET", path+"/threads?statuses[]=running", ""))); n != 0 {
		t.Errorf("%d threads run", n)
	}
	r.send(id, message("hi"))
	r.until(id, turn...)
	thread = r.must("GET", path+"/threads/"+fmt.Sprint(thread["id"]), "").body
	if thread["usage"] == nil || thread["stats"] == nil || thread["stats"].(map[string]any)["startup_seconds"] == nil {
		t.Errorf("thread after the first turn: %v", thread)
	}
	if diff := cmp.Diff(r.events(id, ""), dataOf(r.must("GET", path+"/threads/"+fmt.Sprint(thread["id"])+"/events", ""))); diff != "" {
		t.Error(diff)
	}
	r.must("POST", path+"/archive", "")
	r.must("POST", path+"/archive", "")
	events = r.events(id, "")
	if diff := cmp.Diff([]string{"session.status_idle", "session.thread_status_terminated", "session.status_terminated"}, types(events[len(events)-3:])); diff != "" {
		t.Error(diff)
	}
	if ended := r.loop.EndedSessions(); !slices.Contains(ended, id) {
		t.Errorf("the loop was not told: %v", ended)
	}
	r.must("DELETE", path, "")
	if got := r.ask("GET", path+"/events", ""); got.status != 404 {
		t.Errorf("events of a deleted session: %d %s", got.status, got.text)
	}
}
