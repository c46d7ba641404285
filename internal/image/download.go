package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/durable"
)

// DefaultDownloadQuota is the size of the download cache when the operator says
// nothing: 10 GiB.
const DefaultDownloadQuota = 10 << 30

// blobGrace keeps a file that no record names yet: another server that shares
// the directory may be about to write the record.
const blobGrace = 10 * time.Minute

// DownloadsConfig configures OpenDownloads.
type DownloadsConfig struct {
	// Dir holds the cache. Required. Several servers may share it.
	Dir string
	// Quota bounds what the cache takes on the disk, in bytes of whole blocks;
	// for each 16 KiB of it there may be one file. Zero means DefaultDownloadQuota.
	Quota int64
	// Reserve is how many bytes stay free on the file system of Dir: what would
	// take them is not kept. Zero means a twentieth of it, at most 1 GiB.
	Reserve int64
	// Logger is told of damaged files. Nil discards.
	Logger *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Downloads keeps what package managers downloaded, so that a changed list does
// not download everything again. It changes how long an install takes, never
// what comes of it: the directory may be removed while nothing runs.
//
// Nothing that an install script writes is ever used by another build. Files
// are named by the SHA-256 of their content. One gets in only if its digest was
// stated by the registry's index and known to the server before any package
// code ran in that sandbox, and its content has this digest. Where layers of
// packages lay below the sandbox, their code may have spoken for the manager:
// what came from there is offered only to sandboxes on exactly these layers. A
// file is read again in full before each use, and reaches a builder as a read-only lower layer. The
// manager, or its recipe, then holds it against what the index says now.
// Methods may be called at the same time.
type Downloads struct {
	dir     string
	quota   int64
	reserve int64
	log     *slog.Logger
	now     func() time.Time

	mu sync.Mutex // one change at a time
}

// origin says in what builder something was downloaded, or is wanted.
type origin struct {
	Base string `json:"base"` // digest of the template version: another's tools may keep files elsewhere
	// Below is the key of the topmost layer under the builder, or noLayer. Code
	// of the packages in such layers may have lied about digests, so that what
	// was downloaded above them is for builders above them only.
	Below   string   `json:"below"`
	Manager string   `json:"manager"`
	Names   []string `json:"names"` // the packages that were listed, without versions
}

// noLayer is the Below of builders that stand on the template alone. It is not
// empty: records of old versions have none, and where they come from is unknown.
const noLayer = "none"

// fill is what one list downloaded: a record of the cache.
type fill struct {
	origin
	Files []fillFile `json:"files"`

	path string
	used time.Time
	size int64 // of the record itself, in bytes
}

// fillFile is one downloaded file: where the manager looks for it in a builder,
// relative to the root, and its content.
type fillFile struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// DownloadUsage is what the cache holds.
type DownloadUsage struct {
	// Files counts the files that are kept.
	Files int `json:"files"`
	// SizeBytes is what files and records take on the disk, in whole blocks.
	SizeBytes int64 `json:"size_bytes"`
	// QuotaBytes is what they may take before the least recently used go.
	QuotaBytes int64 `json:"quota_bytes"`
}

// OpenDownloads opens the cache and makes its directory if it is absent.
func OpenDownloads(cfg DownloadsConfig) (*Downloads, error) {
	d := &Downloads{dir: cfg.Dir, quota: cfg.Quota, reserve: cfg.Reserve, log: cfg.Logger, now: cfg.Now}
	if d.quota <= 0 {
		d.quota = DefaultDownloadQuota
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.now == nil {
		d.now = time.Now
	}
	for _, name := range []string{"blobs", "records", "views"} {
		if err := os.MkdirAll(filepath.Join(d.dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("opening the download cache: %w", err)
		}
	}
	return d, nil
}

func (d *Downloads) blob(sum string) string { return filepath.Join(d.dir, "blobs", sum) }

// keep records what a list downloaded. Files whose content is in the cache
// already are only named.
func (d *Downloads) keep(from origin, files []fillFile) error {
	if len(files) == 0 {
		return nil
	}
	f := fill{origin: from, Files: files}
	f.Names = slices.Sorted(slices.Values(from.Names))
	text, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("recording downloads: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id := hashFields(append([]string{f.Base, f.Below, f.Manager}, f.Names...)...)
	// A torn record after a crash of the machine does no harm: what cannot be read is removed.
	if err := durable.WriteFile(filepath.Join(d.dir, "records", id), text, 0o600, durable.Process); err != nil {
		return fmt.Errorf("recording downloads: %w", err)
	}
	_, err = d.shrink(d.quota)
	return err
}

// errNoRoom: a download is not kept because it takes too much.
var errNoRoom = errors.New("it takes more room than there is for downloads")

// store copies content of the size into the cache. Its SHA-256 is known: a copy
// that has another one is not kept.
func (d *Downloads) store(ctx context.Context, content io.Reader, size int64, want string) error {
	blobs, err := os.Open(filepath.Join(d.dir, "blobs"))
	if err != nil {
		return fmt.Errorf("keeping a download: %w", err)
	}
	defer blobs.Close()
	if err := hostHasRoom(int(blobs.Fd()), d.reserve, blocksOf(size)); err != nil {
		return fmt.Errorf("keeping a download: %w", err)
	}
	err = durable.Create(d.blob(want), 0o644, durable.Process, func(f *os.File) error {
		own := sha256.New()
		n, err := io.Copy(io.MultiWriter(own, f), contextReader{ctx, io.LimitReader(content, size+1)})
		if err == nil && (n != size || hexSum(own) != want) {
			err = errNotTaken // it changed while it was read
		}
		return err
	})
	if err != nil && !errors.Is(err, errNotTaken) {
		err = fmt.Errorf("keeping a download: %w", err)
	}
	return err
}

// records reads all records, the most recently used first. One that cannot be
// read is removed.
func (d *Downloads) records() ([]fill, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, "records"))
	if err != nil {
		return nil, fmt.Errorf("reading the download cache: %w", err)
	}
	var out []fill
	for _, e := range entries {
		if !layerKey.MatchString(e.Name()) {
			continue
		}
		f := fill{path: filepath.Join(d.dir, "records", e.Name())}
		text, err := os.ReadFile(f.path)
		info, serr := os.Stat(f.path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(serr, fs.ErrNotExist) {
			continue // another server removed it
		}
		if err := errors.Join(err, serr); err != nil {
			return nil, fmt.Errorf("reading the download cache: %w", err)
		}
		if err := json.Unmarshal(text, &f); err != nil || !f.sound() {
			// Also one of an old version, which does not say where it comes from.
			d.log.Warn("removing a record of downloads that is damaged or of an old version", "record", e.Name())
			_ = os.Remove(f.path) // it is read again otherwise
			continue
		}
		f.used, f.size = info.ModTime(), info.Size()
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b fill) int { return b.used.Compare(a.used) })
	return out, nil
}

// sound reports whether a record can be what this program wrote.
func (f *fill) sound() bool {
	if f.Below != noLayer && !layerKey.MatchString(f.Below) {
		return false
	}
	for _, file := range f.Files {
		if !filepath.IsLocal(file.Path) || !layerKey.MatchString(file.SHA256) || file.Size < 0 {
			return false
		}
	}
	return true
}

// Usage tells how much the cache holds.
func (d *Downloads) Usage() (DownloadUsage, error) {
	out := DownloadUsage{QuotaBytes: d.quota}
	entries, err := os.ReadDir(filepath.Join(d.dir, "blobs"))
	if err != nil {
		return out, fmt.Errorf("reading the download cache: %w", err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && layerKey.MatchString(e.Name()) {
			out.Files++
			out.SizeBytes += blocksOf(info.Size())
		}
	}
	records, err := os.ReadDir(filepath.Join(d.dir, "records"))
	if err != nil {
		return out, fmt.Errorf("reading the download cache: %w", err)
	}
	for _, e := range records {
		if info, err := e.Info(); err == nil {
			out.SizeBytes += blocksOf(info.Size())
		}
	}
	return out, nil
}

// Prune removes the least recently used downloads until at most quota bytes are
// left; 0 removes all. Builders that run keep what they were given.
func (d *Downloads) Prune(quota int64) (DownloadUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clearViews()
	return d.shrink(quota)
}

// Tidy removes what is beyond the quota, and what a killed server left.
func (d *Downloads) Tidy() error {
	_, err := d.Prune(d.quota)
	return err
}

// shrink removes records beyond the quota, and then the files that no record
// names; the caller holds mu. It returns what went.
func (d *Downloads) shrink(quota int64) (gone DownloadUsage, err error) {
	gone.QuotaBytes = quota
	records, err := d.records()
	if err != nil {
		return gone, err
	}
	named := map[string]bool{}
	var total, inodes int64
	for _, f := range records {
		more, moreInodes := blocksOf(f.size), int64(1)
		own := map[string]bool{}
		for _, file := range f.Files {
			if !named[file.SHA256] && !own[file.SHA256] {
				more, moreInodes = more+blocksOf(file.Size), moreInodes+1
				own[file.SHA256] = true
			}
		}
		if total+more > quota || inodes+moreInodes > inodeQuota(quota) {
			if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return gone, fmt.Errorf("pruning downloads: %w", err)
			}
			continue
		}
		total, inodes = total+more, inodes+moreInodes
		for _, file := range f.Files {
			named[file.SHA256] = true
		}
	}
	entries, err := os.ReadDir(filepath.Join(d.dir, "blobs"))
	if err != nil {
		return gone, fmt.Errorf("pruning downloads: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if named[e.Name()] || err != nil || quota > 0 && d.now().Sub(info.ModTime()) < blobGrace && total+blocksOf(info.Size()) <= quota && inodes < inodeQuota(quota) {
			continue
		}
		if err := os.Remove(d.blob(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fmt.Errorf("pruning downloads: %w", err)
		}
		gone.Files++
		gone.SizeBytes += blocksOf(info.Size())
	}
	return gone, nil
}
