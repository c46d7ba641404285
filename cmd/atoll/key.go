package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/store"
)

type keyCmd struct {
	Create keyCreateCmd `cmd:"" help:"Make an API key and print it; it is shown this once."`
	List   keyListCmd   `cmd:"" help:"List API keys, revoked ones included."`
	Revoke keyRevokeCmd `cmd:"" help:"Revoke an API key at once and for good."`
}

type keyFlags struct {
	dataFlag
	Workspace string `help:"Workspace, by name or id." default:"default" placeholder:"NAME"`
}

type keyCreateCmd struct {
	keyFlags
	SandBase bool   `name:"sandbase" help:"Make a key that speaks SandBase's error names (sk-sb-…)."`
	Name     string `arg:"" help:"What the key is for."`
}

type keyListCmd struct{ keyFlags }

type keyRevokeCmd struct {
	keyFlags
	ID string `arg:"" name:"id" help:"Id of the key, as atoll key list shows it."`
}

// Run makes a key and prints its secret alone, for $(…).
func (c keyCreateCmd) Run(ctx context.Context, io *streams) error {
	return c.manage(ctx, io, func(keys keyManager) error {
		key, err := keys.create(ctx, httpapi.AdminCreate{Workspace: c.Workspace, Name: c.Name, SandBase: c.SandBase})
		if err != nil {
			return err
		}
		say(io.err, "%s made; the key is shown this once:\n", key.ID)
		return say(io.out, "%s\n", key.Secret)
	})
}

// Run prints a table of keys.
func (c keyListCmd) Run(ctx context.Context, io *streams) error {
	return c.manage(ctx, io, func(keys keyManager) error {
		all, err := keys.list(ctx, c.Workspace)
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
		sayText(table, "ID\tNAME\tKEY\tCREATED\tREVOKED\n")
		for _, key := range all {
			revoked := "-"
			if key.RevokedAt != nil {
				revoked = key.RevokedAt.UTC().Format(time.RFC3339)
			}
			say(table, "%s\t%s\t…%s\t%s\t%s\n", key.ID, key.Name, key.Hint, key.CreatedAt.UTC().Format(time.RFC3339), revoked)
		}
		return table.Flush()
	})
}

// Run revokes a key.
func (c keyRevokeCmd) Run(ctx context.Context, io *streams) error {
	return c.manage(ctx, io, func(keys keyManager) error { return keys.revoke(ctx, c.Workspace, c.ID) })
}

// keyManager is key management, through a running server or without one.
type keyManager interface {
	create(ctx context.Context, in httpapi.AdminCreate) (httpapi.AdminKey, error)
	list(ctx context.Context, workspace string) ([]httpapi.AdminKey, error)
	revoke(ctx context.Context, workspace, id string) error
}

// manage calls do with the running server's keys, or with the database's own
// when no server runs.
func (f keyFlags) manage(ctx context.Context, io *streams, do func(keyManager) error) error {
	return f.administer(ctx, io, func(server *client) error {
		return do(socketKeys{server})
	}, func(_ string, db *store.Store) error {
		return do(storeKeys{alone(db)})
	})
}

// storeKeys manages keys in a database that this process has opened.
type storeKeys struct{ service httpapi.AdminKeys }

func (s storeKeys) create(ctx context.Context, in httpapi.AdminCreate) (httpapi.AdminKey, error) {
	return httpapi.AdminMake(ctx, s.service, in)
}

func (s storeKeys) list(ctx context.Context, workspace string) ([]httpapi.AdminKey, error) {
	return httpapi.AdminList(ctx, s.service, workspace)
}

func (s storeKeys) revoke(ctx context.Context, workspace, id string) error {
	return httpapi.AdminRevoke(ctx, s.service, workspace, id)
}

// socketKeys asks a running server.
type socketKeys struct{ client *client }

func (s socketKeys) create(ctx context.Context, in httpapi.AdminCreate) (key httpapi.AdminKey, err error) {
	res, err := s.client.send(ctx, http.MethodPost, "/keys", nil, in)
	if err != nil {
		return key, err
	}
	defer res.Body.Close()
	return key, json.NewDecoder(res.Body).Decode(&key)
}

func (s socketKeys) list(ctx context.Context, workspace string) (keys []httpapi.AdminKey, err error) {
	return keys, s.client.get(ctx, "/keys", url.Values{"workspace": {workspace}}, &keys)
}

func (s socketKeys) revoke(ctx context.Context, workspace, id string) error {
	res, err := s.client.send(ctx, http.MethodPost, "/keys/"+url.PathEscape(id)+"/revoke", url.Values{"workspace": {workspace}}, nil)
	if err != nil {
		return err
	}
	return res.Body.Close()
}
