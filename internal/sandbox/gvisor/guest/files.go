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

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/tools"
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
	if info.IsDir() {
		if err := wire.WriteHead(out, head); err != nil {
			return err
		}
		return tarTree(path, out)
	}
	begin, size, err := measure(f, info.Size())
	if err != nil {
		return wire.WriteHead(out, answer(err))
	}
	head.Size, head.Unsized = max(size, 0), size < 0
	if err := wire.WriteHead(out, head); err != nil {
		return err
	}
	if _, err := out.Write(begin); err != nil || size == int64(len(begin)) {
		return err
	}
	_, err = io.Copy(out, f)
	return err
}

// measured is how much of a file is read before its size is told.
const measured = 64 << 10

// measure reads the beginning of a file and finds its size: what was read if that
// is all, whatever the file system says (files of /proc and /sys have a size of 0
// or of a page); -1 if the file system says less than was read already.
func measure(f io.Reader, told int64) (begin []byte, size int64, err error) {
	begin, err = io.ReadAll(io.LimitReader(f, measured))
	switch {
	case err != nil:
		return nil, 0, err
	case len(begin) < measured:
		return begin, int64(len(begin)), nil
	case told < measured:
		return begin, -1, nil
	}
	return begin, told, nil
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
func writeFile(path string, mode fs.FileMode, in io.Reader) error {
	path, err := resolve(path)
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
	return notMissing(tools.ReplaceFile(tools.StagingDir, path, mode, in))
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
