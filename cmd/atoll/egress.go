package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
)

type egressCmd struct {
	clientFlags
	Denied bool `help:"Only what was refused."`
	Follow bool `help:"Go on with what is decided, oldest first, until interrupted."`
	Limit  int  `help:"How many decisions, newest first; at most 1000." default:"100"`
	JSON   bool `name:"json" help:"One JSON object a line, with every field."`

	Session string `arg:"" help:"Session id."`
}

// Run lists decisions: newest first, or, with follow, as they come.
func (c egressCmd) Run(ctx context.Context, io *streams) error {
	client, err := c.client(io)
	if err != nil {
		return err
	}
	page, err := c.page(ctx, client, c.Limit, nil)
	if err != nil {
		return err
	}
	if c.Follow {
		return c.follow(ctx, client, io.out, page.Data)
	}
	if c.JSON {
		return printJSON(io.out, page.Data)
	}
	table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
	sayText(table, "TIME\tVERDICT\tHOST\tPORT\tPROTOCOL\tREASON\tRULE\tCOUNT\n")
	for _, r := range page.Data {
		say(table, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\n", r.Time.UTC().Format(time.RFC3339), r.Verdict, asked(r), r.DestPort, r.Protocol, r.Reason, r.Rule, r.Count)
	}
	return table.Flush()
}

// page asks for decisions, newest first.
func (c egressCmd) page(ctx context.Context, client *client, limit int, query url.Values) (page api.DataPage[egress.Record], err error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("limit", strconv.Itoa(limit))
	if c.Denied {
		query.Set("verdict", string(egress.VerdictRefused))
	}
	return page, client.get(ctx, "/atoll/v1/sessions/"+url.PathEscape(c.Session)+"/egress", query, &page)
}

// followEvery is how often new decisions are asked for.
const followEvery = 500 * time.Millisecond

// follow prints what there is, oldest first, and then what comes, until ctx
// ends.
func (c egressCmd) follow(ctx context.Context, client *client, out io.Writer, records []egress.Record) error {
	print := printLines
	if c.JSON {
		print = printJSON
	}
	last := "egr_00000000000000" // before all others
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if len(records) > 0 {
			last = records[0].ID
			slices.Reverse(records)
			if err := print(out, records); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var err error
		if records, err = c.since(ctx, client, last); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// since returns what was decided after a decision, newest first.
func (c egressCmd) since(ctx context.Context, client *client, last string) (out []egress.Record, err error) {
	query := url.Values{"after": {last}}
	for {
		page, err := c.page(ctx, client, 1000, query)
		if err != nil {
			return nil, err
		}
		out = append(out, page.Data...)
		if !page.HasMore {
			return out, nil
		}
		query.Set("before", out[len(out)-1].ID)
	}
}

// printLines prints one line a decision, in columns that do not wait for the
// lines to come.
func printLines(out io.Writer, records []egress.Record) error {
	for _, r := range records {
		err := say(out, "%s  %-8s %-40s %5d  %-5s %-21s %s\n", r.Time.UTC().Format(time.RFC3339), r.Verdict, asked(r), r.DestPort, r.Protocol, r.Reason, r.Rule)
		if err != nil {
			return err
		}
	}
	return nil
}

func printJSON(out io.Writer, records []egress.Record) error {
	for _, r := range records {
		if err := sayJSON(out, r, ""); err != nil {
			return fmt.Errorf("writing a decision: %w", err)
		}
	}
	return nil
}

// asked names what a decision was about: the host, else what the client said it
// was, else the address.
func asked(r egress.Record) string {
	switch {
	case r.Host != "":
		return r.Host
	case r.ClaimedHost != "":
		return r.ClaimedHost
	}
	return r.DestAddress
}
