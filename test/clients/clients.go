// Package clients brings the official clients of other languages from their
// registries, for the tests that drive them. They are kept, by version, in the
// user's cache directory under atoll-test, and shared by tests that run at the
// same time.
package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The versions of the TypeScript client, one for each generation.
const (
	NPM      = "1.14.0"
	NPMFirst = "0.120.0"
)

// Cached returns the path of a thing in the cache directory, making it first
// if it is not there. make gets a path beside it to make it at; only when that
// succeeds does the thing get its name. Other processes wait meanwhile.
func Cached(name string, make func(path string) error) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	base = filepath.Join(base, "atoll-test")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(base, name)
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("waiting for %s: %w", path, err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	making := path + ".making"
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := make(making); err != nil {
		return "", err
	}
	return path, os.Rename(making, path)
}

// Tool is a command of a client's own tooling, without this machine's settings
// for the real service.
func Tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ANTHROPIC_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

// Python is an interpreter that has the newest Python client of the registry.
func Python(ctx context.Context) (interpreter string, err error) {
	python, err := exec.LookPath("python3")
	if err != nil {
		return "", fmt.Errorf("python3 is missing: %w", err)
	}
	version, err := exec.CommandContext(ctx, python, "-c", "import platform; print(platform.python_version())").Output()
	if err != nil {
		return "", fmt.Errorf("asking python3 for its version: %w", err)
	}
	// A virtual environment holds its own path in its scripts; python -m does not
	// mind that it is renamed.
	dir, err := Cached("python-"+strings.TrimSpace(string(version)), func(path string) error {
		return run(Tool(ctx, python, "-m", "venv", path), "making a virtual environment")
	})
	if err != nil {
		return "", err
	}
	interpreter = filepath.Join(dir, "bin", "python3")
	install := Tool(ctx, interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "anthropic")
	return interpreter, run(install, "installing the newest client")
}

// Node is a node_modules directory that has the TypeScript client of both
// generations, as @anthropic-ai/sdk and anthropic-sdk-0.
func Node(ctx context.Context) (modules string, err error) {
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			return "", fmt.Errorf("%s is missing: %w", name, err)
		}
	}
	dir, err := Cached("npm-"+NPM+"-"+NPMFirst, func(path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		return run(Tool(ctx, "npm", "install", "--no-save", "--no-package-lock", "--omit-lockfile-registry-resolved",
			"--no-audit", "--no-fund", "--prefix", path,
			"@anthropic-ai/sdk@"+NPM, "anthropic-sdk-0@npm:@anthropic-ai/sdk@"+NPMFirst), "installing the clients")
	})
	return filepath.Join(dir, "node_modules"), err
}

// Script puts a copy of a script beside a link to modules, where Node looks for
// them, and answers its path.
func Script(script, modules, dir string) (string, error) {
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		return "", err
	}
	text, err := os.ReadFile(script)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, filepath.Base(script))
	return path, os.WriteFile(path, text, 0o644)
}

func run(cmd *exec.Cmd, what string) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", what, err, out[max(0, len(out)-4000):])
	}
	return nil
}
