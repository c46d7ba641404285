package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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
}

type cacheShowCmd struct {
	hostFlags
	JSON bool `name:"json" help:"Print all that is known, as JSON."`
}

type cachePruneCmd struct{ hostFlags }

// Run prints the layers, least recently used first.
func (c cacheShowCmd) Run(ctx context.Context, io *streams) error {
	return c.manageCache(ctx, io, func(m cacheManager) error {
		state, err := m.State(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(io.out).Encode(state)
		}
		table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "LAYER\tMANAGER\tSIZE\tUSERS\tMOUNTED\tHITS\tLAST USED\tPACKAGES")
		for _, l := range state.Layers {
			fmt.Fprintf(table, "%.12s\t%s\t%s\t%d\t%t\t%d\t%s\t%s\n", l.Key, l.Manager, sizeText(l.SizeBytes), l.Users, l.Mounted, l.Hits,
				l.LastUsed.UTC().Format(time.RFC3339), strings.Join(l.Entries, " "))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(table, "TEMPLATE\tNAME\tSIZE\tUSERS\tMOUNTED\tSERVERS\tLAST USED\tSTATE")
		for _, v := range state.Templates {
			word := "old"
			if v.Current {
				word = "current"
			}
			fmt.Fprintf(table, "%.12s\t%s\t%s\t%d\t%t\t%d\t%s\t%s\n", v.Digest, v.Template, sizeText(v.SizeBytes), v.Users, v.Mounted, v.Servers,
				v.LastUsed.UTC().Format(time.RFC3339), word)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		d := state.Downloads
		_, err = fmt.Fprintf(io.out, "%d layers, %s of %s\n%d downloads, %s of %s\n", len(state.Layers), sizeText(state.SizeBytes), sizeText(state.QuotaBytes),
			d.Files, sizeText(d.SizeBytes), sizeText(d.QuotaBytes))
		return err
	})
}

// Run removes what nothing uses and says what that was.
func (c cachePruneCmd) Run(ctx context.Context, io *streams) error {
	return c.manageCache(ctx, io, func(m cacheManager) error {
		gone, err := m.Prune(ctx)
		for _, key := range gone.Keys {
			fmt.Fprintf(io.out, "removed %.12s\n", key)
		}
		for _, digest := range gone.Templates {
			fmt.Fprintf(io.out, "removed template %.12s\n", digest)
		}
		fmt.Fprintf(io.out, "%d layers removed, %s\n%d template versions removed, %s\n%d downloads removed, %s\n", len(gone.Keys), sizeText(gone.Bytes),
			len(gone.Templates), sizeText(gone.TemplateBytes), gone.Downloads, sizeText(gone.DownloadBytes))
		return err
	})
}

// cacheManager is the layer cache, through a running server or without one.
type cacheManager interface {
	State(ctx context.Context) (control.CacheState, error)
	Prune(ctx context.Context) (control.CachePruned, error)
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
		return do(&control.Cache{Store: db, Builder: builder, Templates: templates, Downloads: downloads, Quota: int64(cfg.Packages.Quota)})
	})
}

// socketCache asks a running server.
type socketCache struct{ client *client }

func (s socketCache) State(ctx context.Context) (out control.CacheState, err error) {
	return out, s.client.get(ctx, "/cache", nil, &out)
}

func (s socketCache) Prune(ctx context.Context) (out control.CachePruned, err error) {
	res, err := s.client.send(ctx, http.MethodPost, "/cache/prune", nil, nil)
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	return out, json.NewDecoder(res.Body).Decode(&out)
}
