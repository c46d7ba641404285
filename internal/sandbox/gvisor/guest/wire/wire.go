// Package wire is what the server and its guest program say to each other over
// the guest's standard input and output. Both ends import it; it needs only the
// standard library. The server does not trust the guest: every read is capped.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// MaxHead is the longest head line in bytes that a reader accepts.
const MaxHead = 64 << 10

// maxChunk is the longest chunk that a ChunkReader accepts.
const maxChunk = 1 << 20

// The kinds of failure that a guest reports.
const (
	KindNone   = ""       // it worked
	KindNoFile = "nofile" // the path does not exist
	KindFile   = "file"   // the path exists but cannot be used as asked
)

// Head is the guest's answer to one request: a line of JSON, followed for a
// read by the content. A Kind other than KindNone says the request failed.
type Head struct {
	// Kind is one of the Kind constants.
	Kind string `json:"kind,omitempty"`
	// Text says what went wrong, at most 1,024 bytes; empty with KindNone.
	Text string `json:"text,omitempty"`
	// Path is the file that the answer is about.
	Path string `json:"path,omitempty"`
	// Dir: Path is a directory.
	Dir bool `json:"dir,omitempty"`
	// Size is that of a file in bytes. With Unsized it is 0: the size is known at
	// the end of the content only, as with long files of /proc.
	Size int64 `json:"size,omitempty"`
	// Unsized: the size of a regular file is known at the end of its content only.
	Unsized bool `json:"unsized,omitempty"`
	// Mode holds the permission bits of Path.
	Mode uint32 `json:"mode,omitempty"`
	// Mtime is when Path was last changed.
	Mtime time.Time `json:"mtime,omitzero"`
}

// WriteHead writes h as one line.
func WriteHead(w io.Writer, h Head) error {
	if len(h.Text) > 1024 {
		h.Text = h.Text[:1024]
	}
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// ReadHead reads one head line, byte for byte so that the content after it
// stays in r; give it a buffered reader. A line over MaxHead is an error.
func ReadHead(r io.ByteReader) (Head, error) {
	var line []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			return Head{}, fmt.Errorf("reading head: %w", err)
		}
		if c == '\n' {
			break
		}
		if len(line) == MaxHead {
			return Head{}, errors.New("reading head: line too long")
		}
		line = append(line, c)
	}
	var h Head
	if err := json.Unmarshal(line, &h); err != nil {
		return Head{}, fmt.Errorf("reading head: %w", err)
	}
	if h.Size < 0 {
		return Head{}, errors.New("reading head: negative size")
	}
	return h, nil
}

// ChunkWriter sends a stream whose end is explicit: a stream that breaks off
// is told apart from one that is complete.
type ChunkWriter struct {
	// W takes the chunks, each in one Write.
	W io.Writer
}

// Write sends p as one chunk or several.
func (c ChunkWriter) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		part := p[:min(len(p), maxChunk)]
		frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(part)), uint32(len(part)))
		if _, err := c.W.Write(append(frame, part...)); err != nil {
			return done, err
		}
		done += len(part)
		p = p[len(part):]
	}
	return done, nil
}

// Close sends the end mark. Without it the reader reports a broken stream.
func (c ChunkWriter) Close() error {
	_, err := c.W.Write([]byte{0, 0, 0, 0})
	return err
}

// ChunkReader reads what a ChunkWriter sent. A stream without end mark ends in
// io.ErrUnexpectedEOF.
type ChunkReader struct {
	// R is where the chunks come from.
	R    io.Reader
	left uint32
	end  bool
}

// Read reads content of chunks.
func (c *ChunkReader) Read(p []byte) (int, error) {
	if c.end {
		return 0, io.EOF
	}
	if c.left == 0 {
		var size [4]byte
		if _, err := io.ReadFull(c.R, size[:]); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		c.left = binary.BigEndian.Uint32(size[:])
		if c.left == 0 {
			c.end = true
			return 0, io.EOF
		}
		if c.left > maxChunk {
			return 0, fmt.Errorf("chunk of %d bytes is too long", c.left)
		}
	}
	n, err := c.R.Read(p[:min(len(p), int(c.left))])
	c.left -= uint32(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
