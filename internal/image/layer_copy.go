package image

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// treeCopy copies an overlay upper directory into a layer while it hashes it.
// The source was written by untrusted code but nothing runs in it any more;
// symbolic links are never followed.
type treeCopy struct {
	ctx      context.Context
	src, dst string // without dst the tree is hashed only
	hash     hash.Hash
	size     int64
	files    int
	links    map[[2]uint64]string // device and inode → first path, of files with several names
	buf      []byte
}

// copyTree copies what belongs into a layer from the upper directory src to the
// new directory dst. The lower directories are those under src, the topmost
// first: a directory that says nothing new about theirs is left out.
func copyTree(ctx context.Context, src, dst string, lower []string) (digest string, size int64, files int, err error) {
	c := &treeCopy{ctx: ctx, src: src, dst: dst, hash: sha256.New(), links: map[[2]uint64]string{}, buf: make([]byte, 1<<20)}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return "", 0, 0, fmt.Errorf("reading the upper directory: %w", err)
	}
	if err := os.Mkdir(dst, 0o700); err != nil {
		return "", 0, 0, err
	}
	if err := c.children("", lower); err != nil {
		return "", 0, 0, err
	}
	if err := c.attributes("", &st, nil); err != nil {
		return "", 0, 0, err
	}
	return hex.EncodeToString(c.hash.Sum(nil)), c.size, c.files, nil
}

// hashTree returns the digest of a layer's tree: that of the copy which made it,
// unless the tree has changed since.
func hashTree(ctx context.Context, dir string) (string, error) {
	c := &treeCopy{ctx: ctx, src: dir, hash: sha256.New(), links: map[[2]uint64]string{}, buf: make([]byte, 1<<20)}
	if err := c.children("", nil); err != nil {
		return "", err
	}
	return hex.EncodeToString(c.hash.Sum(nil)), nil
}

func (c *treeCopy) children(rel string, lower []string) error {
	entries, err := os.ReadDir(filepath.Join(c.src, rel))
	if err != nil {
		return fmt.Errorf("reading the upper directory: %w", err)
	}
	for _, e := range entries {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(filepath.Join(rel, e.Name()), lower); err != nil {
			return err
		}
	}
	return nil
}

func (c *treeCopy) entry(rel string, lower []string) error {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(c.src, rel), &st); err != nil {
		return fmt.Errorf("reading /%s: %w", rel, err)
	}
	if c.dst != "" && strip(rel, &st) {
		return nil
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = c.directory(rel, &st, lower)
	case unix.S_IFREG:
		err = c.file(rel, &st)
	case unix.S_IFLNK:
		err = c.symlink(rel, &st)
	case unix.S_IFCHR, unix.S_IFIFO:
		if c.dst != "" {
			err = unix.Mknod(filepath.Join(c.dst, rel), st.Mode, int(st.Rdev))
		}
		if err == nil {
			err = c.finish(rel, &st, "", "")
		}
	}
	if err != nil {
		return fmt.Errorf("copying /%s: %w", rel, err)
	}
	return nil
}

func (c *treeCopy) directory(rel string, st *unix.Stat_t, lower []string) error {
	dst := filepath.Join(c.dst, rel)
	if c.dst != "" {
		if err := os.Mkdir(dst, 0o700); err != nil {
			return err
		}
	}
	attrs, err := xattrs(filepath.Join(c.src, rel))
	if err != nil {
		return err
	}
	below := lowerDirs(lower, filepath.Base(rel))
	if attrs["trusted.overlay.opaque"] != "" {
		below = nil
	}
	if err := c.children(rel, below); err != nil {
		return err
	}
	if len(below) > 0 && len(attrs) == 0 && sameDirectory(below[0], st) {
		// Only a copied-up parent of what was stripped, or a mount point.
		if err := os.Remove(dst); err == nil {
			return nil
		} else if !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return c.finishWith(rel, st, "", "", attrs)
}

// lowerDirs steps from merged lower directories, topmost first, to those of a
// name inside, as overlayfs merges them.
func lowerDirs(lower []string, name string) []string {
	var out []string
	for _, dir := range lower {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		out = append(out, path)
		if attrs, err := xattrs(path); err != nil || attrs["trusted.overlay.opaque"] != "" {
			break
		}
	}
	return out
}

func sameDirectory(path string, st *unix.Stat_t) bool {
	var low unix.Stat_t
	return unix.Lstat(path, &low) == nil && low.Mode == st.Mode && low.Uid == st.Uid && low.Gid == st.Gid
}

func (c *treeCopy) file(rel string, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			if c.dst != "" {
				if err := os.Link(filepath.Join(c.dst, first), filepath.Join(c.dst, rel)); err != nil {
					return err
				}
			}
			c.record(rel, st, "hardlink", first, nil)
			return nil
		}
		c.links[id] = rel
	}
	in, err := os.OpenFile(filepath.Join(c.src, rel), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	sum := sha256.New()
	n, err := c.content(rel, in, sum)
	if err != nil {
		return err
	}
	c.size += n
	c.files++
	return c.finish(rel, st, "content", string(sum.Sum(nil)))
}

// content copies and hashes what is in a file.
func (c *treeCopy) content(rel string, in io.Reader, sum io.Writer) (int64, error) {
	// The wrappers keep io.CopyBuffer from bypassing the buffer.
	from := struct{ io.Reader }{in}
	if c.dst == "" {
		return io.CopyBuffer(struct{ io.Writer }{sum}, from, c.buf)
	}
	out, err := os.OpenFile(filepath.Join(c.dst, rel), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(out, sum)}, from, c.buf)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return n, err
}

func (c *treeCopy) symlink(rel string, st *unix.Stat_t) error {
	target, err := os.Readlink(filepath.Join(c.src, rel))
	if err != nil {
		return err
	}
	if c.dst != "" {
		if err := os.Symlink(target, filepath.Join(c.dst, rel)); err != nil {
			return err
		}
	}
	return c.finish(rel, st, "symlink", target)
}

func (c *treeCopy) finish(rel string, st *unix.Stat_t, kind, content string) error {
	attrs, err := xattrs(filepath.Join(c.src, rel))
	if err != nil {
		return err
	}
	return c.finishWith(rel, st, kind, content, attrs)
}

func (c *treeCopy) finishWith(rel string, st *unix.Stat_t, kind, content string, attrs map[string]string) error {
	if c.dst != "" {
		if err := c.attributes(rel, st, attrs); err != nil {
			return err
		}
	}
	c.record(rel, st, kind, content, attrs)
	return nil
}

// attributes gives the copy its owner, mode, extended attributes and time, in
// the order in which they survive: a change of owner clears set-id bits and
// file capabilities.
func (c *treeCopy) attributes(rel string, st *unix.Stat_t, attrs map[string]string) error {
	path := filepath.Join(c.dst, rel)
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
			return err
		}
	}
	for name, value := range attrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *treeCopy) record(rel string, st *unix.Stat_t, kind, content string, attrs map[string]string) {
	fields := []string{rel, fmt.Sprintf("%o %d %d %d", st.Mode, st.Uid, st.Gid, st.Rdev), kind, content}
	names := make([]string, 0, len(attrs))
	for name := range attrs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fields = append(fields, name, attrs[name])
	}
	c.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(fields))))
	for _, f := range fields {
		c.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
		io.WriteString(c.hash, f)
	}
}

// xattrs reads the extended attributes that belong into a layer. Overlay's own
// references to the inodes of one mount are left out; what would make a layer
// depend on another's files is refused.
func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<12)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 1<<16)
		n, err = unix.Llistxattr(path, buf)
	}
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	attrs := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		switch {
		case name == "trusted.overlay.redirect" || name == "trusted.overlay.metacopy":
			return nil, fmt.Errorf("the overlay was mounted with %s", strings.TrimPrefix(name, "trusted.overlay."))
		case strings.HasPrefix(name, "trusted.overlay.") && name != "trusted.overlay.opaque":
			continue
		case strings.HasPrefix(name, "trusted.") && name != "trusted.overlay.opaque",
			strings.HasPrefix(name, "security.") && name != "security.capability":
			continue // the host's own: labels, the sandbox's bookkeeping
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		attrs[name] = string(value[:n])
	}
	return attrs, nil
}
