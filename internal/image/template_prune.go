package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/durable"
)

// Servers that share a cache know nothing of each other's environments, and may
// be down. So each leaves its name in the versions that it uses: a file in
// bases/DIGEST/users with the path of its data directory, which counts for as
// long as that directory is there. Whoever holds, or removes a version, has the
// lock of all versions meanwhile.
const (
	versionUsers = "users"
	// holdFor is how long a server that asked for a version keeps it before one
	// of its builds names it.
	holdFor = 5 * time.Minute
	// unclaimedFor is how long a version that no server named is left alone: it
	// was built on a command line, or by a release that left no names.
	unclaimedFor = 24 * time.Hour
)

// TemplateVersion is a built version of a template, for people and for clean-up.
type TemplateVersion struct {
	// Template is the name it was built for.
	Template string `json:"template"`
	// Digest names the version.
	Digest string `json:"digest"`
	// SizeBytes is what it takes on the disk.
	SizeBytes int64 `json:"size_bytes"`
	// CreatedAt is when it was built.
	CreatedAt time.Time `json:"created_at"`
	// LastUsed is when a server last had a use for it.
	LastUsed time.Time `json:"last_used"`
	// Current is true for the version that new environments get.
	Current bool `json:"current"`
	// Servers counts the data directories whose servers use it, this one among them.
	Servers int `json:"servers"`
	// Mounted is true while some overlay mount of this machine uses the version.
	Mounted bool `json:"mounted"`

	own     time.Time // when this server last asked for it; zero if it does not hold it
	claimed bool      // some server said something of it
	stale   []string  // names of servers whose data is gone
}

// Versions lists the built versions of all templates, least recently used first.
func (t *Templates) Versions() ([]TemplateVersion, error) {
	mounted, err := mountedKeys()
	if err != nil {
		return nil, err
	}
	current := map[string]bool{}
	for name := range t.decls {
		if b, ok := t.Lookup(name); ok {
			current[b.Digest] = true
		}
	}
	var out []TemplateVersion
	for _, m := range t.versions("") {
		v := TemplateVersion{Template: m.Template, Digest: m.Digest, SizeBytes: m.SizeBytes, CreatedAt: m.CreatedAt, LastUsed: m.CreatedAt,
			Current: current[m.Digest], Mounted: mounted[m.Digest]}
		if err := t.readUsers(&v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b TemplateVersion) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), strings.Compare(a.Digest, b.Digest))
	})
	return out, nil
}

// readUsers fills in which servers use a version. The names of those whose data
// directory is gone do not count.
func (t *Templates) readUsers(v *TemplateVersion) error {
	dir := filepath.Join(t.basesDir(), v.Digest, versionUsers)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading who uses a template: %w", err)
	}
	v.claimed = true
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		info, serr := e.Info()
		if err != nil || serr != nil {
			continue // taken back meanwhile
		}
		if info.ModTime().After(v.LastUsed) {
			v.LastUsed = info.ModTime()
		}
		if string(data) == t.holder {
			v.own = info.ModTime()
		}
		if _, err := os.Stat(string(data)); err == nil {
			v.Servers++
		} else if errors.Is(err, fs.ErrNotExist) {
			v.stale = append(v.stale, filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

// holdFile is where this server's name is in a version.
func (t *Templates) holdFile(digest string) string {
	sum := sha256.Sum256([]byte(t.holder))
	return filepath.Join(t.basesDir(), digest, versionUsers, hex.EncodeToString(sum[:8]))
}

// hold leaves this server's name in a version. It is fs.ErrNotExist if the
// version is gone.
func (t *Templates) hold(ctx context.Context, digest string) error {
	if t.holder == "" {
		return nil
	}
	file := t.holdFile(digest)
	if info, err := os.Stat(file); err == nil && time.Since(info.ModTime()) < holdFor/2 {
		return nil
	}
	lock, err := t.lockVersions(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return t.holdLocked(digest)
}

func (t *Templates) holdLocked(digest string) error {
	file := t.holdFile(digest)
	// Not MkdirAll: it would make the version itself.
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("holding a template: %w", err)
	}
	if err := os.WriteFile(file, []byte(t.holder), 0o644); err != nil {
		return fmt.Errorf("holding a template: %w", err)
	}
	return nil
}

func (t *Templates) lockVersions(ctx context.Context) (*os.File, error) {
	return lockFile(ctx, filepath.Join(t.cache, "locks", "versions.lock"), func() {})
}

// TemplatesPruned says which versions a clean-up removed.
type TemplatesPruned struct {
	// Digests are the versions that went.
	Digests []string
	// Bytes is what they took on the disk.
	Bytes int64
}

// Prune removes old versions of templates, least recently used first, until
// those that are not current take at most quota bytes; 0 removes all that can
// go. A version stays while it is current, mounted, or in use by a server: by
// this one if inUse, which is asked once, names its digest, by others as they
// say themselves.
func (t *Templates) Prune(ctx context.Context, inUse func() (map[string]bool, error), quota int64) (TemplatesPruned, error) {
	var out TemplatesPruned
	lock, err := t.lockVersions(ctx)
	if err != nil {
		return out, err
	}
	defer lock.Close()
	if err := os.RemoveAll(t.trash()); err != nil { // what a kill left
		return out, fmt.Errorf("pruning templates: %w", err)
	}
	used, err := inUse()
	if err != nil {
		return out, fmt.Errorf("pruning templates: %w", err)
	}
	all, err := t.Versions()
	if err != nil {
		return out, err
	}
	var total int64
	for i := range all {
		if err := t.settle(&all[i], used[all[i].Digest] || all[i].Current); err != nil {
			return out, err
		}
		if !all[i].Current {
			total += all[i].SizeBytes
		}
	}
	for _, v := range all {
		fresh := !v.claimed && time.Since(v.LastUsed) < unclaimedFor
		if total <= quota || v.Current || v.Mounted || v.Servers > 0 || used[v.Digest] || fresh {
			continue
		}
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if err := t.remove(v.Digest); err != nil {
			return out, err
		}
		total -= v.SizeBytes
		out.Digests, out.Bytes = append(out.Digests, v.Digest), out.Bytes+v.SizeBytes
	}
	return out, nil
}

// settle leaves this server's name in a version that it uses or would use, and
// takes it back from one that it does not use any more; so it does for servers
// that are gone.
func (t *Templates) settle(v *TemplateVersion, used bool) error {
	for _, name := range v.stale {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("letting a template go: %w", err)
		}
	}
	switch {
	case t.holder == "":
	case used && v.own.IsZero():
		if err := t.holdLocked(v.Digest); err != nil {
			return err
		}
		v.claimed, v.Servers = true, v.Servers+1
	case !used && !v.own.IsZero() && time.Since(v.own) > holdFor:
		if err := os.Remove(t.holdFile(v.Digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("letting a template go: %w", err)
		}
		v.Servers--
	}
	return nil
}

// trash is where a version is while it is deleted.
func (t *Templates) trash() string { return filepath.Join(t.cache, "scratch", "trash") }

// remove makes a version vanish at once and then deletes it.
func (t *Templates) remove(digest string) error {
	trash := t.trash()
	if err := os.MkdirAll(filepath.Dir(trash), 0o700); err != nil {
		return fmt.Errorf("pruning templates: %w", err)
	}
	if err := durable.Rename(filepath.Join(t.basesDir(), digest), trash); err != nil {
		return fmt.Errorf("pruning templates: %w", err)
	}
	t.mu.Lock()
	delete(t.known, digest)
	t.mu.Unlock()
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("pruning templates: %w", err)
	}
	return nil
}
