package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// tarTree writes the content of a directory as a tar stream: directories,
// regular files and symbolic links; what vanishes meanwhile is left out.
func tarTree(dir string, out io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := tar.NewWriter(out)
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if name == "." {
			return err
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		err = tarEntry(root, name, w)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func tarEntry(root *os.Root, name string, w *tar.Writer) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		return nil
	}
	head, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	head.Name = name
	if info.IsDir() {
		head.Name += "/"
	}
	if !info.Mode().IsRegular() {
		return w.WriteHeader(head)
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	begin, size, err := measure(f, info.Size())
	if err != nil {
		return err
	}
	if size < 0 { // an archive says the size first
		size = int64(len(begin))
	}
	head.Size = size
	if err := w.WriteHeader(head); err != nil {
		return err
	}
	// A file that grows is cut; a long one that shrinks breaks the stream, visibly.
	_, err = io.CopyN(w, io.MultiReader(bytes.NewReader(begin), f), size)
	return err
}

// unpackInto unpacks an archive into dir: a tar stream, plain or compressed by
// gzip or zstd, which its first bytes tell.
func unpackInto(dir string, in io.Reader) error {
	buffered := bufio.NewReaderSize(in, 64<<10)
	plain := io.Reader(buffered)
	switch begin, _ := buffered.Peek(4); {
	case bytes.HasPrefix(begin, []byte{0x1f, 0x8b}):
		unzip, err := gzip.NewReader(buffered)
		if err != nil {
			return fmt.Errorf("reading the archive: %s", err)
		}
		plain = unzip
	case bytes.HasPrefix(begin, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		unzip, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return fmt.Errorf("reading the archive: %s", err)
		}
		defer unzip.Close()
		plain = unzip
	}
	if err := untar(dir, plain); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil { // up to the end mark
		return fmt.Errorf("reading the archive: %s", err)
	}
	return nil
}

// maxWindow is the most memory in bytes that the decoder of zstd takes; archives
// made with --ultra --long=31 do not fit.
const maxWindow = 128 << 20

// untar unpacks a tar stream into dir. An entry whose path leaves dir, by itself
// or through a link, and kinds other than files, directories and links are
// refused, also a hard link to what is outside. Symbolic links are made as they
// are: what they name is the sandbox's own business.
func untar(dir string, in io.Reader) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return notMissing(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(in)
	var dirs []*tar.Header
	for {
		head, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %s", err)
		}
		if err := unpack(root, head, r); err != nil {
			return fmt.Errorf("%s: %s", head.Name, notMissing(err))
		}
		if head.Typeflag == tar.TypeDir {
			dirs = append(dirs, head)
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // padding; a checksum behind it
		return fmt.Errorf("reading the archive: %s", err)
	}
	for i := len(dirs) - 1; i >= 0; i-- { // times of directories last: filling them changes them
		_ = root.Chtimes(filepath.Clean(dirs[i].Name), dirs[i].ModTime, dirs[i].ModTime)
	}
	return nil
}

var errLeaves = errors.New("leaves the directory")

func unpack(root *os.Root, head *tar.Header, r io.Reader) error {
	if head.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := filepath.Clean(head.Name)
	if !filepath.IsLocal(name) {
		return errLeaves
	}
	if name == "." {
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	mode := head.FileInfo().Mode()
	switch head.Typeflag {
	case tar.TypeDir:
		if info, err := root.Lstat(name); err == nil && !info.IsDir() {
			if err := root.Remove(name); err != nil {
				return err
			}
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, mode)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return unpackFile(root, name, mode, head, r)
	case tar.TypeSymlink:
		if err := makeRoom(root, name); err != nil {
			return err
		}
		return root.Symlink(head.Linkname, name)
	case tar.TypeLink:
		target := filepath.Clean(head.Linkname)
		if !filepath.IsLocal(target) {
			return fmt.Errorf("link %w", errLeaves)
		}
		if err := makeRoom(root, name); err != nil {
			return err
		}
		return root.Link(target, name)
	}
	return fmt.Errorf("a kind of entry that is not unpacked (%q)", head.Typeflag)
}

func unpackFile(root *os.Root, name string, mode fs.FileMode, head *tar.Header, r io.Reader) error {
	if err := makeRoom(root, name); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return err
	}
	return root.Chtimes(name, head.ModTime, head.ModTime)
}

// makeRoom removes what is at name, unless it is a directory with content.
func makeRoom(root *os.Root, name string) error {
	if strings.Contains(name, "\x00") {
		return errors.New("name contains a zero byte")
	}
	err := root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
