package wire

import (
	"bytes"
	"testing"
	"unicode/utf8"
)

// FuzzToolReply reads what a hostile sandbox sends as a reply.
func FuzzToolReply(f *testing.F) {
	var good bytes.Buffer
	if err := WriteMessage(&good, ToolReply{Text: "text", IsError: true}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(append(good.Bytes(), good.Bytes()...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'})
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	const maxText = 1 << 10
	f.Fuzz(func(t *testing.T, data []byte) {
		reply, err := ReadToolReply(data, maxText)
		if err != nil {
			if reply != (ToolReply{}) {
				t.Error("an error with a reply")
			}
			return
		}
		if len(reply.Text) > maxText || !utf8.ValidString(reply.Text) || reply.Failure != "" {
			t.Errorf("taken: %.100q", reply.Text)
		}
	})
}

// FuzzToolRequest reads what anybody in a sandbox sends to the daemon.
func FuzzToolRequest(f *testing.F) {
	var good bytes.Buffer
	if err := WriteMessage(&good, ToolRequest{Op: OpRun, ID: "sevt_x", Name: "bash", Input: []byte(`{"command":"true"}`), Roots: []string{"/tmp"}}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		var req ToolRequest
		if ReadMessage(bytes.NewReader(data), MaxMessage, &req) != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteMessage(&again, req); err != nil {
			t.Errorf("read and not written: %v", err)
		}
	})
}
