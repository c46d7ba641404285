package tools

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// StagingDir is where new content of files is put together, on the sandbox's
// disk and away from who watches the directories that the files are in.
const StagingDir = "/var/lib/atoll/new"

// stagedFor is how long something may lie in StagingDir without an owner before
// it counts as left by a writer that was killed.
const stagedFor = time.Minute

// ReplaceFile gives the file at path new content, all or nothing: who opens the
// path finds the old content or the new one. The new one is put together in
// staging, which is made; if that is empty or on another file system (the file is
// in /dev/shm), under a hidden name beside the file. An existing file keeps its
// mode and owner; a new one gets mode, and the group of a set-group-id directory.
// The directory must exist, and path must not be a link.
func ReplaceFile(staging, path string, mode fs.FileMode, content io.Reader) error {
	where := filepath.Dir(path)
	if staging != "" && stageFor(staging, where) {
		where = staging
	}
	temp, err := os.CreateTemp(where, ".atoll-*")
	if err != nil {
		return err
	}
	_ = syscall.Flock(int(temp.Fd()), syscall.LOCK_EX) // it has an owner, however long the content takes
	err = fillFile(temp, path, mode, content)
	if cerr := temp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

// fillFile writes content to temp, which will be the file at path.
func fillFile(temp *os.File, path string, mode fs.FileMode, content io.Reader) error {
	if _, err := io.Copy(temp, content); err != nil {
		return err
	}
	uid, gid := -1, -1
	if old, err := os.Lstat(path); err == nil {
		mode = old.Mode()
		if owner, ok := old.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(owner.Uid), int(owner.Gid)
		}
	} else if info, err := os.Stat(filepath.Dir(path)); err == nil && info.Mode()&fs.ModeSetgid != 0 {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			gid = int(owner.Gid)
		}
	}
	if uid >= 0 || gid >= 0 {
		if err := temp.Chown(uid, gid); err != nil {
			return err
		}
	}
	return temp.Chmod(mode) // behind chown, which takes set-id bits away
}

// stageFor makes the staging directory, tells whether a file can be moved from
// there into dir, and removes what killed writers have left in it.
func stageFor(staging, dir string) bool {
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return false
	}
	var here, there syscall.Stat_t
	if err := errors.Join(syscall.Stat(staging, &here), syscall.Stat(dir, &there)); err != nil || here.Dev != there.Dev {
		return false
	}
	entries, _ := os.ReadDir(staging)
	for _, entry := range entries {
		removeOrphan(filepath.Join(staging, entry.Name()))
	}
	return true
}

// removeOrphan removes a staged file that is old and that no writer holds.
func removeOrphan(path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && time.Since(info.ModTime()) > stagedFor && syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		_ = os.Remove(path)
	}
}
