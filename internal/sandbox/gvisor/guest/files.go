package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

var errKind = errors.New("not a regular file or a directory")

// readPath answers with the file's head and content, or the directory's tar.
// It never blocks on what is not a regular file or a directory.
func readPath(path string, out *bufio.Writer) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if errors.Is(err, syscall.ENXIO) {
		err = errKind // a socket, or a fifo without a writer
	}
	if err != nil {
		return wire.WriteHead(out, answer(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return wire.WriteHead(out, answer(err))
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return wire.WriteHead(out, answer(errKind))
	}
	head := wire.Head{Path: path, Dir: info.IsDir(), Mode: unixMode(info.Mode()), Mtime: info.ModTime()}
	if info.Mode().IsRegular() {
		head.Size = info.Size()
	}
	if err := wire.WriteHead(out, head); err != nil {
		return err
	}
	if info.IsDir() {
		return tarTree(path, out)
	}
	_, err = io.Copy(out, f)
	return err
}

// unixMode is the permission bits of m with set-id and sticky, as in chmod.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	return mode
}

// writeFile replaces path by what in holds, all or nothing.
func writeFile(path string, mode fs.FileMode, in io.Reader) (err error) {
	path, err = resolve(path)
	if err != nil {
		return err
	}
	old, err := os.Lstat(path)
	if err == nil && !old.Mode().IsRegular() {
		if old.IsDir() {
			return errors.New("is a directory")
		}
		return errKind
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return notMissing(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return notMissing(err)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".atoll-*")
	if err != nil {
		return notMissing(err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = io.Copy(temp, in)
	if old != nil {
		mode = old.Mode()
		if owner, ok := old.Sys().(*syscall.Stat_t); ok && err == nil {
			err = temp.Chown(int(owner.Uid), int(owner.Gid))
		}
	}
	err = errors.Join(err, temp.Chmod(mode))
	if cerr := temp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return notMissing(err)
	}
	return notMissing(os.Rename(temp.Name(), path))
}

// resolve follows links in the last element of path, so that a write through a
// link replaces what the link names.
func resolve(path string) (string, error) {
	for range 40 {
		info, err := os.Lstat(path)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return path, nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Dir(path) + "/" + target
		}
		path = target
	}
	return "", syscall.ELOOP
}

// notMissing keeps "no such file" for what was asked for: below a write it
// means a file where a directory is wanted, or a race.
func notMissing(err error) error {
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot be created: %s", syscall.ENOENT)
	}
	return err
}

// remove removes path with all below it. The root itself is refused.
func remove(path string) error {
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	if filepath.Clean(path) == "/" {
		return errors.New("the root directory cannot be removed")
	}
	return os.RemoveAll(path)
}
