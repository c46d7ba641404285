package agent_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
	"github.com/atoll-run/atoll/internal/control"
)

// hostile is a reply of a model that does not keep to the API, and what may come
// of it.
type hostile struct {
	name   string
	frames []modeltest.Frame
	// ran are the calls that run, as NAME INPUT.
	ran []string
	// stop is the stop reason of the turn; empty means end_turn.
	stop string
	// fails says that the reply is taken for a failed request, again and again.
	fails bool
	// alone says that the model is not asked again in this turn.
	alone bool
	// says has what a result tells the model about a call that did not run.
	says string
	// texts are what the agent says in this reply; nil does not look.
	texts []string
}

// frame is one event of a stream, with the fields given as a JSON object.
func frame(kind, fields string) modeltest.Frame {
	data := `{"type":"` + kind + `"`
	if fields != "" {
		data += "," + fields
	}
	return modeltest.Frame{Event: kind, Data: data + "}"}
}

func quoted(s string) string {
	text, _ := json.Marshal(s) // strings only
	return string(text)
}

// Blocks of a reply, streamed whole: number i of the reply.
func textFrames(i int, words ...string) []modeltest.Frame {
	out := []modeltest.Frame{frame("content_block_start", fmt.Sprintf(`"index":%d,"content_block":{"type":"text","text":"","citations":null}`, i))}
	for _, w := range words {
		out = append(out, frame("content_block_delta", fmt.Sprintf(`"index":%d,"delta":{"type":"text_delta","text":%s}`, i, quoted(w))))
	}
	return append(out, frame("content_block_stop", fmt.Sprintf(`"index":%d`, i)))
}

func thinkingFrames(i int, words, signature string) []modeltest.Frame {
	return []modeltest.Frame{
		frame("content_block_start", fmt.Sprintf(`"index":%d,"content_block":{"type":"thinking","thinking":"","signature":""}`, i)),
		frame("content_block_delta", fmt.Sprintf(`"index":%d,"delta":{"type":"thinking_delta","thinking":%s}`, i, quoted(words))),
		frame("content_block_delta", fmt.Sprintf(`"index":%d,"delta":{"type":"signature_delta","signature":%s}`, i, quoted(signature))),
		frame("content_block_stop", fmt.Sprintf(`"index":%d`, i)),
	}
}

// openCall is a tool_use that has not ended; its input comes as it is.
func openCall(i int, id, name string, input ...string) []modeltest.Frame {
	out := []modeltest.Frame{frame("content_block_start", fmt.Sprintf(`"index":%d,"content_block":{"type":"tool_use","id":%s,"name":%s,"input":{}}`, i, quoted(id), quoted(name)))}
	for _, part := range input {
		out = append(out, frame("content_block_delta", fmt.Sprintf(`"index":%d,"delta":{"type":"input_json_delta","partial_json":%s}`, i, quoted(part))))
	}
	return out
}

func call(i int, id, name string, input ...string) []modeltest.Frame {
	return append(openCall(i, id, name, input...), frame("content_block_stop", fmt.Sprintf(`"index":%d`, i)))
}

// whole is a call whose input stands in the block's beginning, without pieces.
func whole(i int, id, name, input string) []modeltest.Frame {
	return []modeltest.Frame{
		frame("content_block_start", fmt.Sprintf(`"index":%d,"content_block":{"type":"tool_use","id":%s,"name":%s,"input":%s}`, i, quoted(id), quoted(name), input)),
		frame("content_block_stop", fmt.Sprintf(`"index":%d`, i)),
	}
}

// stops ends a reply.
func stops(reason string) []modeltest.Frame {
	return endsWith(`"stop_reason":`+quoted(reason)+`,"stop_sequence":null,"stop_details":null`, `"output_tokens":7`)
}

func endsWith(delta, usage string) []modeltest.Frame {
	return []modeltest.Frame{frame("message_delta", `"delta":{`+delta+`},"usage":{`+usage+`}`), frame("message_stop", "")}
}

func join(parts ...[]modeltest.Frame) []modeltest.Frame { return slices.Concat(parts...) }

// hostileInputs are inputs of calls that cannot run, and what the model is told.
var hostileInputs = []struct{ name, input, says string }{
	{"list", `[1]`, "it is a list"},
	{"null", `null`, "it is null"},
	{"number", `7`, "it is a number"},
	{"string", `"x"`, "it is a string"},
	{"true", `true`, "it is true or false"},
	{"empty list", `[]`, "it is a list"},
	{"object as a string", `"{\"command\":\"ls\"}"`, "it is a string"},
	{"not JSON", `{"command":`, "it is not valid JSON"},
	{"words", `ls -l`, "it is not valid JSON"},
	{"single quotes", `{'command':'ls'}`, "it is not valid JSON"},
	{"comma at the end", `{"command":"ls",}`, "it is not valid JSON"},
	{"comment", `{"command":"ls"/*x*/}`, "it is not valid JSON"},
	{"colon missing", `{"command" "ls"}`, "it is not valid JSON"},
	{"NaN", `{"timeout_ms":NaN}`, "it is not valid JSON"},
	{"leading zero", `{"timeout_ms":007}`, "it is not valid JSON"},
	{"line break in a string", "{\"command\":\"a\nb\"}", "it is not valid JSON"},
	{"byte order mark", "\ufeff{}", "it is not valid JSON"},
	{"white space alone", " \n ", "it is empty"},
	{"junk behind", `{"command":"ls"} and more`, "after top-level value"},
	{"two objects", `{"command":"ls"}{"command":"rm -rf /"}`, "after top-level value"},
	{"brace behind", `{"command":"ls"}}`, "after top-level value"},
	{"a name twice", `{"command":"ls","command":"rm -rf /"}`, "command: Field is given more than once"},
	{"a name twice, escaped", `{"command":"ls","\u0063ommand":"rm -rf /"}`, "command: Field is given more than once"},
	{"a name twice, deep", `{"a":[{"b":1,"b":2}]}`, "a[0].b: Field is given more than once"},
	{"too deep", strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200), "it nests deeper than 100 levels"},
	{"far too deep", `{"a":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + "}", "it is not valid JSON"},
	{"number out of range", `{"timeout_ms":1e999}`, "timeout_ms: the number is out of range"},
	{"half a character", `{"command":"a\ud800b"}`, "it holds half of a surrogate pair"},
}

// hostileStops are stop reasons that run nothing.
var hostileStops = []string{"pause_turn", "compaction", "tool_call", "TOOL_USE", "tool_use ", "", "error", "content_filter", "max_token", "\u0000", strings.Repeat("x", 2_000)}

func hostileReplies() []hostile {
	const ls = `{"command":"ls"}`
	var table []hostile
	add := func(h hostile) { table = append(table, h) }
	for _, in := range hostileInputs {
		add(hostile{name: "input: " + in.name, frames: join(call(0, "toolu_1", "bash", in.input), stops("tool_use")), says: in.says})
	}
	for _, in := range hostileInputs[:7] {
		add(hostile{name: "input in the beginning: " + in.name, frames: join(whole(0, "toolu_1", "bash", in.input), stops("tool_use")), says: in.says})
	}
	for _, stop := range hostileStops {
		add(hostile{name: fmt.Sprintf("stop reason %.20q with a call", stop), frames: join(call(0, "toolu_1", "bash", ls), stops(stop)), says: "which runs no calls"})
		add(hostile{name: fmt.Sprintf("stop reason %.20q with words", stop), frames: join(textFrames(0, modeltest.Paused), stops(stop)), alone: stop != "pause_turn", texts: []string{modeltest.Paused}})
	}
	refusal := func(details string) []modeltest.Frame {
		return endsWith(`"stop_reason":"refusal","stop_sequence":null,"stop_details":`+details, `"output_tokens":7`)
	}
	for name, frames := range map[string][]modeltest.Frame{
		"calls":              join(call(0, "toolu_1", "bash", ls), call(1, "toolu_2", "lookup", `{}`)),
		"words and a call":   join(textFrames(0, "I "), call(1, "toolu_1", "bash", ls)),
		"a broken call":      call(0, "toolu_1", "bash", `[1]`),
		"an open call":       openCall(0, "toolu_1", "bash", `{"comm`),
		"a call that asks":   call(0, "toolu_1", "risky", `{}`),
		"an unknown tool":    call(0, "toolu_1", "no_such", `{}`),
		"nothing":            nil,
		"thinking":           thinkingFrames(0, "hm", modeltest.SignatureOf("hm")),
		"a call of a server": call(0, "toolu_1", "mcp__srv__add", `{"a":1}`),
	} {
		add(hostile{name: "refusal with " + name, frames: join(frames, refusal(`null`)), stop: "refusal", alone: true})
	}
	for name, details := range map[string]string{
		"a category that the wire does not know": `{"type":"refusal","category":"made_up","explanation":"x"}`,
		"details that are a list":                `[]`,
		"details that are words":                 `"no"`,
		"numbers for words":                      `{"type":7,"category":7,"explanation":7}`,
		"a known category":                       `{"type":"refusal","category":"cyber","explanation":"because"}`,
		"more than is known":                     `{"type":"refusal","category":null,"explanation":null,"more":{"a":[1]}}`,
	} {
		add(hostile{name: "refusal with " + name, frames: join(textFrames(0, "No."), refusal(details)), stop: "refusal", alone: true, texts: []string{"No."}})
	}
	add(hostile{name: "cut at the output limit", frames: join(openCall(0, "toolu_1", "bash", `{"command":"rm -rf /`), stops("max_tokens")), says: "cut off at the token limit"})
	add(hostile{name: "cut at the output limit, whole by chance", frames: join(call(0, "toolu_1", "bash", ls), stops("max_tokens")), says: "cut off at the token limit"})
	add(hostile{name: "second of two is cut", frames: join(call(0, "toolu_1", "bash", ls), openCall(1, "toolu_2", "bash", `{"command":"rm`), stops("max_tokens")),
		ran: []string{"bash " + ls}, says: "cut off at the token limit"})
	add(hostile{name: "a call that never ends", frames: join(openCall(0, "toolu_1", "bash", ls), stops("tool_use")), says: "ended before this call was complete"})
	add(hostile{name: "thinking is cut", frames: join(thinkingFrames(0, "hm", ""), stops("max_tokens")), alone: true})
	add(hostile{name: "thinking alone", frames: join(thinkingFrames(0, "hm", modeltest.SignatureOf("hm")), stops("end_turn")), alone: true})
	add(hostile{name: "thinking behind words", frames: join(textFrames(0, "a"), thinkingFrames(1, "hm", modeltest.SignatureOf("hm")), stops("end_turn")), alone: true, texts: []string{"a"}})
	add(hostile{name: "thinking before a call", frames: join(thinkingFrames(0, "hm", modeltest.SignatureOf("hm")), call(1, "toolu_1", "bash", ls), stops("tool_use")), ran: []string{"bash " + ls}})
	add(hostile{name: "redacted thinking without data", frames: join([]modeltest.Frame{frame("content_block_start", `"index":0,"content_block":{"type":"redacted_thinking","data":""}`), frame("content_block_stop", `"index":0`)}, textFrames(1, "a"), stops("end_turn")), alone: true, texts: []string{"a"}})
	add(hostile{name: "a pause in white space", frames: join(textFrames(0, modeltest.Paused+" \n"), stops("pause_turn"))})
	add(hostile{name: "a pause without a word", frames: join(stops("pause_turn")), alone: true})
	add(hostile{name: "a pause in thinking", frames: join(thinkingFrames(0, "hm", modeltest.SignatureOf("hm")), stops("pause_turn")), alone: true})

	for name, id := range map[string]string{"empty": "", "with spaces": "tool u", "with a line break": "a\nb", "of 1,000 characters": strings.Repeat("t", 1000), "in Greek": "αβγ", "with quotes": `"'`} {
		add(hostile{name: "id " + name, frames: join(call(0, id, "bash", ls), stops("tool_use")), ran: []string{"bash " + ls}})
	}
	add(hostile{name: "the same id twice", frames: join(call(0, "toolu_1", "bash", ls), call(1, "toolu_1", "bash", `{}`), stops("tool_use")), ran: []string{"bash " + ls, "bash {}"}})
	for name, tool := range map[string]string{"empty": "", "with spaces": "ba sh", "of 10,000 characters": strings.Repeat("b", 10_000), "in capitals": "BASH", "with a path": "../bash", "with a NUL": "bash\x00", "in Greek": "μπας",
		"of a server's tool": "add", "of a tool of the API": "web_search_20250305"} {
		add(hostile{name: "name " + name, frames: join(call(0, "toolu_1", tool, ls), stops("tool_use")), says: "There is no tool"})
	}
	add(hostile{name: "custom tool with a list", frames: join(call(0, "toolu_1", "lookup", `[1]`), stops("tool_use")), says: "it is a list"})
	add(hostile{name: "tool that asks with a list", frames: join(call(0, "toolu_1", "risky", `[1]`), stops("tool_use")), says: "it is a list"})
	add(hostile{name: "server's tool with a list", frames: join(call(0, "toolu_1", "mcp__srv__add", `[1]`), stops("tool_use")), says: "it is a list"})
	add(hostile{name: "input in many pieces", frames: join(call(0, "toolu_1", "bash", strings.Split(ls, "")...), stops("tool_use")), ran: []string{"bash " + ls}})
	add(hostile{name: "no input", frames: join(call(0, "toolu_1", "bash"), stops("tool_use")), ran: []string{"bash {}"}})
	add(hostile{name: "input in the beginning", frames: join(whole(0, "toolu_1", "bash", ls), stops("tool_use")), ran: []string{"bash " + ls}})
	add(hostile{name: "input in both places", frames: join([]modeltest.Frame{
		frame("content_block_start", `"index":0,"content_block":{"type":"tool_use","id":"toolu_1","name":"bash","input":{"command":"rm"}}`),
		frame("content_block_delta", `"index":0,"delta":{"type":"input_json_delta","partial_json":"{\"command\":\"ls\"}"}`), frame("content_block_stop", `"index":0`)}, stops("tool_use")), ran: []string{"bash " + ls}})
	add(hostile{name: "words in the pieces of a call", frames: join(openCall(0, "toolu_1", "bash", ls), []modeltest.Frame{
		frame("content_block_delta", `"index":0,"delta":{"type":"text_delta","text":"x"}`), frame("content_block_stop", `"index":0`)}, stops("tool_use")), ran: []string{"bash " + ls}})
	add(hostile{name: "a large input", frames: join(call(0, "toolu_1", "bash", `{"command":"`, strings.Repeat("x", 200_000), `"}`), stops("tool_use")), ran: []string{`bash {"command":"` + strings.Repeat("x", 200_000) + `"}`}})
	add(hostile{name: "a number with many digits", frames: join(call(0, "toolu_1", "bash", `{"n":12345678901234567890.125}`), stops("tool_use")), ran: []string{`bash {"n":12345678901234567890.125}`}})

	for _, kind := range []string{"server_tool_use", "web_search_tool_result", "mcp_tool_use", "container_upload", "image", "tool_result", "compaction", "made_up", ""} {
		odd := []modeltest.Frame{frame("content_block_start", fmt.Sprintf(`"index":0,"content_block":{"type":%q,"id":"srvtoolu_1","name":"bash","tool_use_id":"x","input":{"command":"ls"},"content":[]}`, kind)), frame("content_block_stop", `"index":0`)}
		add(hostile{name: "block of type " + kind, frames: join(odd, textFrames(1, "a"), stops("end_turn")), alone: true, texts: []string{"a"}})
		add(hostile{name: "block of type " + kind + " alone", frames: join(odd, stops("tool_use")), alone: true})
	}
	add(hostile{name: "words that are empty", frames: join(textFrames(0), textFrames(1, "", "b"), textFrames(2, " \n"), stops("end_turn")), alone: true, texts: []string{"b", " \n"}})
	add(hostile{name: "words that are white space", frames: join(textFrames(0, "\n \t"), call(1, "toolu_1", "bash", ls), stops("tool_use")), ran: []string{"bash " + ls}})
	add(hostile{name: "words with NUL and half characters", frames: join([]modeltest.Frame{frame("content_block_start", `"index":0,"content_block":{"type":"text","text":""}`),
		frame("content_block_delta", `"index":0,"delta":{"type":"text_delta","text":"a\u0000\ud800\udfff\udc00b"}`), frame("content_block_stop", `"index":0`)}, stops("end_turn")), alone: true})
	add(hostile{name: "words that are not UTF-8", frames: join([]modeltest.Frame{frame("content_block_start", `"index":0,"content_block":{"type":"text","text":""}`),
		{Event: "content_block_delta", Data: "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a\xff\xfeb\"}}"}, frame("content_block_stop", `"index":0`)}, stops("end_turn")), alone: true})
	add(hostile{name: "words behind a call", frames: join(call(0, "toolu_1", "bash", ls), textFrames(1, "and then"), stops("tool_use")), ran: []string{"bash " + ls}, texts: []string{"and then"}})
	add(hostile{name: "nothing", frames: stops("end_turn"), alone: true})
	add(hostile{name: "nothing, for a call", frames: stops("tool_use"), alone: true})
	add(hostile{name: "calls though the turn has ended", frames: join(call(0, "toolu_1", "bash", ls), stops("end_turn")), ran: []string{"bash " + ls}})
	many := []modeltest.Frame{}
	var manyRan []string
	for i := range 60 {
		many = append(many, call(i, fmt.Sprintf("toolu_%d", i), "bash", fmt.Sprintf(`{"n":%d}`, i))...)
		manyRan = append(manyRan, fmt.Sprintf(`bash {"n":%d}`, i))
	}
	add(hostile{name: "sixty calls", frames: join(many, stops("tool_use")), ran: manyRan})
	add(hostile{name: "interleaved blocks", frames: join([]modeltest.Frame{
		frame("content_block_start", `"index":0,"content_block":{"type":"text","text":"a"}`), frame("content_block_start", `"index":1,"content_block":{"type":"text","text":"b"}`),
		frame("content_block_delta", `"index":0,"delta":{"type":"text_delta","text":"A"}`), frame("content_block_delta", `"index":1,"delta":{"type":"text_delta","text":"B"}`),
		frame("content_block_stop", `"index":1`), frame("content_block_stop", `"index":0`)}, stops("end_turn")), alone: true, texts: []string{"aA", "bB"}})

	for name, usage := range map[string]string{
		"negative": `"output_tokens":-5,"input_tokens":-1,"cache_read_input_tokens":-9`, "huge": `"output_tokens":9223372036854775807`, "not whole": `"output_tokens":1.5`,
		"words": `"output_tokens":"many"`, "null": `"output_tokens":null`, "absent": ``, "a list": `"output_tokens":[1]`,
	} {
		add(hostile{name: "tokens: " + name, frames: join(textFrames(0, "a"), endsWith(`"stop_reason":"end_turn","stop_sequence":null,"stop_details":null`, usage)), alone: true})
	}

	// Streams that are none: the request has failed, and a session goes on after it.
	bad := func(name string, frames ...[]modeltest.Frame) {
		add(hostile{name: "stream: " + name, frames: join(frames...), fails: true, stop: api.StopRetriesExhausted})
	}
	bad("no end", textFrames(0, "a"))
	bad("a call without an end", call(0, "toolu_1", "bash", ls))
	bad("blocks out of order", textFrames(1, "a"), stops("end_turn"))
	bad("a negative block", textFrames(-1, "a"), stops("end_turn"))
	bad("a block far out", textFrames(1<<40, "a"), stops("end_turn"))
	bad("the same block twice", textFrames(0, "a"), textFrames(0, "b"), stops("end_turn"))
	bad("more of a block that there is not", []modeltest.Frame{frame("content_block_delta", `"index":3,"delta":{"type":"text_delta","text":"a"}`)}, stops("end_turn"))
	bad("more of a block that has ended", call(0, "toolu_1", "bash", ls), []modeltest.Frame{frame("content_block_delta", `"index":0,"delta":{"type":"input_json_delta","partial_json":" "}`)}, stops("tool_use"))
	bad("the end of a block that there is not", []modeltest.Frame{frame("content_block_stop", `"index":9`)}, stops("end_turn"))
	bad("data that is no JSON", []modeltest.Frame{{Event: "content_block_start", Data: "{{{"}}, stops("end_turn"))
	bad("an error in the middle", textFrames(0, "a"), []modeltest.Frame{frame("error", `"error":{"type":"overloaded_error","message":"Overloaded"}`)})
	bad("an error of a kind that is new", []modeltest.Frame{frame("error", `"error":{"type":"made_up","message":`+quoted(strings.Repeat("long ", 10_000))+`}`)})
	bad("an error that is no error", []modeltest.Frame{frame("error", `"error":7`)})
	add(hostile{name: "stream: more behind the end", frames: join(textFrames(0, "a"), stops("end_turn"), call(1, "toolu_1", "bash", ls), stops("tool_use")), alone: true, texts: []string{"a"}})
	add(hostile{name: "stream: events that are new", frames: join([]modeltest.Frame{frame("made_up", `"x":1`), {Event: "ping", Data: "{}"}}, textFrames(0, "a"), stops("end_turn")), alone: true, texts: []string{"a"}})
	add(hostile{name: "stream: two beginnings", frames: join([]modeltest.Frame{frame("message_start", `"message":{"id":"x","type":"message","role":"assistant","content":[{"type":"tool_use","id":"toolu_1","name":"bash","input":{}}],"usage":{"input_tokens":1,"output_tokens":1}}`)}, textFrames(0, "a"), stops("end_turn")), alone: true, texts: []string{"a"}})
	return table
}

// TestHostileModel plays each odd reply of a table, and an ordinary turn after it.
// The log must be valid by the official document and the requests must be ones that
// the real endpoint takes, which newWorld checks for every test; and nothing may
// run that should not.
func TestHostileModel(t *testing.T) {
	t.Parallel()
	table := hostileReplies()
	if len(table) < 100 {
		t.Fatalf("the table has %d replies", len(table))
	}
	seen := map[string]bool{}
	for _, h := range table {
		if seen[h.name] {
			t.Errorf("two cases are called %q", h.name)
		}
		seen[h.name] = true
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, builtin("bash", "always_allow"), builtin("risky", "always_ask"), mcp("srv", "add", "always_allow"), custom("lookup"))
			w.stop()
			w.config.MaxRetries, w.config.RetryBase = 1, time.Millisecond
			w.start()
			// The large ones must fit the small window that tests have.
			w.say(modeltest.Script{{Raw: h.frames, InputTokens: 1}, {Text: "after {{result}}", InputTokens: 1}})
			log := w.untilIdle(1)
			h.check(t, w, log)
			w.say(modeltest.Script{{Tools: []modeltest.ToolUse{use("bash", `{"last":1}`)}}, {Text: "the next turn"}})
			log = w.untilIdle(2)
			if said := texts(t, log); len(said) == 0 || said[len(said)-1] != "the next turn" {
				t.Errorf("the session does not go on: %q\n%s", said, show(log))
			}
		})
	}
}

func (h hostile) check(t *testing.T, w *world, log []control.EventRecord) {
	t.Helper()
	stop := fields[api.IdleFields](t, log[len(log)-1])
	want := h.stop
	if want == "" {
		want = api.StopEndTurn
	}
	if stop.StopReason.Type != want || (want == api.StopRefusal) != (stop.StopDetails != nil) {
		t.Errorf("the turn ends with %s, want %s", log[len(log)-1].Fields, want)
	}
	var ran []string
	for _, c := range w.tools.ran() {
		ran = append(ran, c.Name+" "+string(c.Input))
	}
	if !slices.Equal(ran, h.ran) {
		t.Errorf("ran %.300q, want %.300q", ran, h.ran)
	}
	requests := 2
	if h.alone {
		requests = 1
	}
	if n := w.model.Total(); n != requests {
		t.Errorf("%d requests, want %d:\n%s", n, requests, show(log))
	}
	results := of(log, api.EventAgentToolResult, api.EventAgentMCPToolResult)
	if uses := of(log, api.EventAgentToolUse, api.EventAgentMCPToolUse); len(uses) != len(results) {
		t.Errorf("%d uses, %d results:\n%s", len(uses), len(results), show(log))
	}
	if h.says != "" && !strings.Contains(show(results), strings.ReplaceAll(h.says, `"`, `\"`)) {
		t.Errorf("the model is not told %q:\n%s", h.says, show(results))
	}
	if h.texts != nil {
		if got := texts(t, log); len(got) < len(h.texts) || !slices.Equal(got[:len(h.texts)], h.texts) {
			t.Errorf("the agent says %q, want %q first", got, h.texts)
		}
	}
	for _, e := range of(log, api.EventSessionError) {
		if len(e.Fields) > 5000 {
			t.Errorf("an error of %d bytes", len(e.Fields))
		}
	}
}
