package modeltest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"unicode/utf8"
)

// stream writes one reply.
type stream struct {
	w     http.ResponseWriter
	id    string
	model string
}

// SignatureOf is the signature that a thinking block must carry when it comes
// back.
func SignatureOf(thinking string) string {
	sum := sha256.Sum256([]byte("thought: " + thinking))
	return hex.EncodeToString(sum[:])
}

// blocks are the content blocks of a reply.
func (s *stream) blocks(reply Reply) []map[string]any {
	var out []map[string]any
	if reply.Thinking != "" {
		out = append(out, map[string]any{"type": "thinking", "thinking": reply.Thinking, "signature": SignatureOf(reply.Thinking)})
	}
	if reply.Text != "" {
		out = append(out, map[string]any{"type": "text", "text": reply.Text, "citations": nil})
	}
	for i, t := range reply.Tools {
		input := t.Input
		if len(input) == 0 {
			input = json.RawMessage("{}")
		}
		out = append(out, map[string]any{"type": "tool_use", "id": fmt.Sprintf("toolu_%s_%d", s.id, i), "name": t.Name, "input": input})
	}
	return out
}

func (s *stream) stop(reply Reply) string {
	switch {
	case reply.Stop != "":
		return reply.Stop
	case len(reply.Tools) > 0:
		return "tool_use"
	}
	return "end_turn"
}

func usage(input, output int) map[string]any {
	return map[string]any{
		"input_tokens": input, "output_tokens": output, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
		"cache_creation":  map[string]any{"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
		"server_tool_use": nil, "service_tier": "standard", "inference_geo": "not_available", "speed": nil,
	}
}

// outputTokens is a count that depends on the reply alone.
func outputTokens(reply Reply) int {
	n := len(reply.Text) + len(reply.Thinking)
	for _, t := range reply.Tools {
		n += len(t.Name) + len(t.Input)
	}
	return n/4 + 1
}

func (s *stream) message(reply Reply, content any, stop any, output int) map[string]any {
	return map[string]any{
		"id": "msg_" + s.id, "type": "message", "role": "assistant", "model": s.model, "content": content,
		"stop_reason": stop, "stop_sequence": nil, "stop_details": nil, "usage": usage(reply.InputTokens, output),
	}
}

// whole answers without streaming.
func (s *stream) whole(reply Reply) {
	s.w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(s.w).Encode(s.message(reply, s.blocks(reply), s.stop(reply), outputTokens(reply))) // the client may be gone
}

// frame writes one server-sent event.
func (s *stream) frame(kind string, fields map[string]any) {
	fields["type"] = kind
	text, err := json.Marshal(fields)
	if err != nil {
		panic("modeltest: a frame that JSON does not take: " + err.Error())
	}
	fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", kind, text)
	_ = http.NewResponseController(s.w).Flush() // the client may be gone
}

func (s *stream) begin(reply Reply) {
	s.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	s.w.Header().Set("Request-Id", "req_"+s.id)
	s.w.WriteHeader(http.StatusOK)
	s.frame("message_start", map[string]any{"message": s.message(reply, []any{}, nil, 1)})
	s.frame("ping", map[string]any{})
}

// play streams a reply.
func (s *stream) play(ctx context.Context, reply Reply) {
	s.begin(reply)
	if len(reply.Raw) > 0 {
		for _, f := range reply.Raw {
			fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", f.Event, f.Data)
		}
		return
	}
	for i, b := range s.blocks(reply) {
		s.block(i, b)
		if reply.Hang {
			<-ctx.Done()
			return
		}
	}
	s.frame("message_delta", map[string]any{
		"delta": map[string]any{"stop_reason": s.stop(reply), "stop_sequence": nil, "stop_details": nil},
		"usage": map[string]any{"output_tokens": outputTokens(reply)},
	})
	s.frame("message_stop", map[string]any{})
}

// block streams one content block in pieces.
func (s *stream) block(i int, b map[string]any) {
	start := map[string]any{"type": b["type"]}
	delta := func(kind, member, text string) {
		for _, piece := range pieces(text) {
			s.frame("content_block_delta", map[string]any{"index": i, "delta": map[string]any{"type": kind, member: piece}})
		}
	}
	switch b["type"] {
	case "thinking":
		start["thinking"], start["signature"] = "", ""
		s.frame("content_block_start", map[string]any{"index": i, "content_block": start})
		delta("thinking_delta", "thinking", b["thinking"].(string))
		s.frame("content_block_delta", map[string]any{"index": i, "delta": map[string]any{"type": "signature_delta", "signature": b["signature"]}})
	case "text":
		start["text"], start["citations"] = "", nil
		s.frame("content_block_start", map[string]any{"index": i, "content_block": start})
		delta("text_delta", "text", b["text"].(string))
	case "tool_use":
		start["id"], start["name"], start["input"] = b["id"], b["name"], map[string]any{}
		s.frame("content_block_start", map[string]any{"index": i, "content_block": start})
		delta("input_json_delta", "partial_json", string(b["input"].(json.RawMessage)))
	}
	s.frame("content_block_stop", map[string]any{"index": i})
}

// pieces cuts a text into what is streamed at a time, never inside a character.
func pieces(text string) []string {
	const size = 24
	var out []string
	for len(text) > size {
		cut := size
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		out, text = append(out, text[:cut]), text[cut:]
	}
	return append(out, text)
}
