package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// message is one message of the conversation with the model. Its blocks are
// objects of the Messages API.
type message struct {
	Role    string            `json:"role"` // user, assistant or system
	Content []json.RawMessage `json:"content"`
}

// written leaves out the text blocks that are empty or only white space. The API
// refuses them, in what it said itself too; and as they would come with every
// further request, a session with one could never go on.
func written(blocks []json.RawMessage) []json.RawMessage {
	return slices.DeleteFunc(slices.Clone(blocks), func(b json.RawMessage) bool {
		var text struct{ Type, Text string }
		return json.Unmarshal(b, &text) == nil && text.Type == "text" && strings.TrimSpace(text.Text) == ""
	})
}

// back is a block as the model gets it back with the next request, made of what
// the API takes there; nil for a block that cannot come back.
func (b replyBlock) back() json.RawMessage {
	switch b.kind {
	case "text":
		return textBlock("%s", b.text)
	case "thinking":
		if b.signature == "" {
			return nil // it was cut off, and would be refused
		}
		return mustJSON(struct {
			Type      string `json:"type"`
			Thinking  string `json:"thinking"`
			Signature string `json:"signature"`
		}{b.kind, b.text, strings.ToValidUTF8(b.signature, "\uFFFD")})
	case "redacted_thinking":
		if b.data == "" {
			return nil
		}
		return mustJSON(struct {
			Type string `json:"type"`
			Data string `json:"data"`
		}{b.kind, strings.ToValidUTF8(b.data, "\uFFFD")})
	case "tool_use":
		return mustJSON(struct {
			Type  string          `json:"type"`
			ID    string          `json:"id"`
			Name  string          `json:"name"`
			Input json.RawMessage `json:"input"`
		}{b.kind, b.id, nameBack(b.name), b.input})
	}
	return nil
}

// nameBack is the name of a called tool as it comes back to the model. A name that
// the model made up may be one that no tool can have.
func nameBack(name string) string {
	name = strings.Map(func(c rune) rune {
		if c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			return c
		}
		return '_'
	}, name)
	if name == "" {
		return "unnamed"
	}
	return name[:min(len(name), 128)]
}

// trimThinking leaves out the thinking at the end of a reply: the API refuses an
// answer that has nothing behind it.
func trimThinking(blocks []json.RawMessage) []json.RawMessage {
	blocks = written(blocks)
	for n := len(blocks); n > 0; n-- {
		if kind := blockType(blocks[n-1]); kind != "thinking" && kind != "redacted_thinking" {
			return blocks[:n]
		}
	}
	return nil
}

// trimEnd makes a reply one that the model can go on from: it ends in words, and
// these do not end in white space.
func trimEnd(blocks []json.RawMessage) []json.RawMessage {
	blocks = trimThinking(blocks)
	if n := len(blocks); n > 0 && blockType(blocks[n-1]) == "text" {
		var last struct{ Text string }
		if json.Unmarshal(blocks[n-1], &last) == nil {
			blocks = append(slices.Clone(blocks[:n-1]), textBlock("%s", strings.TrimRightFunc(last.Text, unicode.IsSpace)))
		}
	}
	return blocks
}

func blockType(block json.RawMessage) string {
	var head struct{ Type string }
	_ = json.Unmarshal(block, &head) // no object: of no type
	return head.Type
}

// addUser adds blocks to the user's side: to its last message unless the model
// has answered since. A system message that came behind stays behind.
func addUser(messages []message, blocks ...json.RawMessage) []message {
	if len(blocks) == 0 {
		return messages
	}
	for i := len(messages) - 1; i >= 0 && messages[i].Role != "assistant"; i-- {
		if messages[i].Role == "user" {
			messages[i].Content = append(slices.Clone(messages[i].Content), blocks...)
			return messages
		}
	}
	return append(messages, message{"user", blocks})
}

// addAssistant adds a reply of the model: to the one before it if that was paused
// and the model went on from it.
func addAssistant(messages []message, blocks ...json.RawMessage) []message {
	if n := len(messages); n > 0 && messages[n-1].Role == "assistant" {
		messages[n-1].Content = append(slices.Clone(messages[n-1].Content), blocks...)
		return messages
	}
	return append(messages, message{"assistant", blocks})
}

// addSystem adds text of the system's role behind what the user said.
func addSystem(messages []message, blocks ...json.RawMessage) []message {
	if len(blocks) == 0 {
		return messages
	}
	if n := len(messages); n > 0 && messages[n-1].Role == "system" {
		messages[n-1].Content = append(slices.Clone(messages[n-1].Content), blocks...)
		return messages
	}
	return append(messages, message{"system", blocks})
}

func isSystem(m message) bool { return m.Role == "system" }

func hasSystem(messages []message) bool { return slices.ContainsFunc(messages, isSystem) }

// systemBlocks are what the system messages of a conversation say, in order.
func systemBlocks(messages []message) (blocks []json.RawMessage) {
	for _, m := range messages {
		if isSystem(m) {
			blocks = append(blocks, m.Content...)
		}
	}
	return blocks
}

// liftSystem is a request whose system messages stand behind the system prompt.
func liftSystem(req request) request {
	req.more = systemBlocks(req.messages)
	req.messages = slices.DeleteFunc(slices.Clone(req.messages), isSystem)
	return req
}

// mediaLeftOut stands where an image or a document was.
const mediaLeftOut = "[an image or document was here; the model's endpoint refused it]"

// withoutMedia puts a note in the place of each image and document of a
// conversation, those in results of tools too. last tells whether the user's last
// message had one, n how many there were.
func withoutMedia(messages []message) (out []message, n int, last bool) {
	out = slices.Clone(messages)
	for i, m := range out {
		if m.Role != "user" {
			continue
		}
		before := n
		out[i].Content = replaceMedia(m.Content, &n)
		last = n > before
	}
	return out, n, last
}

func replaceMedia(blocks []json.RawMessage, n *int) []json.RawMessage {
	out := slices.Clone(blocks)
	for i, b := range out {
		var head struct {
			Type      string            `json:"type"`
			ToolUseID string            `json:"tool_use_id"`
			Content   []json.RawMessage `json:"content"`
			IsError   bool              `json:"is_error"`
		}
		if json.Unmarshal(b, &head) != nil {
			continue // of another kind
		}
		switch head.Type {
		case "image", "document":
			out[i] = textBlock(mediaLeftOut)
			*n++
		case "tool_result":
			out[i] = toolResult(head.ToolUseID, replaceMedia(head.Content, n), head.IsError)
		}
	}
	return out
}

// toolResult is the block that answers a tool_use.
func toolResult(toolUse string, content []json.RawMessage, isError bool) json.RawMessage {
	return mustJSON(struct {
		Type      string            `json:"type"`
		ToolUseID string            `json:"tool_use_id"`
		Content   []json.RawMessage `json:"content,omitempty"`
		IsError   bool              `json:"is_error,omitempty"`
	}{"tool_result", toolUse, content, isError})
}

// markLast marks, for the model's cache, the end of the conversation and the end
// of what the request before this one had. Together with the marks on the
// system prompt and the tools they are the four that the API takes.
func markLast(messages []message) []message {
	out := slices.Clone(messages)
	marks := 2
	for i := len(out) - 1; i >= 0 && marks > 0; i-- {
		if out[i].Role != "user" {
			continue
		}
		content := slices.Clone(out[i].Content)
		last := len(content) - 1
		marked, err := withCacheMark(content[last])
		if err != nil {
			continue // kept as it is: a mark only saves time
		}
		content[last] = marked
		out[i].Content = content
		marks--
	}
	return out
}

func withCacheMark(block json.RawMessage) (json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(block, &members); err != nil {
		return nil, err
	}
	members["cache_control"] = json.RawMessage(`{"type":"ephemeral"}`)
	return json.Marshal(members)
}

func textBlock(format string, args ...any) json.RawMessage {
	return mustJSON(struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}{"text", fmt.Sprintf(format, args...)})
}

// mustJSON is for values that are JSON by construction.
func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic("agent: a value that JSON does not take: " + err.Error())
	}
	return text
}
