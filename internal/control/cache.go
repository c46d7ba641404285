package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atoll-run/atoll/internal/image"
)

// DefaultLayerQuota is how many bytes of layers are kept beyond what is in use
// when the operator says nothing: 20 GiB.
const DefaultLayerQuota = 20 << 30

// cleanupEvery is how often layers over the quota are looked for.
const cleanupEvery = 10 * time.Minute

// CacheLayer is one package layer in the cache, for the operator.
type CacheLayer struct {
	// Key names the layer in the store.
	Key string `json:"key"`
	// Manager is whose packages it holds.
	Manager string `json:"manager"`
	// Entries are the environment's entries that it was built for.
	Entries []string `json:"entries"`
	// SizeBytes is what it takes on the disk, in whole blocks, and Inodes how
	// many files, directories and links it has: quotas count both.
	SizeBytes int64 `json:"size_bytes"`
	// Inodes counts files, directories and links.
	Inodes  int64 `json:"inodes"`
	Users   int   `json:"users"`   // environments that refer to it
	Mounted bool  `json:"mounted"` // a sandbox stands on it now
	// Hits is how often a build found it there.
	Hits int64 `json:"hits"`
	// CreatedAt is when it was committed.
	CreatedAt time.Time `json:"created_at"`
	// LastUsed is when a build or a sandbox last took it.
	LastUsed time.Time `json:"last_used"`
}

// CacheTemplate is one built version of a template, for the operator.
type CacheTemplate struct {
	image.TemplateVersion
	Users int `json:"users"` // environments that refer to it
}

// CacheState is what the caches hold, least recently used first.
type CacheState struct {
	// Layers are the package layers; never null.
	Layers []CacheLayer `json:"layers"`
	// Templates are the built versions of templates; never null.
	Templates []CacheTemplate `json:"templates"`
	SizeBytes int64           `json:"size_bytes"` // of the layers, in whole blocks
	// QuotaBytes is what the layers may take before a clean-up; 0 means no bound.
	QuotaBytes int64 `json:"quota_bytes"`
	// Downloads are what package managers downloaded, kept for later installs.
	Downloads image.DownloadUsage `json:"downloads"`
}

// CachePruned is what a clean-up removed.
type CachePruned struct {
	// Keys are the layers that went; never null.
	Keys []string `json:"keys"`
	// Bytes is what they took on the disk.
	Bytes int64 `json:"bytes"`
	// Templates are the digests of old versions of templates.
	Templates []string `json:"templates"`
	// TemplateBytes is what they took on the disk.
	TemplateBytes int64 `json:"template_bytes"`
	// Downloads and DownloadBytes count the files of the download cache.
	Downloads int `json:"downloads"`
	// DownloadBytes is what the files took on the disk.
	DownloadBytes int64 `json:"download_bytes"`
}

// TemplateVersions are the built versions of templates; *image.Templates has them.
type TemplateVersions interface {
	Versions() ([]image.TemplateVersion, error)
	Prune(ctx context.Context, inUse func() (map[string]bool, error), quota int64) (image.TemplatesPruned, error)
}

// Cache shows the layer cache and keeps it within its quota.
type Cache struct {
	// Store says which environments refer to layers. Required.
	Store BuildStore
	// Builder has the layer store. Required.
	Builder *image.Builder
	// Workspaces lists them, to find one by its name; the store does.
	Workspaces interface {
		ListWorkspaces(ctx context.Context) ([]Workspace, error)
	}
	// Templates are cleaned up with the layers that stand on them.
	Templates TemplateVersions
	// Builds under way use templates that no record names yet; nil without a server.
	Builds *Builds
	// Downloads keeps within its own quota; it is shown and pruned with the layers.
	Downloads *image.Downloads
	// Quota in bytes; zero means DefaultLayerQuota.
	Quota int64
	// Report is told what each clean-up did; it may be nil.
	Report func(CachePruned, error)
}

func (c *Cache) quota() int64 {
	if c.Quota > 0 {
		return c.Quota
	}
	return DefaultLayerQuota
}

// State lists the layers.
func (c *Cache) State(ctx context.Context) (CacheState, error) {
	users, bases, err := c.users(ctx)
	if err != nil {
		return CacheState{}, err
	}
	usage, err := c.Builder.Store().Usage()
	if err != nil {
		return CacheState{}, fmt.Errorf("listing layers: %w", err)
	}
	out := CacheState{Layers: make([]CacheLayer, 0, len(usage)), QuotaBytes: c.quota()}
	for _, u := range usage {
		out.SizeBytes += u.AllocatedBytes
		out.Layers = append(out.Layers, CacheLayer{Key: u.Key, Manager: u.Manager, Entries: u.Entries, SizeBytes: u.AllocatedBytes, Inodes: u.Inodes,
			Users: users[u.Key], Mounted: u.Mounted, Hits: u.Hits, CreatedAt: u.CreatedAt, LastUsed: u.LastUsed})
	}
	versions, err := c.Templates.Versions()
	if err != nil {
		return CacheState{}, fmt.Errorf("listing templates: %w", err)
	}
	out.Templates = make([]CacheTemplate, 0, len(versions))
	for _, v := range versions {
		out.Templates = append(out.Templates, CacheTemplate{v, bases[v.Digest]})
	}
	if out.Downloads, err = c.Downloads.Usage(); err != nil {
		return CacheState{}, err
	}
	return out, nil
}

// Prune removes every layer and every old version of a template that no
// environment, session or build uses, and all downloads: builds that run keep those that they were given.
func (c *Cache) Prune(ctx context.Context) (CachePruned, error) {
	out, err := c.prune(ctx, 0)
	if err != nil {
		return out, err
	}
	gone, err := c.Downloads.Prune(0)
	out.Downloads, out.DownloadBytes = gone.Files, gone.SizeBytes
	return out, err
}

// prune removes unused layers, least recently used first, until quota holds, and
// then old versions of templates, until both together are within it.
func (c *Cache) prune(ctx context.Context, quota int64) (CachePruned, error) {
	gone, err := c.Builder.Prune(ctx, func() (map[string]bool, error) {
		users, _, err := c.users(ctx)
		return named(users), err
	}, quota)
	out := CachePruned{Keys: gone.Keys, Bytes: gone.Bytes, Templates: []string{}}
	if out.Keys == nil {
		out.Keys = []string{}
	}
	if err != nil {
		return out, fmt.Errorf("pruning layers: %w", err)
	}
	usage, err := c.Builder.Store().Usage()
	if err != nil {
		return out, fmt.Errorf("listing layers: %w", err)
	}
	for _, u := range usage {
		quota -= u.AllocatedBytes
	}
	old, err := c.Templates.Prune(ctx, func() (map[string]bool, error) {
		_, bases, err := c.users(ctx)
		used := named(bases)
		if c.Builds != nil {
			c.Builds.addBases(used)
		}
		return used, err
	}, max(0, quota))
	out.Templates, out.TemplateBytes = append(out.Templates, old.Digests...), old.Bytes
	if err != nil {
		return out, fmt.Errorf("pruning templates: %w", err)
	}
	return out, nil
}

// users counts the environments that refer to each layer and to each template
// version.
func (c *Cache) users(ctx context.Context) (layers, bases map[string]int, err error) {
	layers, bases = map[string]int{}, map[string]int{}
	err = c.Store.ReferencedLayers(ctx, func(_, base string, keys []string) error {
		bases[base]++
		for _, key := range keys {
			layers[key]++
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading which layers are used: %w", err)
	}
	return layers, bases, nil
}

func named(counts map[string]int) map[string]bool {
	names := make(map[string]bool, len(counts))
	for name := range counts {
		names[name] = true
	}
	return names
}

// Run keeps layers and downloads within their quotas until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	tick := time.NewTicker(cleanupEvery)
	defer tick.Stop()
	for {
		gone, err := c.prune(ctx, c.quota())
		err = errors.Join(err, c.Downloads.Tidy())
		if c.Report != nil && ctx.Err() == nil {
			c.Report(gone, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
