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
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// maxPath is how long a path in a sandbox may be, in bytes with the first
	// slash: no program can open a longer one by its name.
	maxPath = unix.PathMax - 1
	// maxNames bounds the names in one tree. A name more of a file takes no inode.
	maxNames = 1 << 22
)

// treeError says which path of a sandbox cannot become part of a layer.
type treeError struct {
	Path string // with the first slash
	Why  string // what is the matter with it, after "the install left"
}

// Error names the path.
func (e *treeError) Error() string {
	return fmt.Sprintf("the install left %s: %.200q", e.Why, e.Path)
}

// treeCopy copies an overlay upper directory into a layer while it hashes it.
// The source was written by untrusted code but nothing runs in it any more;
// symbolic links are never followed. All paths are relative to the roots, so
// that they may be as long inside as a path can be.
type treeCopy struct {
	ctx    context.Context
	src    int
	dst    int // -1: the tree is hashed only
	room   *copyRoom
	format int // how contents enter the hash
	hash   hash.Hash
	size   int64 // bytes of contents, without holes
	files  int
	names  int
	links  map[[2]uint64]string // device and inode → first path, of files with several names
	buf    []byte
}

// lowerDir is a directory of a layer below: its root and the path in it.
type lowerDir struct {
	root int
	rel  string
}

// copied is what a copy came to.
type copied struct {
	digest    string
	size      int64 // bytes of contents, without holes
	allocated int64 // bytes of whole blocks
	inodes    int64
	files     int
}

// copyTree copies what belongs into a layer from the upper directory src to the
// new directory dst. The lower directories are those under src, the topmost
// first: a directory that says nothing new about theirs is left out. The copy
// keeps holes, and ends at what the disk of src could hold and at the reserve of
// dst's file system; reserve 0 means the default.
func copyTree(ctx context.Context, src, dst string, lower []string, reserve int64) (copied, error) {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return copied{}, err
	}
	c, opened := &treeCopy{ctx: ctx, format: contentBlocks}, []int{}
	defer func() { closeAll(opened) }()
	for _, dir := range append([]string{src, dst}, lower...) {
		fd, err := openRoot(dir)
		if err != nil {
			return copied{}, fmt.Errorf("opening what is copied: %w", err)
		}
		opened = append(opened, fd)
	}
	c.begin(opened[0], opened[1])
	c.room = &copyRoom{host: c.dst, reserve: reserve}
	if err := c.room.sandboxLimits(c.src); err != nil {
		return copied{}, err
	}
	below := make([]lowerDir, 0, len(lower))
	for _, fd := range opened[2:] {
		below = append(below, lowerDir{fd, "."})
	}
	var st unix.Stat_t
	if err := unix.Fstat(c.src, &st); err != nil {
		return copied{}, fmt.Errorf("reading the upper directory: %w", err)
	}
	if err := c.room.take(diskBlock, 1); err != nil {
		return copied{}, err
	}
	if err := c.children(".", below); err != nil {
		return copied{}, err
	}
	if err := setAttributes(c.dst, ".", &st, nil); err != nil {
		return copied{}, err
	}
	return copied{digest: c.digest(), size: c.size, allocated: c.room.bytes, inodes: c.room.inodes, files: c.files}, nil
}

// hashTree returns the digest of a layer's tree: that of the copy which made it,
// unless the tree has changed since. The format is that of the layer's manifest.
func hashTree(ctx context.Context, dir string, format int) (string, error) {
	root, err := openRoot(dir)
	if err != nil {
		return "", err
	}
	defer closeAll([]int{root})
	c := &treeCopy{ctx: ctx, format: format}
	c.begin(root, -1)
	if err := c.children(".", nil); err != nil {
		return "", err
	}
	return c.digest(), nil
}

func (c *treeCopy) begin(src, dst int) {
	c.src, c.dst, c.hash, c.links, c.buf = src, dst, sha256.New(), map[[2]uint64]string{}, make([]byte, 1<<20)
}

func (c *treeCopy) digest() string { return hex.EncodeToString(c.hash.Sum(nil)) }

func openRoot(dir string) (int, error) {
	return unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// children goes through a directory in the order of the names. No descriptor
// stays open meanwhile, however deep the tree is.
func (c *treeCopy) children(rel string, lower []lowerDir) error {
	names, err := c.list(rel)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(path.Join(rel, name), lower); err != nil {
			return err
		}
	}
	return nil
}

func (c *treeCopy) list(rel string) ([]string, error) {
	fd, err := unix.Openat(c.src, rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reading /%s: %w", rel, err)
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	var names []string
	for {
		some, err := f.Readdirnames(1024)
		names = append(names, some...)
		if c.names += len(some); c.names > maxNames {
			return nil, &treeError{Path: "/" + rel, Why: fmt.Sprintf("more than %d names, the last of them in this directory", maxNames)}
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err := errors.Join(err, c.ctx.Err()); err != nil {
			return nil, fmt.Errorf("reading /%s: %w", rel, err)
		}
	}
}

func (c *treeCopy) entry(rel string, lower []lowerDir) error {
	if len(rel)+1 > maxPath {
		return &treeError{Path: "/" + rel, Why: fmt.Sprintf("a path that is longer than %d bytes, which no program can open", maxPath)}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(c.src, rel, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("reading /%s: %w", rel, err)
	}
	if c.dst >= 0 && strip(rel, &st) {
		return nil
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.directory(rel, &st, lower)
	case unix.S_IFREG:
		err = c.file(rel, &st)
	case unix.S_IFLNK:
		err = c.symlink(rel, &st)
	case unix.S_IFCHR, unix.S_IFIFO:
		if c.dst >= 0 {
			if err = c.room.take(0, 1); err == nil {
				err = unix.Mknodat(c.dst, rel, st.Mode, int(st.Rdev))
			}
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

func (c *treeCopy) directory(rel string, st *unix.Stat_t, lower []lowerDir) error {
	attrs, err := xattrsAt(c.src, rel)
	if err != nil {
		return fmt.Errorf("copying /%s: %w", rel, err)
	}
	if c.dst >= 0 {
		err := c.room.take(diskBlock, 1)
		if err == nil {
			err = unix.Mkdirat(c.dst, rel, 0o700)
		}
		if err != nil {
			return fmt.Errorf("copying /%s: %w", rel, err)
		}
	}
	below := lowerDirs(lower, path.Base(rel))
	if attrs["trusted.overlay.opaque"] != "" {
		below = nil
	}
	if err := c.children(rel, below); err != nil {
		return err
	}
	if len(below) > 0 && len(attrs) == 0 && sameDirectory(below[0], st) {
		// Only a copied-up parent of what was stripped, or a mount point.
		if err := unix.Unlinkat(c.dst, rel, unix.AT_REMOVEDIR); err == nil {
			c.room.giveBack(diskBlock, 1)
			return nil
		} else if !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("copying /%s: %w", rel, err)
		}
	}
	if err := c.finishWith(rel, st, "", "", attrs); err != nil {
		return fmt.Errorf("copying /%s: %w", rel, err)
	}
	return nil
}

// lowerDirs steps from merged lower directories, topmost first, to those of a
// name inside, as overlayfs merges them.
func lowerDirs(lower []lowerDir, name string) []lowerDir {
	var out []lowerDir
	for _, dir := range lower {
		at := lowerDir{dir.root, path.Join(dir.rel, name)}
		var st unix.Stat_t
		if unix.Fstatat(at.root, at.rel, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		out = append(out, at)
		if attrs, err := xattrsAt(at.root, at.rel); err != nil || attrs["trusted.overlay.opaque"] != "" {
			break
		}
	}
	return out
}

func sameDirectory(at lowerDir, st *unix.Stat_t) bool {
	var low unix.Stat_t
	return unix.Fstatat(at.root, at.rel, &low, unix.AT_SYMLINK_NOFOLLOW) == nil && low.Mode == st.Mode && low.Uid == st.Uid && low.Gid == st.Gid
}

func (c *treeCopy) file(rel string, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			if c.dst >= 0 {
				if err := unix.Linkat(c.dst, first, c.dst, rel, 0); err != nil {
					return err
				}
			}
			c.record(rel, st, "hardlink", first, nil)
			return nil
		}
		c.links[id] = rel
	}
	in, err := openAt(c.src, rel, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer in.Close()
	sum, stored, err := c.content(rel, in, st.Size)
	if err != nil {
		return err
	}
	c.size += stored
	c.files++
	kind := "content"
	if c.format == contentBlocks {
		kind = "blocks"
	}
	return c.finish(rel, st, kind, string(sum))
}

func openAt(dir int, rel string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, rel, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// content copies and hashes what is in a file.
func (c *treeCopy) content(rel string, in *os.File, size int64) (sum []byte, stored int64, err error) {
	one := &contentCopy{ctx: c.ctx, in: in, room: c.room, format: c.format, sum: sha256.New(), buf: c.buf}
	if c.dst >= 0 {
		if err := c.room.take(0, 1); err != nil {
			return nil, 0, err
		}
		if one.out, err = openAt(c.dst, rel, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL); err != nil {
			return nil, 0, err
		}
		defer func() { err = errors.Join(err, one.out.Close()) }()
	}
	err = one.run(size)
	return one.sum.Sum(nil), one.stored, err
}

func (c *treeCopy) symlink(rel string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(c.src, rel, buf)
	if err != nil {
		return err
	}
	target := string(buf[:n])
	if c.dst >= 0 {
		long := int64(0)
		if n >= 60 { // a shorter one lies in the inode
			long = int64(n)
		}
		if err := c.room.take(long, 1); err != nil {
			return err
		}
		if err := unix.Symlinkat(target, c.dst, rel); err != nil {
			return err
		}
	}
	return c.finish(rel, st, "symlink", target)
}

func (c *treeCopy) finish(rel string, st *unix.Stat_t, kind, content string) error {
	attrs, err := xattrsAt(c.src, rel)
	if err != nil {
		return err
	}
	return c.finishWith(rel, st, kind, content, attrs)
}

func (c *treeCopy) finishWith(rel string, st *unix.Stat_t, kind, content string, attrs map[string]string) error {
	if c.dst >= 0 {
		total := 0
		for name, value := range attrs {
			total += len(name) + len(value)
		}
		if total > 96 { // fewer lie in the inode
			if err := c.room.take(int64(total), 0); err != nil {
				return err
			}
		}
		if err := setAttributes(c.dst, rel, st, attrs); err != nil {
			return err
		}
	}
	c.record(rel, st, kind, content, attrs)
	return nil
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
