package tools

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"
)

// escape is a control sequence of a terminal.
var escape = regexp.MustCompile(`\x1b\[[0-9;?]*[ -/]*[@-~]`)

// output is what one command writes: its end in memory, and all of it in a file
// when it is too much to be told. It is written by the terminal's reader and
// read by the call.
type output struct {
	news chan struct{} // gets a token when there is something new

	mu      sync.Mutex
	tail    []byte // the last bytes, at most maxOutput
	total   int64
	spill   string // path of the file; empty means none is wanted
	file    *os.File
	spilled int64
	lost    error // why the file is not complete
}

func newOutput(spill string) *output { return &output{news: make(chan struct{}, 1), spill: spill} }

// Write takes more output; it never fails and never waits for the reader.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	if o.file == nil && o.lost == nil && o.spill != "" && len(o.tail)+len(p) > maxCharacters {
		o.openSpill()
	}
	if o.file != nil {
		o.save(p)
	}
	o.total += int64(len(p))
	o.tail = append(o.tail, p...)
	if over := len(o.tail) - maxOutput; over > 0 {
		o.tail = append(o.tail[:0], o.tail[over:]...)
	}
	o.mu.Unlock()
	select {
	case o.news <- struct{}{}:
	default:
	}
	return len(p), nil
}

// openSpill begins the file with what there is so far. The caller holds mu.
func (o *output) openSpill() {
	err := os.MkdirAll(filepath.Dir(o.spill), 0o755)
	if err == nil {
		o.file, err = os.OpenFile(o.spill, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	}
	if err != nil {
		o.lost = err
		return
	}
	o.save(o.tail)
}

// save appends to the file, up to its limit. The caller holds mu.
func (o *output) save(p []byte) {
	if o.lost != nil {
		return
	}
	take := int(min(int64(len(p)), maxSpill-o.spilled))
	n, err := o.file.Write(p[:take])
	o.spilled += int64(n)
	if err == nil && take < len(p) {
		err = fmt.Errorf("longer than %d bytes", maxSpill)
	}
	o.lost = err
}

// end looks for the mark behind which a line with the exit status stands. It
// reports the output before the mark and the status, once.
func (o *output) end(mark string) (before []byte, status string, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := bytes.LastIndex(o.tail, []byte(mark))
	if at < 0 {
		return nil, "", false
	}
	status, _, ok = strings.Cut(string(o.tail[at+len(mark):]), "\n")
	if ok && o.file != nil && o.lost == nil { // the file holds the output alone, without the newline before the mark
		o.spilled -= int64(len(o.tail) - at + 1)
		o.lost = o.file.Truncate(o.spilled)
	}
	return bytes.Clone(o.tail[:at]), strings.TrimSuffix(status, "\r"), ok
}

// all is what is in memory.
func (o *output) all() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.tail)
}

// text is what the model is told of the output: cleaned, its end if it is too
// much, and where the rest is.
func (o *output) text(raw []byte) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text, cut := lastCharacters(clean(raw))
	cut = cut || o.total > maxOutput
	if cut {
		text = truncated + "\n" + text
	}
	switch {
	case o.file == nil:
		if cut && o.spill != "" && o.lost != nil {
			text += fmt.Sprintf("\n[the whole output could not be kept: %s]", reason(o.lost))
		}
		return text
	case !cut: // just below the limit: nothing is missing
		_ = os.Remove(o.spill)
	case o.lost != nil:
		text += fmt.Sprintf("\n[the first %d bytes of the output are in %s]", o.spilled, o.spill)
	default:
		text += fmt.Sprintf("\n[the whole output, %d bytes, is in %s]", o.spilled, o.spill)
	}
	_ = o.file.Close()
	o.file = nil
	return text
}

// clean takes out what only a terminal understands.
func clean(raw []byte) string {
	text := escape.ReplaceAll(raw, nil)
	text = bytes.ReplaceAll(text, []byte("\r"), nil)
	return strings.ToValidUTF8(string(bytes.TrimLeft(text, "\n")), "\uFFFD")
}

// lastCharacters keeps the last maxCharacters of text.
func lastCharacters(text string) (string, bool) {
	over := utf8.RuneCountInString(text) - maxCharacters
	if over <= 0 {
		return text, false
	}
	for i := range text {
		if over == 0 {
			return text[i:], true
		}
		over--
	}
	return "", true
}
