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
	return `Exits 1 when the build failed, with the package manager's own words. On a terminal --follow shows a live line for
each manager with what it printed last, otherwise a line for each change.`
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
	var build api.Build
	if c.Follow {
		build, err = client.follow(ctx, path, newBuildView(io.err, isTerminal(io.err)))
	} else {
		err = client.get(ctx, path, nil, &build)
	}
	if err != nil {
		return err
	}
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
		if werr := sayText(out, line); werr != nil {
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

// printBuild prints a build as a table of its layers.
func printBuild(out io.Writer, b api.Build) error {
	say(out, "%s: %s", b.EnvironmentID, b.Status)
	if b.Template != "" {
		say(out, " on %s", b.Template)
	}
	if b.FinishedAt != nil {
		say(out, " in %s", (time.Duration(b.DurationMS) * time.Millisecond).Round(time.Millisecond))
	}
	sayText(out, "\n")
	if len(b.Layers) > 0 {
		table := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
		sayText(table, "  MANAGER\tSTATE\tTIME\tSIZE\tPACKAGES\n")
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
			say(table, "  %s\t%s\t%s\t%s\t%s (%d in all)\n", l.Manager, state,
				time.Duration(l.DurationMS)*time.Millisecond, sizeText(l.SizeBytes), strings.Join(named, ", "), len(l.Packages))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if b.Error != nil && b.Error.Tail != "" {
		sayText(out, "  "+strings.ReplaceAll(strings.TrimSpace(b.Error.Tail), "\n", "\n  ")+"\n")
	}
	return nil
}
