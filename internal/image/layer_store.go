package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/durable"
	"golang.org/x/sys/unix"
)

const (
	scratchName = ".scratch" // layers that are being copied
	trashName   = ".trash"   // layers that are being deleted
)

var (
	layerKey    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	anyLayerKey = regexp.MustCompile(`[0-9a-f]{64}`)
)

// Store keeps committed layers, one directory each: tree, manifest.json, log.
// A layer is there completely or not at all, whatever crashed. The files are
// the truth; one process at a time may own a store. Methods may be called at
// the same time.
type Store struct {
	dir     string
	reserve int64 // bytes that stay free on the file system; 0 means [defaultReserve]
	// atStep, when a test sets it, is told each step of a commit or clean-up as it
	// is done.
	atStep func(step string)

	mu       sync.Mutex
	families map[string]map[string]*Layer // family → key → layer, of everything in the store
	pins     map[string]int               // key → running builds that stand on the layer
}

// OpenStore opens the store in dir and makes it if it is absent. What a crash
// left half-made is removed.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir, families: map[string]map[string]*Layer{}, pins: map[string]int{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening layer store: %w", err)
	}
	if err := s.Recover(); err != nil {
		return nil, err
	}
	return s, nil
}

// Recover removes the scratch and trash of a process that died and reads all
// manifests again. It must not be called while a build runs.
func (s *Store) Recover() error {
	for _, name := range []string{scratchName, trashName} {
		if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
			return fmt.Errorf("clearing layer scratch: %w", err)
		}
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
			return fmt.Errorf("clearing layer scratch: %w", err)
		}
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("reading layer store: %w", err)
	}
	families := map[string]map[string]*Layer{}
	for _, e := range entries {
		if !layerKey.MatchString(e.Name()) {
			continue
		}
		l, err := s.Layer(e.Name())
		if errors.Is(err, ErrNoLayer) {
			continue
		}
		if err == nil && l.Inodes == 0 {
			err = l.measure()
		}
		if err != nil {
			return err
		}
		addFamily(families, l)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families = families
	return nil
}

// measure fills in what the manifest of an old version does not say, and notes
// it beside the manifest for the next time.
func (l *Layer) measure() error {
	type room struct{ AllocatedBytes, Inodes int64 }
	name := filepath.Join(filepath.Dir(l.Dir), "room")
	var known room
	if text, err := os.ReadFile(name); err != nil || json.Unmarshal(text, &known) != nil || known.Inodes < 1 {
		if known.AllocatedBytes, known.Inodes, err = treeRoom(l.Dir); err != nil {
			return err
		}
		if text, err = json.Marshal(known); err == nil {
			err = durable.WriteFile(name, text, 0o600, durable.Process)
		}
		if err != nil {
			return fmt.Errorf("noting the size of a layer: %w", err)
		}
	}
	l.AllocatedBytes, l.Inodes = known.AllocatedBytes, known.Inodes
	return nil
}

func addFamily(families map[string]map[string]*Layer, l *Layer) {
	if families[l.Family] == nil {
		families[l.Family] = map[string]*Layer{}
	}
	families[l.Family][l.Key] = l
}

// Layer reads the manifest of a complete layer; ErrNoLayer if there is none.
func (s *Store) Layer(key string) (*Layer, error) {
	if !layerKey.MatchString(key) {
		return nil, ErrNoLayer
	}
	text, err := os.ReadFile(filepath.Join(s.dir, key, "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoLayer
	}
	if err != nil {
		return nil, fmt.Errorf("reading layer manifest: %w", err)
	}
	var l Layer
	if err := json.Unmarshal(text, &l); err != nil || l.Key != key {
		return nil, fmt.Errorf("reading layer manifest: layer %s is damaged: remove its directory to have it built again", key)
	}
	l.Dir = filepath.Join(s.dir, key, "tree")
	return &l, nil
}

// LayerDirs returns the directories of the layers, in the order of the keys.
func (s *Store) LayerDirs(keys []string) ([]string, error) {
	dirs := make([]string, 0, len(keys))
	for _, k := range keys {
		l, err := s.Layer(k)
		if err != nil {
			return nil, fmt.Errorf("layer %.12s: %w", k, err)
		}
		dirs = append(dirs, l.Dir)
	}
	return dirs, nil
}

// Log returns the log of the build that made a layer.
func (s *Store) Log(key string) ([]byte, error) {
	if !layerKey.MatchString(key) {
		return nil, ErrNoLayer
	}
	text, err := os.ReadFile(filepath.Join(s.dir, key, "log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoLayer
	}
	return text, err
}

// newest returns the layer of a family with the highest epoch, or nil.
func (s *Store) newest(family string) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *Layer
	for _, l := range s.families[family] {
		if best == nil || l.Epoch > best.Epoch {
			best = l
		}
	}
	return best
}

// used notes that a layer was given to a session or environment, for the order
// of clean-up.
func (s *Store) used(key string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, key, "used")
	// Only the order of clean-up depends on it: neither synced nor checked.
	if os.WriteFile(path, strconv.AppendInt(nil, readHits(path)+1, 10), 0o600) == nil {
		_ = os.Chtimes(path, now, now)
	}
}

// pin keeps a layer from clean-up until unpin; false if it is not there.
func (s *Store) pin(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.Layer(key); err != nil {
		return false
	}
	s.pins[key]++
	return true
}

func (s *Store) unpin(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[key]--; s.pins[key] <= 0 {
		delete(s.pins, key)
	}
}

// hold pins layers and returns their directories, in the order of the keys.
func (s *Store) hold(keys []string) (dirs []string, release func(), err error) {
	held := 0
	var once sync.Once
	release = func() {
		once.Do(func() {
			for _, key := range keys[:held] {
				s.unpin(key)
			}
		})
	}
	for _, key := range keys {
		if !s.pin(key) {
			release()
			return nil, release, fmt.Errorf("layer %.12s: %w", key, ErrNoLayer)
		}
		held++
		dirs = append(dirs, filepath.Join(s.dir, key, "tree"))
	}
	return dirs, release, nil
}

func readHits(path string) int64 {
	text, _ := os.ReadFile(path)
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// The steps of a commit, in order.
const (
	stepBegun    = "begun"
	stepCopied   = "copied"
	stepLog      = "log written"
	stepManifest = "manifest written"
	stepFlushed  = "file system synced"
	stepRenamed  = "renamed"
	stepSynced   = "directory synced"
	stepTrashed  = "in the trash" // of a clean-up
)

func (s *Store) step(step string) {
	if s.atStep != nil {
		s.atStep(step)
	}
}

// commit copies an upper directory into the store as the layer l, fills in its
// digest, size and directory, and makes it durable. Until it returns the layer
// does not exist; a crash leaves only scratch. Lower directories are those that
// the upper one was mounted over, topmost first.
func (s *Store) commit(ctx context.Context, l *Layer, upper string, lower []string, log []byte) (err error) {
	scratch, err := os.MkdirTemp(filepath.Join(s.dir, scratchName), "layer-")
	if err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	defer os.RemoveAll(scratch)
	s.step(stepBegun)
	tree, err := copyTree(ctx, upper, filepath.Join(scratch, "tree"), lower, s.reserve)
	if err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	l.Digest, l.DigestFormat, l.SizeBytes, l.AllocatedBytes, l.Inodes, l.Files = tree.digest, contentBlocks, tree.size, tree.allocated, tree.inodes, tree.files
	s.step(stepCopied)
	if l.Files == 0 && slices.ContainsFunc(l.Versions, func(v PackageVersion) bool { return !v.present }) {
		return errors.New("committing layer: packages were installed but the upper directory has no files")
	}
	sum := sha256.Sum256(log)
	l.LogDigest = hex.EncodeToString(sum[:])
	manifest, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "log"), log, 0o600); err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	s.step(stepLog)
	if err := os.WriteFile(filepath.Join(scratch, "manifest.json"), manifest, 0o600); err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	s.step(stepManifest)
	if err := syncFileSystem(scratch); err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	s.step(stepFlushed)
	target := filepath.Join(s.dir, l.Key)
	if err := s.clearIncomplete(target); err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	if err := os.Rename(scratch, target); err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	s.step(stepRenamed)
	if err := durable.SyncDir(s.dir); err != nil {
		return fmt.Errorf("committing layer: %w", err)
	}
	s.step(stepSynced)
	l.Dir = filepath.Join(target, "tree")
	s.mu.Lock()
	defer s.mu.Unlock()
	addFamily(s.families, l)
	return nil
}

// clearIncomplete moves a directory without a manifest out of the way: only a
// hand that removed the manifest can have left one.
func (s *Store) clearIncomplete(target string) error {
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(target, "manifest.json")); err == nil {
		return errors.New("the layer is there already")
	}
	trash, err := s.toTrash(target)
	if err != nil {
		return err
	}
	return os.RemoveAll(trash)
}

// toTrash makes a layer directory vanish from the store at once, durably, and
// returns where it waits for deletion.
func (s *Store) toTrash(target string) (string, error) {
	trash, err := os.MkdirTemp(filepath.Join(s.dir, trashName), "layer-")
	if err != nil {
		return "", err
	}
	if err := os.Rename(target, filepath.Join(trash, "layer")); err != nil {
		return "", err
	}
	return trash, durable.SyncDir(s.dir)
}

// syncFileSystem makes everything on the file system of path durable.
func syncFileSystem(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
