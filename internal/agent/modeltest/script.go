// Package modeltest is a scripted Messages-API server: it plays conversations
// with tools, streams them exactly as the API does, and refuses a request that
// the API would refuse. It keeps no conversation: what it answers is derived
// from the request, so that a client that was killed and asks again gets the
// same reply.
package modeltest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Reply is one answer of the model. Thinking, Text and Tools become content
// blocks in this order. "{{result}}" in Text stands for the text of the tool
// results in the request's last message.
type Reply struct {
	// Thinking is the text of a signed thinking block; empty means none.
	Thinking string `json:"thinking,omitempty"`
	// Text is the text of a text block; empty means none.
	Text string `json:"text,omitempty"`
	// Tools become tool_use blocks with ids of the server's.
	Tools []ToolUse `json:"tools,omitempty"`
	// Stop is the stop reason; empty means tool_use with Tools, else end_turn.
	Stop string `json:"stop,omitempty"`
	// InputTokens is what the reply claims the request had; zero means a
	// quarter of the request's bytes.
	InputTokens int `json:"input_tokens,omitempty"`
	// Fail makes the request fail instead, Fail.Times times (zero: always).
	Fail *Failure `json:"fail,omitempty"`
	// Raw takes the place of the content and the end of the reply: these frames are
	// streamed as they stand behind the message_start, whatever the API makes of
	// them, and then the stream ends.
	Raw []Frame `json:"raw,omitempty"`
	// Hang sends the first piece of text and then nothing until the client leaves.
	Hang bool `json:"hang,omitempty"`
}

// Frame is one server-sent event of a stream.
type Frame struct {
	// Event is its name, and Data what it carries: one line, which need not be JSON.
	Event, Data string
}

// ToolUse is a tool_use block.
type ToolUse struct {
	// Name is the tool's name.
	Name string `json:"name"`
	// Input is sent as it stands, be it JSON or not; empty means {}.
	Input json.RawMessage `json:"input"`
}

// Failure is a request that does not succeed: with an HTTP status and the
// API's error body, or, with status 200, in the middle of the stream.
type Failure struct {
	// Status is the HTTP status.
	Status int `json:"status"`
	// Times is how often the request fails before it succeeds; zero: always.
	Times int `json:"times,omitempty"`
	// RetryAfter is the header retry-after; empty means none.
	RetryAfter string `json:"retry_after,omitempty"`
	// Stream says how a reply of status 200 breaks: cut (the connection ends),
	// error (an error event of type overloaded_error) or malformed (data that is
	// no JSON).
	Stream string `json:"stream,omitempty"`
	// OverBytes lets requests of at most that many bytes succeed.
	OverBytes int `json:"over_bytes,omitempty"`
	// Message of the error body; empty means the type's name.
	Message string `json:"message,omitempty"`
}

// Script is the replies to one message of the user, in order. After the last
// one the server answers "done".
type Script []Reply

// fence carries a script inside a message of the user.
var fence = regexp.MustCompile("(?s)```script\n(.*?)```")

// Message is a text for the user to send that makes the server play the script.
func (s Script) Message() string {
	text, err := json.Marshal(s)
	if err != nil {
		panic("modeltest: a script that JSON does not take: " + err.Error())
	}
	return "Play this.\n```script\n" + string(text) + "\n```"
}

// parseScript finds the script in a text, if there is one.
func parseScript(text string) (Script, bool, error) {
	found := fence.FindAllStringSubmatch(text, -1)
	if found == nil {
		return nil, false, nil
	}
	var s Script
	if err := json.Unmarshal([]byte(found[len(found)-1][1]), &s); err != nil {
		return nil, false, fmt.Errorf("script: %w", err)
	}
	return s, true, nil
}

// message and block are what a request's conversation consists of.
type message struct {
	Role    string  `json:"role"`
	Content []block `json:"content"`
}

type block struct {
	Type         string          `json:"type"`
	Text         string          `json:"text"`
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Input        json.RawMessage `json:"input"`
	ToolUseID    string          `json:"tool_use_id"`
	Content      json.RawMessage `json:"content"`
	IsError      bool            `json:"is_error"`
	Thinking     string          `json:"thinking"`
	Signature    string          `json:"signature"`
	CacheControl json.RawMessage `json:"cache_control"`
}

// UnmarshalJSON takes a content that is a string for one text block.
func (m *message) UnmarshalJSON(b []byte) error {
	var raw struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	m.Role = raw.Role
	var text string
	if json.Unmarshal(raw.Content, &text) == nil {
		m.Content = []block{{Type: "text", Text: text}}
		return nil
	}
	return json.Unmarshal(raw.Content, &m.Content)
}

// text joins the text blocks of a message.
func (m message) text() string {
	var all []string
	for _, b := range m.Content {
		if b.Type == "text" {
			all = append(all, b.Text)
		}
	}
	return strings.Join(all, "\n")
}

// results joins the texts of the tool results of a message.
func (m message) results() string {
	var all []string
	for _, b := range m.Content {
		if b.Type != "tool_result" {
			continue
		}
		var text string
		if json.Unmarshal(b.Content, &text) == nil {
			all = append(all, text)
			continue
		}
		var blocks []block
		_ = json.Unmarshal(b.Content, &blocks) // checked by validate
		all = append(all, message{Content: blocks}.text())
	}
	return strings.Join(all, "\n")
}

// Rule answers messages of the user that hold no script.
type Rule struct {
	// Match is looked for in the text of the message.
	Match *regexp.Regexp
	// Play is the script that answers the message.
	Play Script
}

// Paused ends the text of a reply with the stop reason pause_turn: the client
// sends it back as the last message, and the model goes on.
const Paused = "to be continued"

// SummaryMark is in a request for a summary of the conversation; the answer is a
// summary that carries on the script.
const SummaryMark = "Summarize the conversation so far"

// choose finds the reply to a conversation: the script of the last message that
// has one, or that a rule fits, and as many replies into it as the model has
// answered since.
func choose(messages []message, rules []Rule) (Reply, int, error) {
	messages = slices.DeleteFunc(slices.Clone(messages), func(m message) bool { return m.Role == "system" })
	last := messages[len(messages)-1]
	script, from, err := current(messages, rules)
	if err != nil {
		return Reply{}, 0, err
	}
	step := 0
	for _, m := range messages[from:] {
		if m.Role == "assistant" {
			step++
		}
	}
	if strings.Contains(last.text(), SummaryMark) {
		return Reply{Text: "Summary: the user asked for a script. " + script[min(step, len(script)):].Message()}, -1, nil
	}
	if step >= len(script) {
		return Reply{Text: "done"}, step, nil
	}
	reply := script[step]
	reply.Text = strings.ReplaceAll(reply.Text, "{{result}}", last.results())
	return reply, step, nil
}

func current(messages []message, rules []Rule) (Script, int, error) {
	for i := len(messages) - 1; i >= 0; i-- {
		m := messages[i]
		if m.Role != "user" {
			continue
		}
		text := m.text()
		if script, ok, err := parseScript(text); ok || err != nil {
			return script, i, err
		}
		for _, rule := range rules {
			if text != "" && rule.Match.MatchString(text) {
				return rule.Play, i, nil
			}
		}
	}
	return nil, 0, nil
}
