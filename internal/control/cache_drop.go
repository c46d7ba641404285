package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/image"
)

// CacheDropped is what was removed of the layer cache by key.
type CacheDropped struct {
	// Layers are the removed ones: the layer, and all that stood on it before it.
	Layers []CacheLayer `json:"layers"`
	// SizeBytes is what they took on the disk, in whole blocks.
	SizeBytes int64 `json:"size_bytes"`
	// Environments are the ids of those that refer to one of them: their next
	// session installs again.
	Environments []string `json:"environments"`
}

// CacheEpoch is the epoch of a workspace's package layers.
type CacheEpoch struct {
	Workspace string `json:"workspace"` // id
	// Epoch goes into the keys of layers that are built from now on.
	Epoch int64 `json:"epoch"`
}

// Drop removes one layer, by its key or by the beginning of it that no other
// has, and all that stand on it, whatever environments refer to them. What a
// sandbox has mounted, or a build stands on, is a Conflict that says what uses it.
func (c *Cache) Drop(ctx context.Context, key string) (CacheDropped, error) {
	usage, err := c.Builder.Store().Usage()
	if err != nil {
		return CacheDropped{}, fmt.Errorf("listing layers: %w", err)
	}
	byKey := map[string]image.LayerUsage{}
	var found []string
	for _, u := range usage {
		byKey[u.Key] = u
		if len(key) >= 8 && strings.HasPrefix(u.Key, key) {
			found = append(found, u.Key)
		}
	}
	switch {
	case len(key) < 8:
		return CacheDropped{}, Faultf(Invalid, "a layer is named by at least the first 8 digits of its key")
	case len(found) == 0:
		return CacheDropped{}, Faultf(NotFound, "there is no layer %s", printable(key))
	case len(found) > 1:
		return CacheDropped{}, Faultf(Invalid, "%d layers begin with %s", len(found), key)
	}
	users := map[string][]string{} // layer → environments
	if err := c.Store.ReferencedLayers(ctx, func(environment, _ string, keys []string) error {
		for _, k := range keys {
			users[k] = append(users[k], environment)
		}
		return nil
	}); err != nil {
		return CacheDropped{}, fmt.Errorf("reading which layers are used: %w", err)
	}
	gone, err := c.Builder.Store().Drop(found[0])
	var busy *image.InUseError
	if errors.As(err, &busy) {
		return CacheDropped{}, &Fault{Kind: Conflict, Cause: err, Message: busy.Error() + usersText(users[busy.Key])}
	}
	out := CacheDropped{Layers: []CacheLayer{}, SizeBytes: gone.Bytes, Environments: []string{}}
	for _, k := range gone.Keys {
		u := byKey[k]
		out.Layers = append(out.Layers, CacheLayer{Key: k, Manager: u.Manager, Entries: u.Entries, SizeBytes: u.AllocatedBytes, Inodes: u.Inodes,
			Users: len(users[k]), Hits: u.Hits, CreatedAt: u.CreatedAt, LastUsed: u.LastUsed})
		out.Environments = append(out.Environments, users[k]...)
	}
	slices.Sort(out.Environments)
	out.Environments = slices.Compact(out.Environments)
	return out, err
}

// usersText names environments that refer to a layer.
func usersText(environments []string) string {
	switch n := len(environments); {
	case n == 0:
		return ""
	case n > 10:
		return fmt.Sprintf("; %d environments refer to it", n)
	}
	return "; environments that refer to it: " + strings.Join(environments, ", ")
}

// RaiseEpoch has the environments of a workspace, by name or id, install their
// packages again: layers that were made before are not used for new sandboxes of
// it, whatever their age. Sandboxes that run keep what they have, and other
// workspaces keep their layers.
func (c *Cache) RaiseEpoch(ctx context.Context, workspace string) (CacheEpoch, error) {
	all, err := c.Workspaces.ListWorkspaces(ctx)
	if err != nil {
		return CacheEpoch{}, err
	}
	for _, ws := range all {
		if ws.ID != workspace && ws.Name != workspace {
			continue
		}
		// The time makes it another one than that of workspaces which were raised
		// before: theirs may have been made of what was taken back since.
		epoch, err := c.Store.RaiseLayerEpoch(ctx, ws.ID, time.Now().UnixMilli())
		if err != nil {
			return CacheEpoch{}, err
		}
		if c.Builds != nil {
			c.Builds.raised(ws.ID, epoch)
		}
		return CacheEpoch{Workspace: ws.ID, Epoch: epoch}, nil
	}
	return CacheEpoch{}, Faultf(NotFound, "there is no workspace %s", printable(workspace))
}
