package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/api"
)

type buildCmd struct {
	clientFlags
	Follow  bool `short:"f" help:"Wait for the build to end, showing its progress."`
	Rebuild bool `help:"Build again, taking new versions of what is not pinned."`
	Log     bool `help:"Print the build's log instead of its layers; with --follow, as it is written."`

	Environment string `arg:"" help:"Environment id."`
}

func (buildCmd) Help() string {
	return `Exits 1 when the build failed, with the package manager's own words. On a terminal --follow shows one live line,
otherwise a line for each change.`
}

// pollEvery is how often a followed build is asked for.
const pollEvery = 500 * time.Millisecond

// Run shows a build, starting one first with --rebuild.
func (c buildCmd) Run(ctx context.Context, io *streams) error {
	client, err := c.client(io)
	if err != nil {
		return err
	}
	path := "/atoll/v1/environments/" + url.PathEscape(c.Environment) + "/build"
	if c.Rebuild {
		res, err := client.send(ctx, http.MethodPost, path, nil, nil)
		if err != nil {
			return err
		}
		if err := res.Body.Close(); err != nil {
			return err
		}
	}
	if c.Log {
		if err := client.copyLog(ctx, path+"/log", c.Follow, io.out); err != nil {
			return err
		}
	}
	live := newLiveLine(io.err, isTerminal(io.err))
	var build api.Build
	for {
		if err := client.get(ctx, path, nil, &build); err != nil {
			live.end()
			return err
		}
		if !c.Follow || build.Status != api.BuildQueued && build.Status != api.BuildBuilding {
			break
		}
		live.show(buildLine(build))
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			live.end()
			return &exitError{code: codeInterrupted}
		}
	}
	live.end()
	if !c.Log {
		if err := printBuild(io.out, build); err != nil {
			return err
		}
	}
	if build.Status == api.BuildFailed && build.Error != nil {
		return errors.New(build.Error.Message)
	}
	return nil
}

// copyLog passes the build's log on, until its end.
func (c *client) copyLog(ctx context.Context, path string, follow bool, out io.Writer) error {
	query := url.Values{}
	if follow {
		query.Set("follow", "true")
	}
	res, err := c.send(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for lines := bufio.NewReader(res.Body); ; {
		line, err := lines.ReadString('\n')
		if _, werr := io.WriteString(out, line); werr != nil {
			return fmt.Errorf("writing the log: %w", werr)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
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

// printBuild prints a build as a table of its layers.
func printBuild(out io.Writer, b api.Build) error {
	fmt.Fprintf(out, "%s: %s", b.EnvironmentID, b.Status)
	if b.Template != "" {
		fmt.Fprintf(out, " on %s", b.Template)
	}
	if b.FinishedAt != nil {
		fmt.Fprintf(out, " in %s", (time.Duration(b.DurationMS) * time.Millisecond).Round(time.Millisecond))
	}
	fmt.Fprintln(out)
	if len(b.Layers) > 0 {
		table := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
		fmt.Fprintln(table, "  MANAGER\tSTATE\tTIME\tSIZE\tPACKAGES")
		for _, l := range b.Layers {
			state := l.State
			if l.Hit {
				state += " (cached)"
			}
			var named []string
			for _, p := range l.Packages {
				if p.Requested {
					named = append(named, p.Name+" "+p.Version)
				}
			}
			fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s (%d in all)\n", l.Manager, state,
				time.Duration(l.DurationMS)*time.Millisecond, sizeText(l.SizeBytes), strings.Join(named, ", "), len(l.Packages))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if b.Error != nil && b.Error.Tail != "" {
		fmt.Fprintln(out, "  "+strings.ReplaceAll(strings.TrimSpace(b.Error.Tail), "\n", "\n  "))
	}
	return nil
}

// liveLine shows one line that changes: rewritten in place on a terminal, a
// new line for each change otherwise.
type liveLine struct {
	out   io.Writer
	tty   bool
	start time.Time
	last  string
}

func newLiveLine(out io.Writer, tty bool) *liveLine {
	return &liveLine{out: out, tty: tty, start: time.Now()}
}

func (l *liveLine) show(text string) {
	if l.tty {
		fmt.Fprintf(l.out, "\r\x1b[K%4.0fs  %s", time.Since(l.start).Seconds(), text)
	} else if text != l.last {
		fmt.Fprintf(l.out, "%4.0fs  %s\n", time.Since(l.start).Seconds(), text)
	}
	l.last = text
}

// end removes the line from a terminal.
func (l *liveLine) end() {
	if l.tty && l.last != "" {
		fmt.Fprint(l.out, "\r\x1b[K")
	}
}
