package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// linkTree makes dst, which exists and is empty, a tree like src whose files are the same inodes: templates are never
// written, so one that extends another shares its disk space and page cache. Directories are made anew.
func linkTree(ctx context.Context, src, dst string) error {
	var dirs []string
	err := filepath.WalkDir(src, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(src, name)
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return os.Link(name, filepath.Join(dst, rel))
		}
		dirs = append(dirs, rel)
		if rel == "." {
			return nil
		}
		return os.Mkdir(filepath.Join(dst, rel), 0o700)
	})
	// Times last, and the deepest first: making an entry changes its directory's.
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = likeDirectory(filepath.Join(src, dirs[i]), filepath.Join(dst, dirs[i]))
	}
	if err != nil {
		return fmt.Errorf("copying a template: %w", err)
	}
	return nil
}

func likeDirectory(src, dst string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return err
	}
	attrs, err := xattrs(src)
	if err != nil {
		return err
	}
	return setAttributes(unix.AT_FDCWD, dst, &st, attrs)
}

// putFiles puts a declaration's files and links into a root. What is there is replaced, not written: it may be another
// template's too.
func putFiles(rootfs string, files, links map[string]string) error {
	if len(files)+len(links) == 0 {
		return nil
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return fmt.Errorf("writing the template's files: %w", err)
	}
	defer root.Close()
	for name, content := range files {
		if err := putFile(root, strings.TrimPrefix(name, "/"), content, 0o644); err != nil {
			return fmt.Errorf("writing the template's file %s: %w", name, err)
		}
	}
	for name, target := range links {
		at, err := makeRoom(root, strings.TrimPrefix(name, "/"))
		if err == nil {
			err = root.Symlink(target, at)
		}
		if err != nil {
			return fmt.Errorf("making the template's link %s: %w", name, err)
		}
	}
	return nil
}

// makeRoom makes the directories above a name in a root, removes what has the
// name, and returns it without links on the way.
func makeRoom(root *os.Root, name string) (string, error) {
	dir, err := rootResolve(root, path.Dir(name), false)
	if err != nil {
		return "", err
	}
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name = path.Join(dir, path.Base(name))
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return name, nil
}

// putFile puts one file into a root, whatever the umask is.
func putFile(root *os.Root, name, content string, mode os.FileMode) error {
	name, err := makeRoom(root, name)
	if err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Chmod(mode), f.Close())
}
