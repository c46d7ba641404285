package wiretest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// CheckFrame validates a frame of a stream at a path: its data against the
// document, its name against its data.
func (d *Document) CheckFrame(path, name string, data []byte) error {
	switch name {
	case "ping":
		return nil
	case "error":
		return checkEnvelope(data)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	var head struct{ Type string }
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	// The oldest clients read what they do not know in frames of this name.
	if name != head.Type && name != "message" {
		return fmt.Errorf("a %s in a frame that is called %q", head.Type, name)
	}
	key, ok := d.find(path)
	if !ok {
		return fmt.Errorf("%s is not in the document", path)
	}
	s, err := d.schema("/paths/" + escape(key) + "/get/responses/200/content/application~1json/schema")
	if err != nil {
		return fmt.Errorf("compiling the schema: %w", err)
	}
	return s.Validate(value)
}

// frames checks the frames of a stream that is written to it.
type frames struct {
	t    testing.TB
	doc  *Document
	path string
	rest []byte
}

// Frames returns a writer that takes a stream's bytes as they come and fails the
// test on each frame that is not as the document says.
func (d *Document) Frames(t testing.TB, path string) io.Writer {
	return &frames{t: t, doc: d, path: path}
}

// Write implements io.Writer.
func (f *frames) Write(p []byte) (int, error) {
	f.rest = append(f.rest, p...)
	for {
		frame, rest, ok := bytes.Cut(f.rest, []byte("\n\n"))
		if !ok {
			return len(p), nil
		}
		f.rest = rest
		name, data, ok := bytes.Cut(frame, []byte("\n"))
		kind, named := bytes.CutPrefix(name, []byte("event: "))
		text, filled := bytes.CutPrefix(data, []byte("data: "))
		if !ok || !named || !filled || bytes.ContainsAny(text, "\n\r") {
			f.t.Errorf("%s: not a frame: %q", f.path, frame)
			continue
		}
		if err := f.doc.CheckFrame(f.path, string(kind), text); err != nil {
			f.t.Errorf("%s: frame %s is not as the document says: %v\n%s", f.path, kind, err, text)
		}
	}
}
