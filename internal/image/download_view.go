package image

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// view gathers what earlier lists with one of the names downloaded, or returns
// nil if there is nothing. Each file is read in full first: one that is not what
// its name says is removed from the cache and left out.
func (d *Downloads) view(base, manager string, names []string) (_ *view, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	records, err := d.records()
	if err != nil {
		return nil, err
	}
	v := &view{files: map[string]fillFile{}}
	for _, f := range records {
		if f.Base != base || f.Manager != manager || !slices.ContainsFunc(f.Names, func(n string) bool { return slices.Contains(names, n) }) {
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
	if err = unix.Flock(int(v.lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
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
		if old && strings.HasPrefix(e.Name(), "view-") && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir) // the next clean-up tries again
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
func (d *Downloads) take(base, manager string, names []string, tree string, v *view, want []wanted) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return fmt.Errorf("keeping downloads: %w", err)
	}
	defer root.Close()
	var files []fillFile
	for _, w := range want {
		if v != nil && w.content == nil && w.sha256 != "" && v.files[w.path].SHA256 == w.sha256 {
			files = append(files, v.files[w.path])
			continue
		}
		file, err := d.takeOne(root, w)
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
		files = append(files, file)
	}
	return d.keep(base, manager, names, files)
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

func (d *Downloads) takeOne(root *os.Root, w wanted) (fillFile, error) {
	var in io.Reader = strings.NewReader(string(w.content))
	if w.content == nil {
		f, err := root.OpenFile(w.from, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return fillFile{}, fmt.Errorf("%w: %w", errNotTaken, err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || !info.Mode().IsRegular() || info.Size() > d.quota {
			return fillFile{}, errNotTaken
		}
		in = f
	}
	sum, size, err := d.store(in, d.quota, w.check)
	return fillFile{Path: w.path, SHA256: sum, Size: size}, err
}

// check holds a copy of the file against what the index states.
func (w *wanted) check(path string) error {
	if w.content != nil {
		return nil // the server's own
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("keeping a download: %w", err)
	}
	defer f.Close()
	got, want := "", ""
	switch {
	case w.sha256 != "":
		got, want = digestOf(f, sha256.New()), w.sha256
	case w.sha512 != "":
		got, want = digestOf(f, sha512.New()), w.sha512
	case w.gomod:
		want = w.gosum
		got, err = dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(f), nil })
	default:
		want = w.gosum
		got, err = dirhash.HashZip(path, dirhash.Hash1)
	}
	if err != nil || want == "" || got != want {
		return errNotTaken // also a zip that cannot be read: nothing to say about the cache
	}
	return nil
}

func digestOf(f io.Reader, h hash.Hash) string {
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}
