package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	_ "embed"
)

// Where npm installs global packages, by the environment of every template.
const npmModules = "usr/local/lib/node_modules"

// What keeps npm from taking / for a project: see its first lines.
var (
	//go:embed hooks/npm-project.js
	npmProjectHook string
	//go:embed hooks/npm.sh
	npmProgram string
)

// linkModules lets programs in every directory find npm's global packages: they
// look for a node_modules from their own directory up to the root, import too,
// which does not look at NODE_PATH.
func linkModules(root *os.Root) error {
	if err := root.Symlink("/"+npmModules, "node_modules"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := rootResolve(root, npmModules, false)
	if err != nil {
		return err
	}
	return root.MkdirAll(dir, 0o755)
}

// finishNpm gives a root that has npm the link to global packages, and programs
// that hide it from npm. They come first on PATH and run the npm that comes
// next, so that one that an environment installs is used as any other.
func finishNpm(root *os.Root) error {
	if !hasProgram(root, "npm") {
		return nil
	}
	if err := linkModules(root); err != nil {
		return fmt.Errorf("finishing npm: %w", err)
	}
	if err := putFile(root, "usr/local/lib/atoll/npm-project.js", npmProjectHook, 0o644); err != nil {
		return fmt.Errorf("finishing npm: %w", err)
	}
	for _, name := range []string{"npm", "npx"} {
		if _, err := lookup(root, "usr/local/sbin/"+name); err == nil {
			continue // the image has something of its own there
		}
		if err := putFile(root, "usr/local/sbin/"+name, npmProgram, 0o755); err != nil {
			return fmt.Errorf("finishing npm: %w", err)
		}
	}
	return nil
}

// hasProgram tells whether a root has a program where images have theirs.
func hasProgram(root *os.Root, name string) bool {
	for _, dir := range []string{"usr/local/bin", "usr/bin", "bin"} {
		if _, err := lookup(root, path.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// lookup finds a file in a root, through links in it; the error is
// fs.ErrNotExist if there is none.
func lookup(root *os.Root, name string) (fs.FileInfo, error) {
	at, err := rootResolve(root, name, true)
	if err != nil {
		return nil, err
	}
	return root.Lstat(at)
}
