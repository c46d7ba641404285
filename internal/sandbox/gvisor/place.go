package gvisor

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// placer puts directories and files into a root file system before its sandbox
// runs. The layers are not trusted: every path is resolved as if root were /,
// absolute links included. Nothing else changes the tree meanwhile.
type placer struct{ root *os.File }

func openPlacer(root string) (placer, error) {
	f, err := os.Open(root)
	if err != nil {
		return placer{}, fmt.Errorf("opening root file system: %w", err)
	}
	return placer{f}, nil
}

func (p placer) close() { _ = p.root.Close() }

func (p placer) open(name string, flags uint64) (int, error) {
	name = strings.TrimLeft(name, "/")
	if name == "" {
		name = "."
	}
	return unix.Openat2(int(p.root.Fd()), name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// mkdir makes a directory and its parents.
func (p placer) mkdir(dir string, mode uint32) error {
	fd, err := p.ensure(path.Clean("/"+dir), mode)
	if err != nil {
		return fmt.Errorf("making directory %s: %w: %w", dir, sandbox.ErrFile, err)
	}
	return unix.Close(fd)
}

func (p placer) ensure(dir string, mode uint32) (int, error) {
	fd, err := p.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) || dir == "/" {
		return fd, err
	}
	parent, err := p.ensure(path.Dir(dir), 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(dir), mode); err != nil {
		return -1, err
	}
	if err := unix.Fchmodat(parent, path.Base(dir), mode, 0); err != nil { // past the umask
		return -1, err
	}
	return p.open(dir, unix.O_PATH|unix.O_DIRECTORY)
}

// write puts a file at name, in place of what is there unless that is a
// directory. A link is replaced, not followed.
func (p placer) write(name string, content []byte, mode uint32) error {
	name = path.Clean("/" + name)
	err := p.replace(name, content, mode)
	if err != nil {
		return fmt.Errorf("placing %s: %w: %w", name, sandbox.ErrFile, err)
	}
	return nil
}

func (p placer) replace(name string, content []byte, mode uint32) error {
	parent, err := p.ensure(path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := unix.Unlinkat(parent, path.Base(name), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(parent, path.Base(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(os.FileMode(mode)), f.Close())
}
