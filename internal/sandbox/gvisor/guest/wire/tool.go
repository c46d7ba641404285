package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// MaxMessage is the longest ToolRequest or ToolReply in bytes of JSON. Escaped
// text may be six times as long as what it stands for.
const MaxMessage = 16 << 20

// The operations of a ToolRequest.
const (
	OpRun    = "run"
	OpCancel = "cancel"
)

// ToolRequest asks the tool daemon of a sandbox for something.
type ToolRequest struct {
	// Op is OpRun or OpCancel.
	Op string `json:"op"`
	// ID names the call.
	ID string `json:"id"`
	// The rest belongs to OpRun.
	Name string `json:"name,omitempty"`
	// Input is the tool's JSON object.
	Input json.RawMessage `json:"input,omitempty"`
	// Dir is the working directory, Env the environment of programs.
	Dir string `json:"dir,omitempty"`
	// Env is the whole environment of the programs, as KEY=VALUE.
	Env []string `json:"env,omitempty"`
	// Roots are where the file tools may go besides Dir; Spill is the directory
	// for output that is too long.
	Roots []string `json:"roots,omitempty"`
	// Spill is the directory for output that is too long for a reply.
	Spill string `json:"spill,omitempty"`
	// TimeoutMS is how long a tool may take that brings no limit of its own.
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
}

// ToolReply is the daemon's answer. Failure is set when there is no result
// because something is wrong with the daemon or the request.
type ToolReply struct {
	// Text is what the tool says, valid UTF-8; empty when it says nothing.
	Text string `json:"text,omitempty"`
	// IsError: the tool failed or refused, and Text says why.
	IsError bool `json:"is_error,omitempty"`
	// Failure says why there is no result; empty when there is one.
	Failure string `json:"failure,omitempty"`
}

// ValidCallID tells whether id may name a call: it becomes a part of file names.
func ValidCallID(id string) bool {
	if len(id) < 1 || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// WriteMessage writes v as JSON behind its length.
func WriteMessage(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > MaxMessage {
		return fmt.Errorf("a message of %d bytes is too long", len(text))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// ReadMessage reads what WriteMessage wrote. A message over max bytes is an
// error before any of it is read.
func ReadMessage(r io.Reader, max int, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > uint32(max) {
		return errors.New("message too long")
	}
	// The length is only a claim: no room is made for what does not come.
	text, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(text) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(text, v)
}

// MaxToolReply is how long a ToolReply with maxText bytes of text may be, every
// byte escaped and its length in front.
func MaxToolReply(maxText int) int { return 4 + 6*maxText + 64<<10 }

// ReadToolReply reads all that a sandbox sent as its one reply. A reply that
// reports a failure is an error.
func ReadToolReply(data []byte, maxText int) (ToolReply, error) {
	var reply ToolReply
	in := bytes.NewReader(data)
	if err := ReadMessage(in, MaxToolReply(maxText)-4, &reply); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("no reply")
		}
		return ToolReply{}, err
	}
	switch {
	case in.Len() > 0:
		return ToolReply{}, errors.New("more than one reply")
	case reply.Failure != "":
		return ToolReply{}, fmt.Errorf("%.500q", reply.Failure)
	case len(reply.Text) > maxText || !utf8.ValidString(reply.Text):
		return ToolReply{}, errors.New("text too long or not UTF-8")
	}
	return reply, nil
}
