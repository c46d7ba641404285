package image

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	logHead    = 1 << 20   // bytes of a log that are kept in full
	logTail    = 256 << 10 // bytes of its end that are kept beyond that
	maxLine    = 4 << 10   // bytes of one line
	maxPending = 64 << 10  // bytes without a newline before a line is made of them
)

// Line is one line of a build's output.
type Line struct {
	// Time is when the line came.
	Time    time.Time `json:"time"`
	Manager string    `json:"manager"` // empty for the build's own words
	// Text is one line without its end, printable, at most 4 KiB.
	Text string `json:"text"`
}

// String renders the line as the stored log has it.
func (l Line) String() string {
	return l.Time.UTC().Format("2006-01-02T15:04:05.000Z") + " " + l.Manager + ": " + l.Text
}

// Log is a growing list of lines that any number of followers read by offset.
// The first MiB is kept in full, then the middle is elided. Methods may be
// called at the same time. The zero value is an empty, open log.
type Log struct {
	mu        sync.Mutex
	head      []Line
	headBytes int
	tail      []Line
	tailBytes int
	elided    int // lines dropped between head and tail
	closed    bool
	changed   chan struct{}
	sinks     []*Log     // logs that get every line too
	watch     func(Line) // called with every line, if set before the first
}

// Read returns the lines from an offset on, the offset to ask for next, whether
// the log is complete, and a channel that is closed when there is more to know.
// Lines that were elided are represented by one line that says how many.
func (l *Log) Read(from int) (lines []Line, next int, done bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from = max(from, 0)
	if from < len(l.head) {
		lines = append(lines, l.head[from:]...)
	}
	tailStart := len(l.head) + l.elided
	if l.elided > 0 && from < tailStart {
		lines = append(lines, Line{Time: l.tail[0].Time, Text: fmt.Sprintf("… %d lines elided …", tailStart-max(from, len(l.head)))})
	}
	if skip := max(from-tailStart, 0); skip < len(l.tail) {
		lines = append(lines, l.tail[skip:]...)
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return lines, max(from, tailStart+len(l.tail)), l.closed, l.changed
}

// Text renders the whole log, one line each.
func (l *Log) Text() []byte {
	lines, _, _, _ := l.Read(0)
	var b bytes.Buffer
	for _, line := range lines {
		b.WriteString(line.String())
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func (l *Log) add(line Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	size := len(line.Text) + len(line.Manager) + 32
	if l.tail == nil && l.headBytes+size <= logHead {
		l.head, l.headBytes = append(l.head, line), l.headBytes+size
	} else {
		l.tail, l.tailBytes = append(l.tail, line), l.tailBytes+size
		for l.tailBytes > logTail {
			l.tailBytes -= len(l.tail[0].Text) + len(l.tail[0].Manager) + 32
			l.tail = l.tail[1:]
			l.elided++
		}
	}
	l.wake()
	if l.watch != nil {
		l.watch(line)
	}
	for _, s := range l.sinks {
		s.add(line)
	}
}

// wake tells followers that the log changed; the caller holds mu.
func (l *Log) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// follow gives sink every line so far and every further one, in order.
func (l *Log) follow(sink *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.head {
		sink.add(line)
	}
	if l.elided > 0 {
		sink.add(Line{Time: l.tail[0].Time, Text: fmt.Sprintf("… %d lines elided …", l.elided)})
	}
	for _, line := range l.tail {
		sink.add(line)
	}
	l.sinks = append(l.sinks, sink)
}

// unfollow ends what follow began.
func (l *Log) unfollow(sink *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sinks = slices.DeleteFunc(l.sinks, func(s *Log) bool { return s == sink })
}

func (l *Log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wake()
}

// lineWriter cuts a tool's output into clean lines for a log and keeps the last
// ones for the report of a failure. Write may be called from one goroutine at
// a time, last and text from any.
type lineWriter struct {
	emit func(text string)

	mu      sync.Mutex
	pending []byte
	recent  []string // the last lines, for a failure's tail and for classification
	bytes   int
	lastAt  time.Time
	now     func() time.Time
}

// keepRecent bounds what is kept for classification.
const keepRecent = 64 << 10

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastAt = w.now()
	w.pending = append(w.pending, p...)
	for {
		// A carriage return alone redraws a progress line: only its last state counts.
		i := bytes.IndexByte(w.pending, '\n')
		if i < 0 {
			if len(w.pending) > maxPending {
				i = len(w.pending) - 1
			} else {
				break
			}
		}
		w.line(w.pending[:i])
		w.pending = w.pending[i+1:]
	}
	return len(p), nil
}

func (w *lineWriter) line(raw []byte) {
	text := cleanLine(raw)
	if text == "" {
		return
	}
	w.recent, w.bytes = append(w.recent, text), w.bytes+len(text)
	for w.bytes > keepRecent {
		w.bytes -= len(w.recent[0])
		w.recent = w.recent[1:]
	}
	w.emit(text)
}

// flush ends an unfinished line.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) > 0 {
		w.line(w.pending)
		w.pending = nil
	}
}

func (w *lineWriter) lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.recent...)
}

func (w *lineWriter) idle(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return now.Sub(w.lastAt)
}

// cleanLine makes one line of a tool's output safe to show: valid UTF-8, no
// control codes or escape sequences, bounded.
func cleanLine(raw []byte) string {
	raw = bytes.TrimRight(raw, "\r\n")
	if i := bytes.LastIndexByte(raw, '\r'); i >= 0 {
		raw = raw[i+1:]
	}
	var b strings.Builder
	for len(raw) > 0 && b.Len() < maxLine {
		r, n := utf8.DecodeRune(raw)
		switch {
		case r == 0x1b:
			n = escapeLength(raw)
		case r == '\t':
			b.WriteByte(' ')
		case r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			// Controls, and the marks that reorder text.
		default:
			b.WriteRune(r)
		}
		raw = raw[n:]
	}
	return strings.TrimRight(b.String(), " ")
}

// escapeLength measures a terminal escape sequence at the start of raw.
func escapeLength(raw []byte) int {
	if len(raw) < 2 {
		return len(raw)
	}
	switch raw[1] {
	case '[':
		for i := 2; i < len(raw); i++ {
			if raw[i] >= 0x40 && raw[i] <= 0x7e {
				return i + 1
			}
		}
		return len(raw)
	case ']':
		for i := 2; i < len(raw); i++ {
			if raw[i] == 0x07 {
				return i + 1
			}
			if raw[i] == 0x1b {
				return min(i+2, len(raw))
			}
		}
		return len(raw)
	}
	return 2
}
