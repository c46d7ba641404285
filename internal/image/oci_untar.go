package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits on what an archive may unpack to: a bomb ends with a message instead of a full disk.
const (
	maxTreeBytes   = 64 << 30
	maxTreeEntries = 4 << 20
	maxLinks       = 40
)

var errEscapes = errors.New("entry leaves the root")

// rootResolve resolves name inside root as the kernel would with root as "/": symbolic links, absolute ones too, lead
// to places inside. The result has no links in it, save perhaps the last element when follow is false. Elements that
// do not exist are kept as they are; with mustExist, a missing one is an error.
func rootResolve(root *os.Root, name string, mustExist bool) (string, error) {
	todo := strings.Split(name, "/")
	done, links := ".", 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done) // of ".": "."
			continue
		}
		next := path.Join(done, part)
		target, err := root.Readlink(next)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", fmt.Errorf("%s: too many links", name)
			}
			if path.IsAbs(target) {
				done = "."
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		case errors.Is(err, fs.ErrNotExist):
			if mustExist {
				return "", err
			}
		case !errors.Is(err, unix.EINVAL):
			return "", err
		}
		done = next
	}
	return done, nil
}

// unpacker applies archives, lowest first, to one root. Nothing that an archive says can reach outside: names with
// ".." are refused, links are resolved inside, and every change goes through a directory that os.Root opened.
type unpacker struct {
	root *os.Root
	// Whiteouts of OCI layers are honoured; without it they are plain files.
	whiteouts bool
	bytes     int64
	entries   int
	skipped   []string // what was left out on purpose, for the manifest
	dirTimes  map[string]time.Time

	parent     *os.File
	parentName string
}

// apply unpacks one archive over what is there.
func (u *unpacker) apply(ctx context.Context, r io.Reader) error {
	seen := map[string]bool{}
	u.dirTimes = map[string]time.Time{}
	defer u.closeParent()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := u.entry(h, tr, seen); err != nil {
			return fmt.Errorf("entry %q: %w", clipName(h.Name), err)
		}
	}
	for name, at := range u.dirTimes {
		ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(at.UnixNano())}
		if dir, base, err := u.open(name); err == nil {
			_ = unix.UtimesNanoAt(int(dir.Fd()), base, ts, unix.AT_SYMLINK_NOFOLLOW) // a later entry may have replaced it
		}
	}
	return nil
}

func clipName(s string) string { return s[:min(len(s), 200)] }

// cleanName makes an entry's name relative, or refuses it.
func cleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) || len(name) > 4096 {
		return "", errEscapes
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errEscapes
		}
	}
	return path.Join(".", strings.TrimLeft(name, "/")), nil
}

func (u *unpacker) entry(h *tar.Header, body io.Reader, seen map[string]bool) error {
	if u.entries++; u.entries > maxTreeEntries {
		return fmt.Errorf("more than %d entries", maxTreeEntries)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return errEscapes
		}
		return u.metadata(h, ".")
	}
	dir, err := u.resolveParent(name)
	if err != nil {
		return err
	}
	base := path.Base(name)
	name = path.Join(dir, base)
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok && u.whiteouts {
		switch {
		case hidden == ".wh..opq":
			return u.hideLower(dir, seen)
		case strings.HasPrefix(hidden, ".wh."):
			return nil // bookkeeping of old union file systems
		case hidden == "" || hidden == "." || hidden == "..":
			return errEscapes
		}
		return u.hide(path.Join(dir, hidden), seen)
	}
	for at := name; at != "."; at = path.Dir(at) {
		seen[at] = true
	}
	return u.create(h, body, name)
}

// resolveParent resolves the directory of name, making what is missing.
func (u *unpacker) resolveParent(name string) (string, error) {
	dir, err := rootResolve(u.root, path.Dir(name), false)
	if err != nil {
		return "", err
	}
	if dir == u.parentName && u.parent != nil {
		return dir, nil
	}
	if st, err := u.root.Lstat(dir); err == nil && !st.IsDir() {
		return "", fmt.Errorf("parent %q is not a directory", clipName(dir))
	}
	return dir, u.root.MkdirAll(dir, 0o755)
}

// open returns the directory of name, which must be resolved, and name's last element.
func (u *unpacker) open(name string) (*os.File, string, error) {
	dir := path.Dir(name)
	if u.parent == nil || u.parentName != dir {
		u.closeParent()
		f, err := u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, "", err
		}
		u.parent, u.parentName = f, dir
	}
	return u.parent, path.Base(name), nil
}

func (u *unpacker) closeParent() {
	if u.parent != nil {
		_ = u.parent.Close()
		u.parent, u.parentName = nil, ""
	}
}

// remove removes what is at name, whatever it is. The open parent may be inside it.
func (u *unpacker) remove(name string) error {
	u.closeParent()
	return u.root.RemoveAll(name)
}

// hide carries out a whiteout: what lower layers have at name goes, what this layer has stays.
func (u *unpacker) hide(name string, seen map[string]bool) error {
	if !seen[name] {
		return u.remove(name)
	}
	if st, err := u.root.Lstat(name); err == nil && st.IsDir() {
		return u.hideLower(name, seen)
	}
	return nil
}

func (u *unpacker) hideLower(dir string, seen map[string]bool) error {
	f, err := u.root.Open(dir)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := u.hide(path.Join(dir, n), seen); err != nil {
			return err
		}
	}
	return nil
}

// create makes the entry at name, which is resolved and whose directory exists.
func (u *unpacker) create(h *tar.Header, body io.Reader, name string) error {
	st, err := u.root.Lstat(name)
	isDir := h.Typeflag == tar.TypeDir
	if err == nil && !(isDir && st.IsDir()) {
		if err := u.remove(name); err != nil {
			return err
		}
	}
	dir, base, err := u.open(name)
	if err != nil {
		return err
	}
	fd := int(dir.Fd())
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(fd, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	case tar.TypeReg:
		return u.file(h, body, name)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > 4096 {
			return errors.New("symbolic link without a target")
		}
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return err
		}
	case tar.TypeLink:
		return u.hardLink(h, name)
	case tar.TypeFifo:
		if err := unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		// A sandbox has devices of its own; and a character device 0:0 would be an overlay's whiteout.
		u.skip("device node", name)
		return nil
	default:
		return fmt.Errorf("unknown type %q", h.Typeflag)
	}
	return u.metadata(h, name)
}

func (u *unpacker) hardLink(h *tar.Header, name string) error {
	target, err := cleanName(h.Linkname)
	if err != nil || target == "." {
		return errEscapes
	}
	tdir, err := rootResolve(u.root, path.Dir(target), true)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clipName(h.Linkname), err)
	}
	if err := u.root.Link(path.Join(tdir, path.Base(target)), name); err != nil {
		return fmt.Errorf("hard link to %q: %w", clipName(h.Linkname), err)
	}
	return nil
}

func (u *unpacker) file(h *tar.Header, body io.Reader, name string) error {
	if u.bytes += h.Size; u.bytes > maxTreeBytes || h.Size < 0 {
		return fmt.Errorf("more than %d bytes", int64(maxTreeBytes))
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, body); err != nil {
		_ = f.Close()
		return err
	}
	if err := u.metadata(h, name); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// metadata gives name, a thing just made, its owner, mode, extended attributes and time. The order matters: a change
// of owner clears set-id bits and capabilities.
func (u *unpacker) metadata(h *tar.Header, name string) error {
	dir, base, err := u.open(name)
	if err != nil {
		return err
	}
	fd := int(dir.Fd())
	if h.Uid < 0 || h.Gid < 0 || h.Uid > 1<<31 || h.Gid > 1<<31 {
		return errors.New("owner out of range")
	}
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return err
		}
		if err := u.xattrs(h, fd, base, name); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		u.dirTimes[name] = h.ModTime
		return nil
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	return unix.UtimesNanoAt(fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) xattrs(h *tar.Header, dir int, base, name string) error {
	for k, v := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if attr != "security.capability" && !strings.HasPrefix(attr, "user.") {
			// trusted.overlay.* would change what an overlay shows; security labels are this host's business.
			u.skip("attribute "+clipName(attr), name)
			continue
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			u.skip("attribute "+clipName(attr), name)
			continue
		}
		f, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = unix.Fsetxattr(f, attr, []byte(v), 0)
		_ = unix.Close(f)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", clipName(attr), err)
		}
	}
	return nil
}

func (u *unpacker) skip(what, name string) {
	if len(u.skipped) < 20 {
		u.skipped = append(u.skipped, fmt.Sprintf("left out %s of %s", what, clipName(name)))
	}
}
