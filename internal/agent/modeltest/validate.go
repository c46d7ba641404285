package modeltest

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// request is the body of POST /v1/messages as far as it is looked at.
type request struct {
	Model        string          `json:"model"`
	MaxTokens    int             `json:"max_tokens"`
	Stream       bool            `json:"stream"`
	System       json.RawMessage `json:"system"`
	Messages     []message       `json:"messages"`
	Tools        []tool          `json:"tools"`
	CacheControl json.RawMessage `json:"cache_control"`
}

type tool struct {
	Type         string          `json:"type"`
	Name         string          `json:"name"`
	Description  string          `json:"description"`
	InputSchema  json.RawMessage `json:"input_schema"`
	CacheControl json.RawMessage `json:"cache_control"`
}

// maxCacheMarks is how many cache_control marks the API takes in a request.
const maxCacheMarks = 4

// validate tells what the API would refuse.
func (r *request) validate() error {
	switch {
	case r.Model == "":
		return errors.New("model: Field required")
	case r.MaxTokens < 1:
		return errors.New("max_tokens: must be at least 1")
	case len(r.Messages) == 0:
		return errors.New("messages: at least one message is required")
	case r.Messages[len(r.Messages)-1].Role == "assistant" && !strings.HasSuffix(r.Messages[len(r.Messages)-1].text(), Paused):
		return errors.New("messages: the last message must be the user's")
	}
	if err := r.checkSystem(); err != nil {
		return err
	}
	if err := r.checkTools(); err != nil {
		return err
	}
	if err := r.checkTurns(); err != nil {
		return err
	}
	return r.checkCacheMarks()
}

func (r *request) checkSystem() error {
	var blocks []block
	if len(r.System) == 0 || json.Unmarshal(r.System, &blocks) != nil {
		return nil // a string, or none
	}
	return checkSystemBlocks("system", blocks)
}

func checkSystemBlocks(at string, blocks []block) error {
	if len(blocks) == 0 {
		return fmt.Errorf("%s: content must not be empty", at)
	}
	for _, b := range blocks {
		switch {
		case b.Type != "text":
			return fmt.Errorf("%s: only text is allowed, not %q", at, b.Type)
		case strings.TrimSpace(b.Text) == "":
			return fmt.Errorf("%s: text content blocks must contain non-whitespace text", at)
		}
	}
	return nil
}

// hasImage tells whether the conversation has an image, in a result of a tool too.
func (r *request) hasImage() bool {
	isImage := func(b block) bool { return b.Type == "image" }
	return slices.ContainsFunc(r.Messages, func(m message) bool {
		return slices.ContainsFunc(m.Content, func(b block) bool {
			var inner []block
			return isImage(b) || b.Type == "tool_result" && json.Unmarshal(b.Content, &inner) == nil && slices.ContainsFunc(inner, isImage)
		})
	})
}

// hasSystemMessage tells whether the conversation has a message of the system's.
func (r *request) hasSystemMessage() bool {
	return slices.ContainsFunc(r.Messages, func(m message) bool { return m.Role == "system" })
}

// useID and useName are what the API takes as the id and the name of a tool_use.
var (
	useID   = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
	useName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,200}$`)
)

// loneSurrogate tells whether a JSON text has half of a character, which the API
// does not take.
func loneSurrogate(text []byte) bool {
	high := false // the escape before was the first half of a character
	for i := 0; i < len(text); i++ {
		low := false
		if text[i] == '\\' && i+1 < len(text) {
			i++
			if text[i] == 'u' && i+4 < len(text) {
				unit, err := strconv.ParseUint(string(text[i+1:i+5]), 16, 16)
				i += 4
				low = err == nil && unit >= 0xDC00 && unit < 0xE000
				if first := err == nil && unit >= 0xD800 && unit < 0xDC00; first && !high {
					high = true
					continue
				}
			}
		}
		if low != high {
			return true
		}
		high = false
	}
	return high
}

// checkBody holds what the API wants of the bytes.
func checkBody(body []byte) error {
	switch {
	case !utf8.Valid(body):
		return errors.New("the body is not UTF-8")
	case loneSurrogate(body):
		return errors.New("the body has a lone surrogate")
	case len(body) > 32<<20:
		return errors.New("the body is larger than 32 MB")
	}
	return nil
}

// propertyName is what the API takes as the name of a property of an input.
var propertyName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}$`)

func (r *request) checkTools() error {
	seen := map[string]bool{}
	for i, t := range r.Tools {
		var schema struct {
			Type       string                     `json:"type"`
			Properties map[string]json.RawMessage `json:"properties"`
			AnyOf      json.RawMessage            `json:"anyOf"`
			OneOf      json.RawMessage            `json:"oneOf"`
			AllOf      json.RawMessage            `json:"allOf"`
		}
		switch err := json.Unmarshal(t.InputSchema, &schema); {
		case t.Name == "" || len(t.Name) > 128:
			return fmt.Errorf("tools.%d.name: 1 to 128 characters", i)
		case seen[t.Name]:
			return fmt.Errorf("tools: Tool names must be unique: %q", t.Name)
		case err != nil || schema.Type != "object":
			return fmt.Errorf("tools.%d.input_schema: must be an object schema", i)
		case len(schema.AnyOf)+len(schema.OneOf)+len(schema.AllOf) > 0:
			return fmt.Errorf("tools.%d.custom.input_schema: input_schema does not support oneOf, allOf, or anyOf at the top level", i)
		}
		for name := range schema.Properties {
			if !propertyName.MatchString(name) {
				return fmt.Errorf("tools.%d.custom.input_schema.properties: Property keys should match pattern '%s'", i, propertyName)
			}
		}
		seen[t.Name] = true
	}
	return nil
}

// checkTurns: roles alternate, every tool_use is answered in the next message
// before anything else, and thinking comes back as it was given. A system message
// may stand directly behind a user's.
func (r *request) checkTurns() error {
	open := map[string]bool{}
	seen := map[string]bool{} // ids of all tool uses
	turn := 0
	for i, m := range r.Messages {
		if m.Role == "system" {
			if i == 0 || r.Messages[i-1].Role != "user" {
				return fmt.Errorf("messages.%d: a system message must immediately follow a user message", i)
			}
			if err := checkSystemBlocks(fmt.Sprintf("messages.%d", i), m.Content); err != nil {
				return err
			}
			continue
		}
		if m.Role != "user" && m.Role != "assistant" {
			return fmt.Errorf("messages.%d.role: %q", i, m.Role)
		}
		if want := []string{"user", "assistant"}[turn%2]; m.Role != want {
			return fmt.Errorf("messages.%d: roles must alternate, %s comes after %s", i, m.Role, m.Role)
		}
		turn++
		if len(m.Content) == 0 {
			return fmt.Errorf("messages.%d: content must not be empty", i)
		}
		next := map[string]bool{}
		other := false
		for k, b := range m.Content {
			at := fmt.Sprintf("messages.%d.content.%d", i, k)
			if err := checkBlock(at, m.Role, b, open, next, &other); err != nil {
				return err
			}
		}
		for id := range next {
			if seen[id] {
				return fmt.Errorf("messages.%d: `tool_use` ids must be unique: %s", i, id)
			}
			seen[id] = true
		}
		if last := m.Content[len(m.Content)-1]; m.Role == "assistant" && (last.Type == "thinking" || last.Type == "redacted_thinking") {
			return fmt.Errorf("messages.%d: the final block in an assistant message cannot be `thinking`", i)
		}
		if text := m.text(); m.Role == "assistant" && i == len(r.Messages)-1 && strings.TrimSpace(text) != strings.TrimLeft(text, " \t\n") {
			return fmt.Errorf("messages.%d: final assistant content cannot end with trailing whitespace", i)
		}
		if m.Role == "user" && len(open) > 0 {
			return fmt.Errorf("messages.%d: `tool_use` ids were found without `tool_result` blocks immediately after: %v", i, keys(open))
		}
		open = next
	}
	return nil
}

func checkBlock(at, role string, b block, open, next map[string]bool, other *bool) error {
	assistant := role == "assistant"
	switch b.Type {
	case "tool_result":
		if assistant || !open[b.ToolUseID] {
			return fmt.Errorf("%s: unexpected `tool_use_id` found in `tool_result` blocks: %s", at, b.ToolUseID)
		}
		if *other {
			return fmt.Errorf("%s: tool_result blocks must come first", at)
		}
		delete(open, b.ToolUseID)
		return checkResult(at, b.Content)
	case "tool_use":
		var object map[string]json.RawMessage
		if !assistant || !useID.MatchString(b.ID) || next[b.ID] || !useName.MatchString(b.Name) || json.Unmarshal(b.Input, &object) != nil || object == nil {
			return fmt.Errorf("%s: bad tool_use", at)
		}
		next[b.ID] = true
	case "thinking":
		if !assistant || b.Signature != SignatureOf(b.Thinking) {
			return fmt.Errorf("%s: Invalid `signature` in `thinking` block", at)
		}
	case "redacted_thinking":
		if !assistant {
			return fmt.Errorf("%s: redacted_thinking in a user's message", at)
		}
	case "text":
		if b.Text == "" {
			return fmt.Errorf("%s: text content blocks must be non-empty", at)
		}
		if strings.TrimSpace(b.Text) == "" {
			return fmt.Errorf("%s: text content blocks must contain non-whitespace text", at)
		}
		*other = true
	case "image", "document":
		if assistant {
			return fmt.Errorf("%s: %s in an assistant's message", at, b.Type)
		}
		*other = true
	default:
		return fmt.Errorf("%s.type: %q", at, b.Type)
	}
	return nil
}

func checkResult(at string, content json.RawMessage) error {
	var text string
	if len(content) == 0 || json.Unmarshal(content, &text) == nil {
		return nil
	}
	var blocks []block
	if err := json.Unmarshal(content, &blocks); err != nil {
		return fmt.Errorf("%s.content: %w", at, err)
	}
	for _, b := range blocks {
		switch {
		case b.Type == "text" && strings.TrimSpace(b.Text) == "":
			return fmt.Errorf("%s: text content blocks must contain non-whitespace text", at)
		case b.Type != "text" && b.Type != "image" && b.Type != "document" && b.Type != "search_result":
			return fmt.Errorf("%s.content: block of type %q", at, b.Type)
		}
	}
	return nil
}

// checkCacheMarks: at most four, ephemeral, and none on thinking.
func (r *request) checkCacheMarks() error {
	var marks []json.RawMessage
	add := func(mark json.RawMessage) {
		if len(mark) > 0 && string(mark) != "null" {
			marks = append(marks, mark)
		}
	}
	add(r.CacheControl)
	for _, t := range r.Tools {
		add(t.CacheControl)
	}
	var system []block
	if json.Unmarshal(r.System, &system) == nil {
		for _, b := range system {
			add(b.CacheControl)
		}
	}
	for _, m := range r.Messages {
		for _, b := range m.Content {
			if b.Type == "thinking" && len(b.CacheControl) > 0 {
				return errors.New("cache_control: not on thinking blocks")
			}
			add(b.CacheControl)
		}
	}
	if len(marks) > maxCacheMarks {
		return fmt.Errorf("a maximum of %d blocks with cache_control may be provided, found %d", maxCacheMarks, len(marks))
	}
	for _, mark := range marks {
		var m struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(mark, &m) != nil || m.Type != "ephemeral" {
			return fmt.Errorf("cache_control: %s", mark)
		}
	}
	return nil
}

func keys(m map[string]bool) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}
