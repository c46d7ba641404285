package tools

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

var errLinks = errors.New("too many levels of symbolic links")

// resolve makes the path of a request absolute, follows every link in it, the
// last one included, and refuses what then lies outside of the directory and
// the roots. What does not exist yet is resolved as far as it exists. ".." goes
// before links: the path is taken as it is written.
func (p place) resolve(name string) (string, error) {
	abs := name
	if !filepath.IsAbs(name) {
		abs = p.dir + "/" + name
	}
	real, err := follow(abs)
	if err != nil {
		return "", fmt.Errorf("path %q: %s", name, reason(err))
	}
	if within(real, root(p.dir)) {
		return real, nil
	}
	for _, r := range p.roots {
		if within(real, root(r)) {
			return real, nil
		}
	}
	if len(p.roots) > 0 {
		return "", fmt.Errorf("path %q is outside the session's working directory and its other permitted directories", name)
	}
	return "", fmt.Errorf("path %q is outside the session's working directory", name)
}

// permits tells whether a resolved path is one that the file tools may write.
func (p place) permits(real string) bool {
	if within(real, root(p.dir)) {
		return true
	}
	for _, r := range p.roots {
		if within(real, root(r)) {
			return true
		}
	}
	return false
}

// root resolves a permitted directory as paths are resolved. One that cannot be
// is compared as it stands, and no resolved path lies in it.
func root(dir string) string {
	if real, err := follow(dir); err == nil {
		return real
	}
	return filepath.Clean(dir)
}

// within tells whether path is dir or below it. Both are absolute and clean.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// follow resolves all links of an absolute path, one element after the other.
func follow(path string) (string, error) {
	rest := strings.Split(filepath.Clean(path), "/")
	at, links := "/", 0
	for len(rest) > 0 {
		next := rest[0]
		rest = rest[1:]
		switch next {
		case "", ".":
			continue
		case "..": // of a link's target
			at = filepath.Dir(at)
			continue
		}
		here := filepath.Join(at, next)
		info, err := os.Lstat(here)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			return filepath.Join(append([]string{here}, rest...)...), nil
		case err != nil:
			return "", err
		case info.Mode()&os.ModeSymlink == 0:
			at = here
			continue
		}
		if links++; links > maxLinks {
			return "", errLinks
		}
		target, err := os.Readlink(here)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}
