package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
)

type egressCmd struct {
	clientFlags
	Denied bool `help:"Only what was refused."`
	Limit  int  `help:"How many decisions, newest first; at most 1000." default:"100"`
	JSON   bool `name:"json" help:"One JSON object a line, with every field."`

	Session string `arg:"" help:"Session id."`
}

// Run lists decisions, newest first.
func (c egressCmd) Run(ctx context.Context, io *streams) error {
	client, err := c.client(io)
	if err != nil {
		return err
	}
	query := url.Values{"limit": {strconv.Itoa(c.Limit)}}
	if c.Denied {
		query.Set("verdict", string(egress.VerdictRefused))
	}
	var page struct {
		Data []egress.Record `json:"data"`
	}
	if err := client.get(ctx, "/atoll/v1/sessions/"+url.PathEscape(c.Session)+"/egress", query, &page); err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(io.out)
		for _, r := range page.Data {
			if err := enc.Encode(r); err != nil {
				return fmt.Errorf("writing a decision: %w", err)
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tVERDICT\tHOST\tPORT\tPROTOCOL\tREASON\tRULE\tCOUNT")
	for _, r := range page.Data {
		host := r.Host
		switch {
		case host == "" && r.ClaimedHost != "":
			host = r.ClaimedHost
		case host == "":
			host = r.DestAddress
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\n", r.Time.UTC().Format(time.RFC3339), r.Verdict, host, r.DestPort, r.Protocol, r.Reason, r.Rule, r.Count)
	}
	return table.Flush()
}
