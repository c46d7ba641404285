package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/anthropics/anthropic-sdk-go/v2"

	"github.com/atoll-run/atoll/api"
)

// The limits of one reply. An endpoint that says more is not believed: the
// request has failed.
const (
	maxReplyBytes  = 16 << 20 // bytes of all content together
	maxReplyBlocks = 1000
)

// The stop reasons of the Messages API that the loop tells apart. Whatever else
// an endpoint says ends the turn as end_turn does, and runs nothing.
const (
	stopEndTurn      = "end_turn"
	stopSequence     = "stop_sequence"
	stopToolUse      = "tool_use"
	stopMaxTokens    = "max_tokens"
	stopPauseTurn    = "pause_turn"
	stopRefusal      = "refusal"
	stopWindowIsFull = "model_context_window_exceeded"
)

// reply is what the model answered. Of a reply that broke off only usage is set.
type reply struct {
	blocks  []replyBlock
	stop    string           // the stop reason as it came; empty when none came
	details *api.StopDetails // of a refusal
	usage   api.ModelUsage   // what the endpoint has told by the end of the reply
	leftOut string           // why images or documents of the last message were left out, or empty
}

// replyBlock is one block of a reply. Blocks of other kinds than these belong to
// server tools, which the loop never offers, and are left out.
type replyBlock struct {
	index     int    // place in the reply as it came
	kind      string // text, thinking, redacted_thinking, tool_use
	text      string // the words of a text or of thinking
	signature string // of thinking; empty when it was cut off
	data      string // of redacted_thinking
	id, name  string // of a tool_use, as the model gave them
	// input of a tool_use is always an object. When the model gave none that can be
	// used it is empty, and problem says why the call cannot run.
	input   json.RawMessage
	problem string // why a tool_use cannot run, in words for the model; empty when it can
}

// collector puts a reply together from the events of its stream. Nothing that
// comes is trusted: not the order, the sizes, the kinds nor the numbers.
type collector struct {
	blocks  []*openBlock
	size    int
	stop    string
	details anthropic.RefusalStopDetails
	usage   api.ModelUsage
	ended   bool
}

// openBlock is a block that is being streamed.
type openBlock struct {
	replyBlock
	words   strings.Builder // becomes text
	partial strings.Builder // of the input of a tool_use
	start   json.RawMessage // the input that the block began with, or nil
	closed  bool
}

// errMalformed says that a stream is not one of the Messages API.
var errMalformed = errors.New("reading the reply: the stream is malformed")

// take takes the next event of the stream. show gets what can be shown of it at
// once: the newest block alone, so that what was shown is a beginning of the text.
func (c *collector) take(event anthropic.MessageStreamEventUnion, show func(piece)) error {
	if c.ended {
		return nil
	}
	switch event.Type {
	case "message_start":
		c.countStart(event.Message.Usage)
	case "content_block_start":
		return c.begin(event, show)
	case "content_block_delta":
		return c.grow(event, show)
	case "content_block_stop":
		if event.Index < 0 || event.Index >= int64(len(c.blocks)) {
			return fmt.Errorf("%w: block %d ends, of %d", errMalformed, event.Index, len(c.blocks))
		}
		c.blocks[event.Index].closed = true
	case "message_delta":
		c.stop, c.details = string(event.Delta.StopReason), event.Delta.StopDetails
		c.countDelta(event.Usage)
	case "message_stop":
		c.ended = true
	}
	return nil
}

func (c *collector) begin(event anthropic.MessageStreamEventUnion, show func(piece)) error {
	if event.Index != int64(len(c.blocks)) || len(c.blocks) == maxReplyBlocks {
		return fmt.Errorf("%w: block %d begins after %d", errMalformed, event.Index, len(c.blocks))
	}
	from := event.ContentBlock
	b := &openBlock{replyBlock: replyBlock{index: len(c.blocks), kind: from.Type, id: from.ID, name: from.Name, signature: from.Signature, data: from.Data}}
	b.words.WriteString(from.Text)
	b.words.WriteString(from.Thinking)
	if raw := from.JSON.Input.Raw(); raw != "" {
		b.start = json.RawMessage(raw)
	}
	c.blocks = append(c.blocks, b)
	show(piece{index: b.index, kind: b.kind, begin: true, text: strings.ToValidUTF8(from.Text, "\uFFFD")})
	return c.count(len(from.RawJSON()))
}

func (c *collector) grow(event anthropic.MessageStreamEventUnion, show func(piece)) error {
	if event.Index < 0 || event.Index >= int64(len(c.blocks)) || c.blocks[event.Index].closed {
		return fmt.Errorf("%w: more of block %d, of %d", errMalformed, event.Index, len(c.blocks))
	}
	b, delta := c.blocks[event.Index], event.Delta
	switch {
	case b.kind == "text" && delta.Type == "text_delta":
		b.words.WriteString(delta.Text)
		if delta.Text != "" && b.index == len(c.blocks)-1 {
			show(piece{index: b.index, kind: "text", text: strings.ToValidUTF8(delta.Text, "\uFFFD")})
		}
	case b.kind == "thinking" && delta.Type == "thinking_delta":
		b.words.WriteString(delta.Thinking)
	case b.kind == "thinking" && delta.Type == "signature_delta":
		b.signature += delta.Signature
	case b.kind == "tool_use" && delta.Type == "input_json_delta":
		b.partial.WriteString(delta.PartialJSON)
	}
	return c.count(len(delta.Text) + len(delta.Thinking) + len(delta.Signature) + len(delta.PartialJSON))
}

func (c *collector) count(bytes int) error {
	if c.size += bytes; c.size > maxReplyBytes {
		return fmt.Errorf("%w: it has more than %d bytes", errMalformed, maxReplyBytes)
	}
	return nil
}

// countStart and countDelta keep what the endpoint says of tokens: counts of the
// whole reply so far, of which the newest holds.
func (c *collector) countStart(u anthropic.Usage) {
	c.usage = api.ModelUsage{
		InputTokens: tokenCount(u.InputTokens), OutputTokens: tokenCount(u.OutputTokens),
		CacheCreationInputTokens: tokenCount(u.CacheCreationInputTokens), CacheReadInputTokens: tokenCount(u.CacheReadInputTokens),
	}
	if speed := string(u.Speed); speed == "standard" || speed == "fast" {
		c.usage.Speed = speed
	}
}

func (c *collector) countDelta(u anthropic.MessageDeltaUsage) {
	c.usage.OutputTokens = tokenCount(u.OutputTokens)
	if u.JSON.InputTokens.Valid() {
		c.usage.InputTokens = tokenCount(u.InputTokens)
	}
	if u.JSON.CacheCreationInputTokens.Valid() {
		c.usage.CacheCreationInputTokens = tokenCount(u.CacheCreationInputTokens)
	}
	if u.JSON.CacheReadInputTokens.Valid() {
		c.usage.CacheReadInputTokens = tokenCount(u.CacheReadInputTokens)
	}
}

// tokenCount is a count as the wire takes it.
func tokenCount(n int64) int { return int(min(max(n, 0), math.MaxInt32)) }

// reply is the whole reply.
func (c *collector) reply() reply {
	r := reply{stop: c.stop, usage: c.usage}
	for i, b := range c.blocks {
		if !slices.Contains([]string{"text", "thinking", "redacted_thinking", "tool_use"}, b.kind) {
			continue
		}
		b.text = strings.ToValidUTF8(b.words.String(), "\uFFFD")
		if b.kind == "tool_use" {
			c.readCall(b, i == len(c.blocks)-1)
		}
		r.blocks = append(r.blocks, b.replyBlock)
	}
	if c.stop == stopRefusal {
		r.details = &api.StopDetails{Type: "refusal"}
		if text := string(c.details.Category); slices.Contains(refusalCategories, text) {
			r.details.Category = &text
		}
		if text := strings.ToValidUTF8(c.details.Explanation, "\uFFFD"); text != "" {
			r.details.Explanation = &text
		}
	}
	return r
}

// refusalCategories are those that the wire knows. Of others it says null.
var refusalCategories = []string{"cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"}

// readCall decides whether a tool use can run at all: whether the reply was
// whole and its input is an object.
func (c *collector) readCall(b *openBlock, last bool) {
	b.input = json.RawMessage("{}")
	switch {
	case c.stop == stopMaxTokens && last:
		b.problem = "The input of this call was cut off at the token limit of the reply. Send less at once."
		return
	case !b.closed:
		b.problem = "The reply ended before this call was complete."
		return
	case !slices.Contains([]string{stopToolUse, stopEndTurn, stopSequence, stopMaxTokens}, c.stop):
		b.problem = fmt.Sprintf("The reply ended with the stop reason %q, which runs no calls.", clipped(c.stop, 100))
		return
	}
	given := json.RawMessage(b.partial.String())
	if len(given) == 0 {
		if given = b.start; given == nil {
			given = b.input
		}
	}
	input, err := api.ParseObject(given)
	if err != nil {
		b.problem = fmt.Sprintf("The input of this call cannot be used: %v. Give one JSON object.", err)
		return
	}
	b.input = input
}

// clipped is text of valid UTF-8 with at most so many characters, for messages
// that quote what was not trusted.
func clipped(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most]) + "…"
}
