package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// pythonPackages is where Debian puts Python packages.
const pythonPackages = "usr/lib/python3/dist-packages"

// finishPython gives the Python packages of a distribution records that name
// their metadata alone. The distribution keeps none, and pip does not replace
// what it has no record of. With one it takes the metadata away and installs its
// own release beside, which comes first on the path: the distribution's modules
// stay, and everything agrees about the version.
func finishPython(root *os.Root) error {
	dir, err := rootResolve(root, pythonPackages, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finishing Python: %w", err)
	}
	entries, err := fs.ReadDir(root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finishing Python: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasSuffix(e.Name(), ".dist-info") {
			continue
		}
		if err := lendRecord(root, dir, e.Name()); err != nil {
			return fmt.Errorf("finishing Python: %s: %w", e.Name(), err)
		}
	}
	return nil
}

// lendRecord writes the record of one package, unless it has one.
func lendRecord(root *os.Root, dir, name string) error {
	record := path.Join(name, "RECORD")
	if _, err := root.Lstat(path.Join(dir, record)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names := []string{record}
	err := fs.WalkDir(root.FS(), path.Join(dir, name), func(at string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(at, dir+"/"))
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	var text strings.Builder
	for _, n := range names {
		fmt.Fprintf(&text, "\"%s\",,\n", strings.ReplaceAll(n, `"`, `""`))
	}
	return putFile(root, path.Join(dir, record), text.String(), 0o644)
}
