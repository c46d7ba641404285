package image

import (
	"fmt"
	"io"
	"sync"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"
)

// TerminalProgress shows progress to a person: a bar with the last line of output on a terminal, plain lines
// elsewhere. Create it with NewTerminalProgress and Close it when the work is over.
type TerminalProgress struct {
	mu    sync.Mutex
	w     io.Writer
	tty   bool
	bar   *progressbar.ProgressBar
	stage string
	start time.Time
	shown int // last tenth that a plain line told
}

// NewTerminalProgress writes to w. tty says whether it is a terminal.
func NewTerminalProgress(w io.Writer, tty bool) *TerminalProgress {
	return &TerminalProgress{w: w, tty: tty}
}

// Stage ends the bar of the step before and begins a new one.
func (t *TerminalProgress) Stage(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if name == t.stage {
		return
	}
	t.finish()
	t.stage, t.start, t.shown = name, time.Now(), 0
	if !t.tty {
		fmt.Fprintf(t.w, "%s\n", name)
		return
	}
	t.bar = progressbar.NewOptions(100, progressbar.OptionSetWriter(t.w), progressbar.OptionSetDescription(name),
		progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetPredictTime(true),
		progressbar.OptionShowElapsedTimeOnFinish(), progressbar.OptionSetMaxDetailRow(1))
	_ = t.bar.RenderBlank()
}

// Percent moves the bar; elsewhere than on a terminal every quarter is a line.
func (t *TerminalProgress) Percent(p float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bar != nil {
		_ = t.bar.Set(int(min(max(p, 0), 99)))
		return
	}
	if quarter := int(p / 25); !t.tty && quarter > t.shown && p < 100 {
		t.shown = quarter
		fmt.Fprintf(t.w, "%s: %d%%\n", t.stage, quarter*25)
	}
}

// Log shows the line under the bar. Elsewhere the tools' own output is left out: it is in the error if it matters.
func (t *TerminalProgress) Log(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bar != nil {
		_ = t.bar.AddDetail(printableLine(line, 100))
	}
}

// Close ends the last bar.
func (t *TerminalProgress) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finish()
	t.stage = ""
}

func (t *TerminalProgress) finish() {
	if t.bar != nil {
		_ = t.bar.Finish()
		fmt.Fprintln(t.w)
		t.bar = nil
	} else if t.stage != "" && time.Since(t.start) > time.Second {
		fmt.Fprintf(t.w, "%s: done in %s\n", t.stage, time.Since(t.start).Round(100*time.Millisecond))
	}
}

// printableLine cuts a tool's line to n runes and drops control codes, which could move the cursor.
func printableLine(s string, n int) string {
	var out []rune
	for _, r := range s {
		if len(out) == n {
			break
		}
		if unicode.IsPrint(r) {
			out = append(out, r)
		}
	}
	return string(out)
}

// safeProgress lets the rest of the package call a Progress that may be nil.
type safeProgress struct{ p Progress }

func (s safeProgress) Stage(name string) {
	if s.p != nil {
		s.p.Stage(name)
	}
}

func (s safeProgress) Percent(p float64) {
	if s.p != nil {
		s.p.Percent(p)
	}
}

func (s safeProgress) Log(line string) {
	if s.p != nil {
		s.p.Log(line)
	}
}
