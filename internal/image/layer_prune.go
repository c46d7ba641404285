package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LayerUsage is what the store knows about one layer, for people and for
// clean-up.
type LayerUsage struct {
	Layer
	// Children counts the layers that stand directly on this one.
	Children int `json:"children"`
	// Hits counts the builds that found this layer made.
	Hits int64 `json:"hits"`
	// LastUsed is when a build or a sandbox last took the layer.
	LastUsed time.Time `json:"last_used"`
	// Mounted is true while some overlay mount of this machine uses the layer.
	Mounted bool `json:"mounted"`
}

// Usage lists all layers, least recently used first.
func (s *Store) Usage() ([]LayerUsage, error) {
	mounted, err := mountedKeys()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []LayerUsage
	children := map[string]int{}
	for _, family := range s.families {
		for _, l := range family {
			u := LayerUsage{Layer: *l, LastUsed: l.CreatedAt, Mounted: mounted[l.Key]}
			path := filepath.Join(s.dir, l.Key, "used")
			if st, err := os.Stat(path); err == nil && st.ModTime().After(l.CreatedAt) {
				u.LastUsed = st.ModTime()
			}
			u.Hits = readHits(path)
			children[l.Parent]++
			all = append(all, u)
		}
	}
	for i := range all {
		all[i].Children = children[all[i].Key]
	}
	slices.SortFunc(all, func(a, b LayerUsage) int {
		if c := a.LastUsed.Compare(b.LastUsed); c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
	return all, nil
}

// Pruned says what a clean-up removed.
type Pruned struct {
	// Keys are the layers that went.
	Keys  []string
	Bytes int64 // of blocks on the disk
}

// Prune removes layers that nobody refers to, least recently used first and
// children before parents, until the store takes at most quota bytes of blocks
// and an inode for each 16 KiB of it; quota 0 removes all of them. inUse answers which layers environments, sessions and
// running builds refer to; it is asked once, while no layer can be added, and
// everything below a layer in use stays too. A mounted layer is never touched.
func (s *Store) Prune(ctx context.Context, inUse func() (map[string]bool, error), quota int64) (Pruned, error) {
	var out Pruned
	all, err := s.Usage()
	if err != nil {
		return out, err
	}
	keys, err := inUse()
	if err != nil {
		return out, fmt.Errorf("pruning layers: %w", err)
	}
	byKey := map[string]*LayerUsage{}
	var total, inodes int64
	for i := range all {
		byKey[all[i].Key] = &all[i]
		total, inodes = total+all[i].AllocatedBytes, inodes+all[i].Inodes
	}
	over := func() bool { return total > quota || inodes > inodeQuota(quota) }
	keep := map[string]bool{}
	for _, l := range all {
		for at := &l; at != nil && (keys[l.Key] || l.Mounted) && !keep[at.Key]; at = byKey[at.Parent] {
			keep[at.Key] = true
		}
	}
	// A round removes leaves only, so that a child always goes before its parent.
	for removed := true; removed && over(); {
		removed = false
		for _, l := range all {
			u := byKey[l.Key]
			if u == nil || keep[l.Key] || u.Children > 0 || !over() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return out, err
			}
			gone, err := s.remove(u)
			if err != nil {
				return out, err
			}
			keep[l.Key] = !gone
			if !gone {
				continue
			}
			if parent := byKey[u.Parent]; parent != nil {
				parent.Children--
			}
			delete(byKey, l.Key)
			total, inodes = total-u.AllocatedBytes, inodes-u.Inodes
			out.Keys, out.Bytes = append(out.Keys, l.Key), out.Bytes+u.AllocatedBytes
			removed = true
		}
	}
	return out, nil
}

// InUseError says that a layer cannot be removed now.
type InUseError struct {
	Key string // of the layer, or of one that stands on it
	// Mounts are the directories of this machine where it is mounted; empty if
	// it is mounted in a place that this process does not see, or if a build
	// stands on it.
	Mounts []string
	Build  bool // a build stands on it, or an environment is about to
}

// Error says what uses the layer.
func (e *InUseError) Error() string {
	what := "a sandbox has it mounted"
	if e.Build {
		what = "a build stands on it"
	}
	if len(e.Mounts) > 0 {
		what = "it is mounted at " + strings.Join(e.Mounts, ", ")
	}
	return fmt.Sprintf("layer %.12s is in use: %s", e.Key, what)
}

// Drop removes a layer and all that stand on it, whoever refers to them: those
// have them built again. It is an *InUseError, and nothing is removed, if one of
// them is mounted or a build stands on it; ErrNoLayer if there is none of the key.
func (s *Store) Drop(key string) (Pruned, error) {
	var out Pruned
	if _, err := s.Layer(key); err != nil {
		return out, err
	}
	trash, err := s.drop(key, &out)
	for _, dir := range trash {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return out, fmt.Errorf("dropping a layer: %w", err)
	}
	return out, nil
}

// drop moves layers to the trash, what stands on others before them.
func (s *Store) drop(key string, out *Pruned) (trash []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	doomed := s.above(key)
	mounted, err := mountedKeys()
	if err != nil {
		return nil, err
	}
	for _, l := range doomed {
		if mounted[l.Key] || s.pins[l.Key] > 0 {
			return nil, &InUseError{Key: l.Key, Build: s.pins[l.Key] > 0, Mounts: mountsOf(l.Key)}
		}
	}
	for _, l := range slices.Backward(doomed) {
		dir, err := s.toTrash(filepath.Join(s.dir, l.Key))
		if err != nil {
			return trash, err
		}
		s.forget(l)
		trash = append(trash, dir)
		out.Keys, out.Bytes = append(out.Keys, l.Key), out.Bytes+l.AllocatedBytes
	}
	return trash, nil
}

// above lists a layer and all that stand on it, each behind the one below it;
// the caller holds mu.
func (s *Store) above(key string) []*Layer {
	children := map[string][]*Layer{}
	var found []*Layer
	for _, family := range s.families {
		for _, l := range family {
			children[l.Parent] = append(children[l.Parent], l)
			if l.Key == key {
				found = append(found, l)
			}
		}
	}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].Key]...)
	}
	return found
}

// forget takes a layer out of its family; the caller holds mu.
func (s *Store) forget(l *Layer) {
	delete(s.families[l.Family], l.Key)
	if len(s.families[l.Family]) == 0 {
		delete(s.families, l.Family)
	}
}

// mountsOf lists where this process sees overlays with a layer.
func mountsOf(key string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var at []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(line, " overlay ") && strings.Contains(line, key) {
			at = append(at, f[4])
		}
	}
	return at
}

// remove deletes one layer unless it came into use since it was listed.
func (s *Store) remove(u *LayerUsage) (bool, error) {
	s.mu.Lock()
	mounted, err := mountedKeys()
	if err != nil || mounted[u.Key] || s.pins[u.Key] > 0 {
		s.mu.Unlock()
		return false, err
	}
	for _, family := range s.families {
		for _, l := range family {
			if l.Parent == u.Key { // a build added it a moment ago
				s.mu.Unlock()
				return false, nil
			}
		}
	}
	s.forget(&u.Layer)
	trash, err := s.toTrash(filepath.Join(s.dir, u.Key))
	s.mu.Unlock()
	if err != nil {
		return false, fmt.Errorf("pruning layers: %w", err)
	}
	s.step(stepTrashed)
	if err := os.RemoveAll(trash); err != nil {
		return false, fmt.Errorf("pruning layers: %w", err)
	}
	return true, nil
}

// mountedKeys returns the keys of layers and the digests of templates that
// overlay mounts use, in any mount namespace that this process can see: its own table and those of the
// processes of this machine.
func mountedKeys() (map[string]bool, error) {
	keys := map[string]bool{}
	if err := scanMounts("/proc/self/mountinfo", keys); err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	own, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[string]bool{own: true}
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		ns, err := os.Readlink(filepath.Join(filepath.Dir(table), "ns", "mnt"))
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		// A process may end between the listing and the reading.
		if err := scanMounts(table, keys); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("reading a mount table: %w", err)
		}
	}
	return keys, nil
}

func scanMounts(table string, keys map[string]bool) error {
	f, err := os.Open(table)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), " overlay ") {
			continue
		}
		// Directories may be given relative or through another path, so the
		// key alone decides: 64 hexadecimal digits are nobody else's name.
		for _, key := range anyLayerKey.FindAllString(lines.Text(), -1) {
			keys[key] = true
		}
	}
	return lines.Err()
}
