package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/atoll-run/atoll/api"
)

// buildView shows a build while it goes on. On a terminal each manager has a
// line, rewritten in place, with what it printed last; otherwise each change of
// the build is a line of its own.
type buildView struct {
	out   io.Writer
	tty   bool
	now   func() time.Time
	start time.Time
	began map[string]time.Time // manager → when it was first seen at work
	said  map[string]string    // manager, or "" for the template → what the log says last
	read  int                  // lines of the log that were read
	drawn int                  // lines on the terminal
	last  string               // the last plain line
}

func newBuildView(out io.Writer, tty bool) *buildView {
	return &buildView{out: out, tty: tty, now: time.Now, start: time.Now(), began: map[string]time.Time{}, said: map[string]string{}}
}

// show shows the build as it is now. It is called again and again.
func (v *buildView) show(b api.Build) {
	if !v.tty {
		if text := buildLine(b); text != v.last {
			say(v.out, "%4.0fs  %s\n", v.now().Sub(v.start).Seconds(), text)
			v.last = text
		}
		return
	}
	lines := v.lines(b)
	var text strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", v.drawn)
	}
	width := terminalWidth(v.out) - 1 // a full line would wrap, and count as two
	for _, l := range lines {
		text.WriteString("\r" + fit(l, width) + "\x1b[K\n")
	}
	text.WriteString("\x1b[J")
	v.drawn = len(lines)
	_, _ = io.WriteString(v.out, text.String()) // progress that cannot be shown is no failure
}

// lines are what the terminal shows of a build.
func (v *buildView) lines(b api.Build) []string {
	head := fmt.Sprintf("%s on %s  %.0fs", b.Status, b.Template, v.now().Sub(v.start).Seconds())
	if len(b.Layers) == 0 || b.BaseDigest == "" {
		return []string{strings.TrimRight(head+"  "+v.said[""], " ")}
	}
	lines := []string{head}
	for _, l := range b.Layers {
		line := fmt.Sprintf("  %-6s%-9s", l.Manager, l.State)
		switch {
		case l.Hit:
			line = fmt.Sprintf("  %-6s%-9s %d packages, %s", l.Manager, "cached", len(l.Packages), sizeText(l.SizeBytes))
		case l.State == api.BuildReady:
			took := time.Duration(l.DurationMS) * time.Millisecond
			line += fmt.Sprintf(" %6.1fs  %d packages, %s", took.Seconds(), len(l.Packages), sizeText(l.SizeBytes))
		case l.State == api.BuildBuilding:
			if v.began[l.Manager].IsZero() {
				v.began[l.Manager] = v.now()
			}
			line += fmt.Sprintf(" %6.1fs  %s", v.now().Sub(v.began[l.Manager]).Seconds(), v.said[l.Manager])
		}
		lines = append(lines, line)
	}
	return lines
}

// hear reads what the build's log has since the last time; only a terminal shows
// it. A log that cannot be read now is read the next time.
func (v *buildView) hear(ctx context.Context, c *client, path string) {
	if !v.tty {
		return
	}
	res, err := c.send(ctx, http.MethodGet, path, url.Values{"offset": {strconv.Itoa(v.read)}}, nil)
	if err != nil {
		return
	}
	defer res.Body.Close()
	for log := bufio.NewReader(res.Body); ; v.read++ {
		line, err := log.ReadString('\n')
		if err != nil {
			return
		}
		_, line, _ = strings.Cut(line, " ") // the time
		manager, text, _ := strings.Cut(line, ": ")
		if strings.HasPrefix(manager, "template ") {
			manager = ""
		}
		v.said[manager] = strings.TrimSpace(text)
	}
}

// end takes the lines off the terminal, where the result comes.
func (v *buildView) end() {
	if v.drawn > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA\r\x1b[J", v.drawn)
		v.drawn = 0
	}
}

// buildLine is a running build in one line.
func buildLine(b api.Build) string {
	var parts []string
	for _, l := range b.Layers {
		word := l.State
		if l.Hit {
			word = "cached"
		}
		parts = append(parts, l.Manager+" "+word)
	}
	line := b.Status
	if len(parts) > 0 {
		line += ": " + strings.Join(parts, ", ")
	}
	return line
}

// terminalWidth is how many columns a terminal has, 80 where it does not tell.
func terminalWidth(stream any) int {
	if f, ok := stream.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	return 80
}

// fit cuts a line to a terminal's width.
func fit(line string, columns int) string {
	out := []rune(oneLine(line))
	return string(out[:min(len(out), max(columns, 1))])
}

// follow shows a build until it ends, and returns how it ended.
func (c *client) follow(ctx context.Context, path string, view *buildView) (build api.Build, err error) {
	defer view.end()
	for {
		build = api.Build{}
		if err := c.get(ctx, path, nil, &build); err != nil {
			return build, err
		}
		if build.Status != api.BuildQueued && build.Status != api.BuildBuilding {
			return build, nil
		}
		view.hear(ctx, c, path+"/log")
		view.show(build)
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return build, &exitError{code: codeInterrupted}
		}
	}
}
