// Package durable writes files that are whole or not there, and locks files.
//
// Whoever reads a path while it is written, or after the writer was killed at
// any moment, finds the old content or the new one. What [Machine] names
// outlives a crash of the machine too, once the call has returned; what
// [Process] names may be lost with the machine, or be there with any content,
// so it belongs where a reader checks what it reads or where nothing outlives
// the machine. A failed call leaves the old content and no temporary file; a
// killed one may leave a file whose name begins with [TempPrefix].
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// TempPrefix begins the names of files that are being written, beside their
// targets.
const TempPrefix = ".new-"

// Crash is what a file has to outlive.
type Crash int

const (
	// Process is a kill of this process. Nothing is synced.
	Process Crash = iota
	// Machine is a loss of power. The content is synced before the file gets its
	// name, and the directory after it.
	Machine
)

// WriteFile gives a file its content and mode. The directory must be there.
func WriteFile(path string, content []byte, mode fs.FileMode, outlive Crash) error {
	return Create(path, mode, outlive, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// Create has fill write the content of a file, which then takes the place of
// what is at the path. Nothing changes if fill reports an error, and the error
// is returned as it is.
func Create(path string, mode fs.FileMode, outlive Crash, fill func(*os.File) error) error {
	temp, err := os.CreateTemp(filepath.Dir(path), TempPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // of a failure; else it has moved
	if err := fill(temp); err != nil {
		_ = temp.Close()
		return err
	}
	err = temp.Chmod(mode)
	if outlive == Machine && err == nil {
		err = temp.Sync()
	}
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	if outlive == Machine {
		return Rename(temp.Name(), path)
	}
	return os.Rename(temp.Name(), path)
}

// Rename moves a file or a directory and makes its new name outlive the machine.
// What is in it must have been synced before. After an error it may have moved.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) != filepath.Dir(to) {
		return SyncDir(filepath.Dir(from))
	}
	return nil
}

// SyncDir makes the names in a directory outlive the machine.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sweep removes what killed writers have left in a directory, which need not be
// there. Nobody may be writing into it.
func Sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(escape.Replace(dir), TempPrefix+"*"))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// escape makes a directory's name one that a pattern matches to the letter.
var escape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)
