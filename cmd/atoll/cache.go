package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/store"
)

type cacheCmd struct {
	Show  cacheShowCmd  `cmd:"" help:"List the package layers and the versions of templates: size, users, last use, hits; and the size of the downloads."`
	Prune cachePruneCmd `cmd:"" help:"Remove every package layer and old template version that no environment or session uses, and all downloads."`
	Drop  cacheDropCmd  `cmd:"" help:"Remove one package layer and those above it, unless a sandbox or a build uses them, whatever environments refer to it."`
	Renew cacheRenewCmd `cmd:"" help:"Have a workspace install all packages again: layers made before are not used for its new sandboxes."`
}

type cacheShowCmd struct {
	hostFlags
	JSON bool `name:"json" help:"Print all that is known, as JSON."`
}

type cachePruneCmd struct{ hostFlags }

type cacheDropCmd struct {
	hostFlags
	Key string `arg:"" help:"Key of the layer, or the beginning of it, as 'atoll cache show' lists it."`
}

type cacheRenewCmd struct {
	hostFlags
	Workspace string `default:"default" help:"Name or id of the workspace."`
}

// Run prints the layers, least recently used first.
func (c cacheShowCmd) Run(ctx context.Context, io *streams) error {
	return c.manageCache(ctx, io, func(m cacheManager) error {
		state, err := m.State(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return sayJSON(io.out, state, "")
		}
		table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
		sayText(table, "LAYER\tMANAGER\tSIZE\tUSERS\tMOUNTED\tHITS\tLAST USED\tPACKAGES\n")
		for _, l := range state.Layers {
			say(table, "%.12s\t%s\t%s\t%d\t%t\t%d\t%s\t%s\n", l.Key, l.Manager, sizeText(l.SizeBytes), l.Users, l.Mounted, l.Hits,
				l.LastUsed.UTC().Format(time.RFC3339), strings.Join(l.Entries, " "))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		sayText(table, "TEMPLATE\tNAME\tSIZE\tUSERS\tMOUNTED\tSERVERS\tLAST USED\tSTATE\n")
		for _, v := range state.Templates {
			word := "old"
			if v.Current {
				word = "current"
			}
			say(table, "%.12s\t%s\t%s\t%d\t%t\t%d\t%s\t%s\n", v.Digest, v.Template, sizeText(v.SizeBytes), v.Users, v.Mounted, v.Servers,
				v.LastUsed.UTC().Format(time.RFC3339), word)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		d := state.Downloads
		return say(io.out, "%d layers, %s of %s\n%d downloads, %s of %s\n", len(state.Layers), sizeText(state.SizeBytes), sizeText(state.QuotaBytes),
			d.Files, sizeText(d.SizeBytes), sizeText(d.QuotaBytes))
	})
}

// Run removes what nothing uses and says what that was.
func (c cachePruneCmd) Run(ctx context.Context, io *streams) error {
	return c.manageCache(ctx, io, func(m cacheManager) error {
		gone, err := m.Prune(ctx)
		for _, key := range gone.Keys {
			say(io.out, "removed %.12s\n", key)
		}
		for _, digest := range gone.Templates {
			say(io.out, "removed template %.12s\n", digest)
		}
		say(io.out, "%d layers removed, %s\n%d template versions removed, %s\n%d downloads removed, %s\n", len(gone.Keys), sizeText(gone.Bytes),
			len(gone.Templates), sizeText(gone.TemplateBytes), gone.Downloads, sizeText(gone.DownloadBytes))
		return err
	})
}

// Run removes a layer and says what used it.
func (c cacheDropCmd) Run(ctx context.Context, io *streams) error {
	return c.manageCache(ctx, io, func(m cacheManager) error {
		gone, err := m.Drop(ctx, c.Key)
		for _, l := range gone.Layers {
			say(io.out, "removed %.12s (%s: %s), %s\n", l.Key, l.Manager, strings.Join(l.Entries, " "), sizeText(l.SizeBytes))
		}
		for _, id := range gone.Environments {
			say(io.out, "environment %s refers to it: its next session installs again\n", id)
		}
		return err
	})
}

// Run raises the epoch of a workspace's layers.
func (c cacheRenewCmd) Run(ctx context.Context, io *streams) error {
	return c.manageCache(ctx, io, func(m cacheManager) error {
		raised, err := m.RaiseEpoch(ctx, c.Workspace)
		if err != nil {
			return err
		}
		err = say(io.out, "workspace %s: layers of epoch %d from now on; environments install again with their next session\n", raised.Workspace, raised.Epoch)
		return err
	})
}

// cacheManager is the layer cache, through a running server or without one.
type cacheManager interface {
	State(ctx context.Context) (control.CacheState, error)
	Prune(ctx context.Context) (control.CachePruned, error)
	Drop(ctx context.Context, key string) (control.CacheDropped, error)
	RaiseEpoch(ctx context.Context, workspace string) (control.CacheEpoch, error)
}

// manageCache calls do with the running server's cache, or with the data
// directory's own when no server runs.
func (f hostFlags) manageCache(ctx context.Context, io *streams, do func(cacheManager) error) error {
	cfg, err := f.load(io, defaultListen)
	if err != nil {
		return err
	}
	return f.administer(ctx, io, func(server *client) error {
		return do(socketCache{server})
	}, func(dir string, db *store.Store) error {
		builder, err := image.NewBuilder(image.BuilderConfig{LayersDir: filepath.Join(dir, layersDir),
			OpenBox: func(context.Context, image.BoxSpec) (image.Box, error) { return nil, errors.New("no server runs") }})
		if err != nil {
			return err
		}
		defer builder.Close()
		downloads, err := cfg.openDownloads(nil)
		if err != nil {
			return err
		}
		templates, err := cfg.templates(nil, nil)
		if err != nil {
			return err
		}
		return do(&control.Cache{Store: db, Workspaces: db, Builder: builder, Templates: templates, Downloads: downloads, Quota: int64(cfg.Packages.Quota)})
	})
}

// socketCache asks a running server.
type socketCache struct{ client *client }

func (s socketCache) State(ctx context.Context) (out control.CacheState, err error) {
	return out, s.client.get(ctx, "/cache", nil, &out)
}

func (s socketCache) Prune(ctx context.Context) (out control.CachePruned, err error) {
	return out, s.post(ctx, "/cache/prune", nil, &out)
}

func (s socketCache) Drop(ctx context.Context, key string) (out control.CacheDropped, err error) {
	return out, s.post(ctx, "/cache/layers/"+url.PathEscape(key)+"/drop", nil, &out)
}

func (s socketCache) RaiseEpoch(ctx context.Context, workspace string) (out control.CacheEpoch, err error) {
	return out, s.post(ctx, "/cache/epoch", url.Values{"workspace": {workspace}}, &out)
}

func (s socketCache) post(ctx context.Context, path string, query url.Values, out any) error {
	res, err := s.client.send(ctx, http.MethodPost, path, query, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(out)
}
