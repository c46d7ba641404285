package toolset

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// jsonrpcError is a server's answer that it did not take a request.
type jsonrpcError = jsonrpc.Error

// mcpResult makes content blocks of what an MCP server answered, in its order: an
// image belongs to the text beside it. What no block can hold is named.
func (s *Session) mcpResult(ctx context.Context, call Call, reply *mcp.CallToolResult) Result {
	var parts []part
	add := func(text string, data json.RawMessage) {
		if text = strings.ToValidUTF8(text, "\uFFFD"); text != "" || data != nil {
			parts = append(parts, part{text, data})
		}
	}
	media := 0
	for _, c := range reply.Content {
		if media == maxBlocks {
			add("[further content is left out]", nil)
			break
		}
		text, data := mcpContent(c)
		if data != nil {
			media++
		}
		add(text, data)
	}
	if len(reply.Content) == 0 && reply.StructuredContent != nil {
		if text, err := json.Marshal(reply.StructuredContent); err == nil {
			add(string(text), nil)
		}
	}
	r := Result{IsError: reply.IsError}
	for _, p := range s.fitParts(ctx, call, parts) {
		if p.data == nil {
			p.data = textBlock(p.text)
		}
		r.Content = append(r.Content, p.data)
	}
	if len(r.Content) == 0 {
		r.Content = []json.RawMessage{textBlock(noOutput)}
	}
	return r
}

// part is a piece of a result: a text, or a block of another kind.
type part struct {
	text string
	data json.RawMessage // nil for a text
}

// fitParts makes a result that is too long fit: texts that stand beside each other
// become one where there are many, and those behind the limit of characters are kept in
// a file alone, which is said where they would begin.
func (s *Session) fitParts(ctx context.Context, call Call, parts []part) []part {
	if len(parts) > maxBlocks {
		parts = joinTexts(parts)
	}
	var words []string
	for _, p := range parts {
		if p.data == nil {
			words = append(words, p.text)
		}
	}
	total := strings.Join(words, "\n")
	if _, cut := characters(total, maxCharacters); !cut {
		return parts
	}
	note := s.keepWhole(ctx, call, total)
	var out []part
	left := maxCharacters
	for _, p := range parts {
		switch {
		case p.data != nil:
			out = append(out, p)
		case left > 0:
			head, cut := characters(p.text, left)
			if left -= utf8.RuneCountInString(head); cut || left == 0 {
				head, left = head+"\n"+note, 0
			}
			out = append(out, part{text: head})
		}
	}
	return out
}

// joinTexts makes one text of those that stand beside each other.
func joinTexts(parts []part) (out []part) {
	for _, p := range parts {
		if n := len(out); n > 0 && p.data == nil && out[n-1].data == nil {
			out[n-1].text += "\n" + p.text
			continue
		}
		out = append(out, p)
	}
	return out
}

// mcpContent is one piece as text, or as a block of its own.
func mcpContent(c mcp.Content) (text string, data json.RawMessage) {
	switch c := c.(type) {
	case *mcp.TextContent:
		return c.Text, nil
	case *mcp.ImageContent:
		return dataOf("image", c.MIMEType, c.Data)
	case *mcp.AudioContent:
		return dataOf("audio", c.MIMEType, c.Data)
	case *mcp.ResourceLink:
		return fmt.Sprintf("[resource %s: %s]", oneLine(c.Name, 200), oneLine(c.URI, maxURL)), nil
	case *mcp.EmbeddedResource:
		if c.Resource == nil {
			return "", nil
		}
		if len(c.Resource.Blob) > 0 {
			return dataOf("resource "+oneLine(c.Resource.URI, maxURL), c.Resource.MIMEType, c.Resource.Blob)
		}
		return c.Resource.Text, nil
	}
	return "[content of a kind that cannot be shown]", nil
}

// dataOf is data as a block if the model can take it, else a word about it.
func dataOf(what, mediaType string, data []byte) (string, json.RawMessage) {
	if isMedia(mediaType) {
		if b, err := mediaBlock(data); err == nil {
			return "", b
		}
	}
	return fmt.Sprintf("[%s of type %s, %d bytes, cannot be shown]", what, oneLine(mediaType, 100), len(data)), nil
}

// clip cuts text after max bytes, between characters.
func clip(text string, max int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= max {
		return text
	}
	for max > 0 && !utf8.RuneStart(text[max]) {
		max--
	}
	return text[:max]
}
