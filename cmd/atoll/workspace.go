package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/store"
)

type workspaceCmd struct {
	Create  workspaceCreateCmd  `cmd:"" help:"Make a workspace and print its id. atoll key create --workspace gives it a key."`
	Update  workspaceUpdateCmd  `cmd:"" help:"Change the limits of a workspace. What is beyond a new limit goes on."`
	List    workspaceListCmd    `cmd:"" help:"List workspaces, archived ones included."`
	Archive workspaceArchiveCmd `cmd:"" help:"Close a workspace for good: its keys open nothing any more. It may have no session that is not archived."`
}

type workspaceCreateCmd struct {
	dataFlag
	MaxSessions int    `help:"How many sessions that are not archived it may have, and with them how many sandboxes; 0: as many as the server admits." placeholder:"N"`
	Name        string `arg:"" help:"Name, which no other workspace has."`
}

type workspaceUpdateCmd struct {
	dataFlag
	MaxSessions int    `help:"As in create." placeholder:"N" required:""`
	Workspace   string `arg:"" name:"workspace" help:"Name or id."`
}

type workspaceListCmd struct{ dataFlag }

type workspaceArchiveCmd struct {
	dataFlag
	Workspace string `arg:"" name:"workspace" help:"Name or id."`
}

// Run makes a workspace and prints its id alone, for $(…).
func (c workspaceCreateCmd) Run(ctx context.Context, io *streams) error {
	var made httpapi.AdminWorkspace
	err := c.administer(ctx, io, func(server *client) error {
		res, err := server.send(ctx, http.MethodPost, "/workspaces", nil, httpapi.AdminWorkspaceCreate{Name: c.Name, MaxSessions: c.MaxSessions})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return json.NewDecoder(res.Body).Decode(&made)
	}, func(_ string, db *store.Store) error {
		ws, err := alone(db).CreateWorkspace(ctx, c.Name, c.MaxSessions)
		made.ID = ws.ID
		return err
	})
	if err != nil {
		return err
	}
	return say(io.out, "%s\n", made.ID)
}

// Run changes a workspace's limits.
func (c workspaceUpdateCmd) Run(ctx context.Context, io *streams) error {
	limits := httpapi.AdminWorkspaceLimits{MaxSessions: c.MaxSessions}
	return c.administer(ctx, io, func(server *client) error {
		res, err := server.send(ctx, http.MethodPost, "/workspaces/"+url.PathEscape(c.Workspace)+"/limits", nil, limits)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}, func(_ string, db *store.Store) error { return httpapi.AdminLimit(ctx, alone(db), c.Workspace, limits) })
}

// Run prints a table of workspaces.
func (c workspaceListCmd) Run(ctx context.Context, io *streams) error {
	var all []httpapi.AdminWorkspace
	err := c.administer(ctx, io, func(server *client) error {
		return server.get(ctx, "/workspaces", nil, &all)
	}, func(_ string, db *store.Store) (err error) {
		all, err = httpapi.AdminWorkspaces(ctx, alone(db))
		return err
	})
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
	sayText(table, "ID\tNAME\tCREATED\tSESSIONS\tARCHIVED\n")
	for _, ws := range all {
		archived := "-"
		if ws.ArchivedAt != nil {
			archived = ws.ArchivedAt.UTC().Format(time.RFC3339)
		}
		sessions := "-"
		if ws.MaxSessions > 0 {
			sessions = fmt.Sprintf("at most %d", ws.MaxSessions)
		}
		say(table, "%s\t%s\t%s\t%s\t%s\n", ws.ID, ws.Name, ws.CreatedAt.UTC().Format(time.RFC3339), sessions, archived)
	}
	return table.Flush()
}

// Run archives a workspace.
func (c workspaceArchiveCmd) Run(ctx context.Context, io *streams) error {
	return c.administer(ctx, io, func(server *client) error {
		res, err := server.send(ctx, http.MethodPost, "/workspaces/"+url.PathEscape(c.Workspace)+"/archive", nil, nil)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}, func(_ string, db *store.Store) error { return httpapi.AdminArchive(ctx, alone(db), c.Workspace) })
}

// alone is the service on a database that this process has opened.
func alone(db *store.Store) *control.Service {
	return control.New(control.Config{Store: db, Logger: slog.New(slog.DiscardHandler)})
}
