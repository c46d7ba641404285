package image

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"
)

// goBuildCache is where a template keeps Go's standard library compiled, as a build cache.
const goBuildCache = "usr/local/lib/atoll/go-build"

// goProgram is what users call instead of go: see its first lines.
//
//go:embed hooks/go.sh
var goProgram string

// The standard library is compiled by the template's own Go, in its root. What that writes lies in the server's cache, so
// that the next template with the same Go finds it; mounts go with the mount namespace, whatever ends the compiler. The
// variants are those that people meet first: with and without cgo, and what go test's vet wants to know of each package.
const (
	goMounts = `set -e
mkdir -p "$1/tmp" "$1/proc" "$1/dev"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/tmp"
mkdir "$1/tmp/go-build"
mount --bind "$2" "$1/tmp/go-build"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp/home LANG=C.UTF-8 GOENV=off GOTOOLCHAIN=local GOPROXY=off GOFLAGS= \
	GOTELEMETRY=off GOCACHE=/tmp/go-build /bin/sh -c "$3"
`
	goCompile = `set -e
go build std
CGO_ENABLED=0 go build std
mkdir /tmp/every
cd /tmp/every
go mod init every
{
	echo 'package every'
	go list -f '{{if ne .Name "main"}}import _ "{{.ImportPath}}"{{end}}' std | grep -v -E '["/]internal["/]|"vendor/'
	echo 'import "testing"'
	echo 'func TestNothing(t *testing.T) {}'
} > every_test.go
go test -run '^$' .
`
)

// compileGo puts the standard library of the root's Go into the root, as far as it has a Go.
func (b bootstrapper) compileGo(ctx context.Context, rootfs string, p Progress) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return fmt.Errorf("compiling Go's standard library: %w", err)
	}
	defer root.Close()
	if _, err := lookup(root, "usr/bin/go"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	p.Stage("compiling Go's standard library")
	cache := filepath.Join(b.cache, "go-build")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("compiling Go's standard library: %w", err)
	}
	// Go leaves the time at what it used within the last hour. The second run uses what the first left, and nothing else.
	for range 2 {
		if err := ageFiles(cache); err != nil {
			return fmt.Errorf("compiling Go's standard library: %w", err)
		}
		if err := b.runGo(ctx, rootfs, cache, p); err != nil {
			return fmt.Errorf("compiling Go's standard library: %w", err)
		}
	}
	if err := copyUsed(cache, root); err != nil {
		return fmt.Errorf("storing Go's standard library: %w", err)
	}
	if err := finishGo(root); err != nil {
		return fmt.Errorf("storing Go's standard library: %w", err)
	}
	return nil
}

func (b bootstrapper) runGo(ctx context.Context, rootfs, cache string, p Progress) error {
	cmd := exec.CommandContext(ctx, "unshare", "--fork", "--pid", "--mount", "--propagation=private", "--kill-child=SIGKILL",
		"/bin/sh", "-c", goMounts, "sh", rootfs, cache, goCompile)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	passLock(cmd, b.lock)
	w := &bootstrapOutput{p: p}
	if err := runTied(cmd, w); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w:\n%s", err, w.tail())
	}
	return nil
}

// Times of entries of Go's build cache: goAged is of what was not used lately, and goKept is one that Go's own clean-up,
// which removes what was not used for five days, never sees pass.
var (
	goAged = func() time.Time { return time.Now().Add(-24 * time.Hour) }
	goKept = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// ageFiles makes everything in a build cache look as if it had last been used a day ago.
func ageFiles(cache string) error {
	then := goAged()
	return filepath.WalkDir(cache, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return os.Chtimes(name, then, then)
	})
}

// copyUsed copies what was used since ageFiles out of a build cache into the root.
func copyUsed(cache string, root *os.Root) error {
	if err := root.MkdirAll(goBuildCache, 0o755); err != nil {
		return err
	}
	since := goAged().Add(time.Hour)
	return filepath.WalkDir(cache, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(cache, name)
		if err != nil {
			return err
		}
		to := path.Join(goBuildCache, filepath.ToSlash(rel))
		if e.IsDir() {
			return root.MkdirAll(to, 0o755)
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || filepath.Dir(rel) == "." || info.ModTime().Before(since) {
			return err // beside the entries the cache has a text about itself and the time of its last clean-up
		}
		return copyKept(name, root, to)
	})
}

func copyKept(name string, root *os.Root, to string) error {
	from, err := os.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return root.Chtimes(to, goKept, goKept)
}

// finishGo has everybody's go commands use the compiled standard library: root's write beside it, and those of other
// users have links to it in caches of their own.
func finishGo(root *os.Root) error {
	if err := root.MkdirAll("root/.cache", 0o700); err != nil {
		return err
	}
	if err := root.Symlink("/"+goBuildCache, "root/.cache/go-build"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return putFile(root, "usr/local/bin/go", goProgram, 0o755)
}
