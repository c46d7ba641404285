package toolset

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// The limits of what one result made on the server may hold.
const (
	maxCharacters = 100_000 // of all text; the rest goes to a file in the sandbox
	maxImage      = 5 << 20 // bytes of an image
	maxDocument   = 8 << 20 // bytes of a PDF
	maxBlocks     = 64
)

// source is where the data of a block is.
type source struct {
	Type      string `json:"type"` // "base64"
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
}

// dataBlock is an image or document block.
func dataBlock(kind, mediaType string, data []byte) json.RawMessage {
	return block(struct {
		Type   string `json:"type"`
		Source source `json:"source"`
	}{kind, source{"base64", mediaType, base64.StdEncoding.EncodeToString(data)}})
}

// isMedia tells whether a media type is one of which blocks can be made.
func isMedia(mediaType string) bool { return mediaType == api.TypePDF || api.IsImageType(mediaType) }

// mediaBlock is an image or a PDF as a block, of the type that its bytes tell:
// what it is called may be wrong, and a block that is not what it says would be
// refused with the whole conversation.
func mediaBlock(data []byte) (json.RawMessage, error) {
	kind, most := "image", maxImage
	mediaType := api.MediaTypeOf(data)
	if mediaType == api.TypePDF {
		kind, most = "document", maxDocument
	}
	switch {
	case mediaType == "":
		return nil, errors.New("its content is neither an image nor a PDF")
	case len(data) > most:
		return nil, fmt.Errorf("its %d bytes are more than the %d that a block may have", len(data), most)
	}
	return dataBlock(kind, mediaType, data), nil
}

// searchBlock is a search_result block; content is not empty.
func searchBlock(url, title, content string) json.RawMessage {
	type citations struct {
		Enabled bool `json:"enabled"`
	}
	return block(struct {
		Type      string            `json:"type"`
		Source    string            `json:"source"`
		Title     string            `json:"title"`
		Content   []json.RawMessage `json:"content"`
		Citations citations         `json:"citations"`
	}{"search_result", url, title, []json.RawMessage{textBlock(content)}, citations{}})
}

func block(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic("toolset: a content block: " + err.Error()) // strings only
	}
	return text
}

// characters cuts text after n characters; it reports whether it did.
func characters(text string, n int) (string, bool) {
	if len(text) <= n || utf8.RuneCountInString(text) <= n {
		return text, false
	}
	for i := range text {
		if n == 0 {
			return text[:i], true
		}
		n--
	}
	return text, false
}

// fit gives the beginning of a text that is too long for a result, with the place
// of the rest.
func (s *Session) fit(ctx context.Context, call Call, text string) string {
	head, cut := characters(text, maxCharacters)
	if !cut {
		return text
	}
	return head + "\n" + s.keepWhole(ctx, call, text)
}

// keepWhole keeps a text that is too long for a result in a file of the sandbox,
// and says where.
func (s *Session) keepWhole(ctx context.Context, call Call, text string) string {
	path := spillDir + "/" + call.ID + ".txt"
	input := block(map[string]string{"file_path": path, "content": text})
	note := "the rest could not be kept"
	if len(input) <= sandbox.MaxToolInput {
		r, err := s.cfg.Box.RunTool(ctx, sandbox.ToolCall{ID: call.ID + "_spill", Name: sandbox.ToolWrite, Input: input, Roots: fileRoots})
		switch {
		case err != nil:
			s.toolset.log.WarnContext(ctx, "keeping a long result", "session_id", s.cfg.ID, "error", err)
		case !r.IsError:
			note = fmt.Sprintf("the whole text, %d bytes, is in %s", len(text), path)
		}
	}
	return "[output truncated: " + note + "]"
}

// oneLine makes text fit for a heading or an error.
func oneLine(text string, max int) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "\uFFFD")), " ")
	text, _ = characters(text, max)
	return text
}
