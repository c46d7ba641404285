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

// mcpResult makes content blocks of what an MCP server answered. What no block
// can hold is named.
func (s *Session) mcpResult(ctx context.Context, call Call, reply *mcp.CallToolResult) Result {
	r := Result{IsError: reply.IsError}
	var words []string
	add := func(text string) {
		if text = strings.ToValidUTF8(text, "\uFFFD"); text != "" {
			words = append(words, text)
		}
	}
	var data []json.RawMessage
	for _, c := range reply.Content {
		if len(data) == maxBlocks {
			add("[further content is left out]")
			break
		}
		text, b := mcpContent(c)
		add(text)
		if b != nil {
			data = append(data, b)
		}
	}
	if len(reply.Content) == 0 && reply.StructuredContent != nil {
		if text, err := json.Marshal(reply.StructuredContent); err == nil {
			add(string(text))
		}
	}
	// One block for each text, unless together they are too much for a result.
	if total := strings.Join(words, "\n"); utf8.RuneCountInString(total) > maxCharacters || len(words) > maxBlocks {
		words = []string{s.fit(ctx, call, total)}
	}
	for _, text := range words {
		r.Content = append(r.Content, textBlock(text))
	}
	r.Content = append(r.Content, data...)
	if len(r.Content) == 0 {
		r.Content = []json.RawMessage{textBlock(noOutput)}
	}
	return r
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
