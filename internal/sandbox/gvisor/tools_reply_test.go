package gvisor

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

// FuzzToolReply reads what a hostile sandbox sends as a reply.
func FuzzToolReply(f *testing.F) {
	var good bytes.Buffer
	if err := wire.WriteMessage(&good, wire.ToolReply{Text: "text", IsError: true}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(append(good.Bytes(), good.Bytes()...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'})
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		reply, err := readToolReply(data)
		if err != nil {
			if reply != (wire.ToolReply{}) {
				t.Error("an error with a reply")
			}
			return
		}
		if len(reply.Text) > sandbox.MaxToolText || !utf8.ValidString(reply.Text) || reply.Failure != "" {
			t.Errorf("taken: %.100q", reply.Text)
		}
	})
}
