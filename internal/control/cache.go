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
	Key       string    `json:"key"`
	Manager   string    `json:"manager"`
	Entries   []string  `json:"entries"`
	SizeBytes int64     `json:"size_bytes"`
	Users     int       `json:"users"`   // environments that refer to it
	Mounted   bool      `json:"mounted"` // a sandbox stands on it now
	Hits      int64     `json:"hits"`
	CreatedAt time.Time `json:"created_at"`
	LastUsed  time.Time `json:"last_used"`
}

// CacheState is what the layer cache holds, least recently used first.
type CacheState struct {
	Layers     []CacheLayer `json:"layers"`
	SizeBytes  int64        `json:"size_bytes"`
	QuotaBytes int64        `json:"quota_bytes"`
	// Downloads are what package managers downloaded, kept for later installs.
	Downloads image.DownloadUsage `json:"downloads"`
}

// CachePruned is what a clean-up removed.
type CachePruned struct {
	Keys  []string `json:"keys"`
	Bytes int64    `json:"bytes"`
	// Downloads and DownloadBytes count the files of the download cache.
	Downloads     int   `json:"downloads"`
	DownloadBytes int64 `json:"download_bytes"`
}

// Cache shows the layer cache and keeps it within its quota.
type Cache struct {
	Store   BuildStore
	Builder *image.Builder
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
	users, err := c.users(ctx)
	if err != nil {
		return CacheState{}, err
	}
	usage, err := c.Builder.Store().Usage()
	if err != nil {
		return CacheState{}, fmt.Errorf("listing layers: %w", err)
	}
	out := CacheState{Layers: make([]CacheLayer, 0, len(usage)), QuotaBytes: c.quota()}
	for _, u := range usage {
		out.SizeBytes += u.SizeBytes
		out.Layers = append(out.Layers, CacheLayer{Key: u.Key, Manager: u.Manager, Entries: u.Entries, SizeBytes: u.SizeBytes,
			Users: users[u.Key], Mounted: u.Mounted, Hits: u.Hits, CreatedAt: u.CreatedAt, LastUsed: u.LastUsed})
	}
	if out.Downloads, err = c.Downloads.Usage(); err != nil {
		return CacheState{}, err
	}
	return out, nil
}

// Prune removes every layer that no environment, session or build uses, and all
// downloads: builds that run keep those that they were given.
func (c *Cache) Prune(ctx context.Context) (CachePruned, error) {
	out, err := c.prune(ctx, 0)
	if err != nil {
		return out, err
	}
	gone, err := c.Downloads.Prune(0)
	out.Downloads, out.DownloadBytes = gone.Files, gone.SizeBytes
	return out, err
}

// prune removes unused layers, least recently used first, until quota holds.
func (c *Cache) prune(ctx context.Context, quota int64) (CachePruned, error) {
	gone, err := c.Builder.Prune(ctx, func() (map[string]bool, error) {
		users, err := c.users(ctx)
		used := make(map[string]bool, len(users))
		for key := range users {
			used[key] = true
		}
		return used, err
	}, quota)
	out := CachePruned{Keys: gone.Keys, Bytes: gone.Bytes}
	if out.Keys == nil {
		out.Keys = []string{}
	}
	if err != nil {
		return out, fmt.Errorf("pruning layers: %w", err)
	}
	return out, nil
}

// users counts the environments that refer to each layer.
func (c *Cache) users(ctx context.Context) (map[string]int, error) {
	users := map[string]int{}
	err := c.Store.ReferencedLayers(ctx, func(_ string, layers []string) error {
		for _, key := range layers {
			users[key]++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading which layers are used: %w", err)
	}
	return users, nil
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
