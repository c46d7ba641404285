package image

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atoll-run/atoll/internal/durable"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sys/unix"
)

// view is a directory with downloads where a manager looks for them, to be the
// topmost lower layer of one builder. The builder's root is an overlay: whatever
// runs in it writes above the view and never into it.
type view struct {
	dir   string
	lock  *os.File // held while the view is in use
	files map[string]fillFile
	bytes int64
}

// view gathers what earlier lists with one of the names downloaded, on the
// template alone or on the same layers, or returns nil if there is nothing. Each file is read in full first: one that is not what
// its name says is removed from the cache and left out.
func (d *Downloads) view(to origin) (_ *view, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	records, err := d.records()
	if err != nil {
		return nil, err
	}
	v := &view{files: map[string]fillFile{}}
	for _, f := range records {
		if f.Base != to.Base || f.Manager != to.Manager || f.Below != noLayer && f.Below != to.Below ||
			!slices.ContainsFunc(f.Names, func(n string) bool { return slices.Contains(to.Names, n) }) {
			continue
		}
		now := d.now()
		_ = os.Chtimes(f.path, now, now) // only the order of removal depends on it
		for _, file := range f.Files {
			if _, ok := v.files[file.Path]; !ok && d.whole(file) {
				v.files[file.Path] = file
			}
		}
	}
	if len(v.files) == 0 {
		return nil, nil
	}
	if v.dir, err = os.MkdirTemp(filepath.Join(d.dir, "views"), "view-"); err != nil {
		return nil, fmt.Errorf("offering downloads: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("offering downloads: %w", err), v.close())
		}
	}()
	if v.lock, err = os.Open(v.dir); err != nil {
		return nil, err
	}
	if taken, err := durable.TryLock(v.lock); err != nil || !taken {
		return nil, cmp.Or(err, errors.New("a new directory is locked already"))
	}
	return v, d.link(v)
}

// link puts the files of a view in place.
func (d *Downloads) link(v *view) error {
	if err := os.Chmod(v.dir, 0o755); err != nil {
		return err
	}
	// The directories stand above the template's in the overlay.
	if err := errors.Join(os.Mkdir(filepath.Join(v.dir, "tmp"), 0o777), os.Chmod(filepath.Join(v.dir, "tmp"), 0o777|os.ModeSticky)); err != nil {
		return err
	}
	for path, file := range v.files {
		target := filepath.Join(v.dir, path)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		err := os.Link(d.blob(file.SHA256), target)
		if errors.Is(err, fs.ErrNotExist) { // another server's clean-up
			delete(v.files, path)
			continue
		}
		if err != nil {
			return err
		}
		v.bytes += file.Size
	}
	return nil
}

// whole reports whether a file of the cache has the content that its name says.
func (d *Downloads) whole(file fillFile) bool {
	f, err := os.OpenFile(d.blob(file.SHA256), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err == nil && n == file.Size && hex.EncodeToString(h.Sum(nil)) == file.SHA256 {
		return true
	}
	d.log.Warn("a file of the download cache is damaged: it is removed and downloaded again", "file", file.SHA256, "path", file.Path, "error", err)
	_ = os.Remove(d.blob(file.SHA256)) // else it is found damaged again
	return false
}

// close removes the view. The builder must be gone.
func (v *view) close() error {
	if v == nil {
		return nil
	}
	if v.lock != nil {
		defer v.lock.Close()
	}
	return os.RemoveAll(v.dir)
}

// clearViews removes views of servers that were killed; the caller holds mu.
func (d *Downloads) clearViews() {
	entries, err := os.ReadDir(filepath.Join(d.dir, "views"))
	if err != nil {
		return
	}
	for _, e := range entries {
		dir := filepath.Join(d.dir, "views", e.Name())
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		old := err == nil && d.now().Sub(info.ModTime()) > blobGrace // one that is being made is not locked yet
		if old && strings.HasPrefix(e.Name(), "view-") {
			if free, err := durable.TryLock(f); err == nil && free {
				_ = os.RemoveAll(dir) // the next clean-up tries again
			}
		}
		f.Close()
	}
}

// wanted is a file of a builder's tree that belongs into the cache.
type wanted struct {
	path string // where the manager will look for it
	from string // where it is now, relative to the root of the tree
	// content, if set, is the file itself.
	content []byte
	// sha256 or sha512 is what the index states, in hexadecimal; gosum its h1
	// hash of a zip or, with gomod, of a go.mod.
	sha256, sha512, gosum string
	gomod                 bool
}

// take copies what is wanted out of a builder's tree, in which nothing runs any
// more, and records it. What is not there, or not what the index states, is left
// out: package code may have changed it since.
func (d *Downloads) take(ctx context.Context, from origin, tree string, v *view, want []wanted) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return fmt.Errorf("keeping downloads: %w", err)
	}
	defer root.Close()
	var files []fillFile
	var taken int64
	for _, w := range want {
		if taken > d.quota || int64(len(files)) > inodeQuota(d.quota) {
			return fmt.Errorf("keeping downloads: %w", errNoRoom)
		}
		if v != nil && w.content == nil && w.sha256 != "" && v.files[w.path].SHA256 == w.sha256 {
			files = append(files, v.files[w.path])
			continue
		}
		file, err := d.takeOne(ctx, root, w)
		if errors.Is(err, errNotTaken) || errors.Is(err, fs.ErrNotExist) {
			if known, ok := v.known(w); ok {
				files = append(files, known)
			} else {
				d.log.Debug("a download is not kept", "path", w.path, "error", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		files, taken = append(files, file), taken+blocksOf(file.Size)
	}
	return d.keep(from, files)
}

// known finds a file that the view offered and the builder used from there.
func (v *view) known(w wanted) (fillFile, bool) {
	if v == nil || w.sha256 != "" {
		return fillFile{}, false
	}
	f, ok := v.files[w.path]
	return f, ok
}

// errNotTaken: the file is not what the index states.
var errNotTaken = errors.New("not what the index states")

func (d *Downloads) takeOne(ctx context.Context, root *os.Root, w wanted) (fillFile, error) {
	if w.content != nil { // the server's own
		own := sha256.Sum256(w.content)
		file := fillFile{Path: w.path, SHA256: hex.EncodeToString(own[:]), Size: int64(len(w.content))}
		return file, d.store(ctx, bytes.NewReader(w.content), file.Size, file.SHA256)
	}
	f, err := root.OpenFile(w.from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fillFile{}, fmt.Errorf("%w: %w", errNotTaken, err)
	}
	defer f.Close()
	info, err := f.Stat()
	// An archive has no holes: it takes what its size says, and reading it ends.
	if err != nil || !info.Mode().IsRegular() || info.Size() > d.quota || hasHoles(f, info.Size()) {
		return fillFile{}, errNotTaken
	}
	// The digest comes first: what has another one is not copied.
	sum, err := w.check(ctx, f, info.Size())
	if err != nil {
		return fillFile{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fillFile{}, fmt.Errorf("keeping a download: %w", err)
	}
	return fillFile{Path: w.path, SHA256: sum, Size: info.Size()}, d.store(ctx, f, info.Size(), sum)
}

// check holds the file against what the index states and returns its SHA-256.
func (w *wanted) check(ctx context.Context, f *os.File, size int64) (string, error) {
	content := func() io.Reader { return contextReader{ctx, io.NewSectionReader(f, 0, size)} }
	own := sha256.New()
	other := sha512.New()
	if _, err := io.Copy(io.MultiWriter(own, other), content()); err != nil {
		return "", fmt.Errorf("keeping a download: %w", err)
	}
	got, want := "", w.gosum
	var err error
	switch {
	case w.sha256 != "":
		got, want = hexSum(own), w.sha256
	case w.sha512 != "":
		got, want = hexSum(other), w.sha512
	case want == "":
	case w.gomod:
		got, err = dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(content()), nil })
	default:
		got, err = zipHash(ctx, f, size)
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil || want == "" || got != want {
		return "", errNotTaken // also a zip that cannot be read: nothing to say about the cache
	}
	return hexSum(own), nil
}

// maxModule is how many bytes the files of a Go module may have together; the go
// command takes no larger one.
const maxModule = 500 << 20

// zipHash is go's h1 hash of a module's zip.
func zipHash(ctx context.Context, f io.ReaderAt, size int64) (string, error) {
	archive, err := zip.NewReader(f, size)
	if err != nil {
		return "", err
	}
	files := map[string]*zip.File{}
	var names []string
	var total uint64
	for _, file := range archive.File {
		if total += file.UncompressedSize64; total > maxModule || file.UncompressedSize64 > maxModule {
			return "", errNotTaken
		}
		names, files[file.Name] = append(names, file.Name), file
	}
	return dirhash.Hash1(names, func(name string) (io.ReadCloser, error) {
		content, err := files[name].Open()
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{contextReader{ctx, io.LimitReader(content, maxModule)}, content}, nil
	})
}
