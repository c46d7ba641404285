package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/atoll-run/atoll/internal/durable"
	"golang.org/x/sys/unix"
)

// Manifest is everything that is known of a template, built or not.
type Manifest struct {
	Base
	// Built is false for a template that was never built: then only the declaration is known.
	Built bool `json:"built"`
	// Format is the version of the manifest and of what builds of this program put into a root.
	Format string `json:"format,omitempty"`
	// Description is the declaration's; empty if it has none.
	Description string `json:"description,omitempty"`
	// Declaration is what the template was built from, with what it extends filled in.
	Declaration Declaration `json:"declaration"`
	// Inputs is the hash of all that decides what is built, apart from what the source publishes.
	Inputs string `json:"inputs,omitempty"`
	// Source identifies what the source published: a hash of the package list, an image digest, a file's sum.
	Source string `json:"source,omitempty"`
	// Authorities are those added to what the distribution trusts.
	Authorities []Authority `json:"authorities,omitempty"`
	// WorkingDir is the image's own, for information: sandboxes start in /workspace.
	WorkingDir string `json:"working_dir,omitempty"`
	// Learned is true once the template's tools were asked for their registries and versions.
	Learned bool `json:"learned"`
	// Warnings are what could not be done as asked: probes that failed, entries left out.
	Warnings []string `json:"warnings,omitempty"`

	learnedWarnings int // how many at the end of Warnings are of learning
}

// learnedFormat is raised when learning has become better: what an older one stored does not count.
const learnedFormat = "3"

// learned is what asking a built version's tools told; it is stored beside the manifest, which never changes.
type learned struct {
	Format     string            `json:"format"`
	Managers   map[string]string `json:"managers"`
	Runtimes   map[string]string `json:"runtimes"`
	Registries []Registry        `json:"registries"`
	Warnings   []string          `json:"warnings,omitempty"`
}

func (t *Templates) basesDir() string { return filepath.Join(t.cache, "bases") }

func globDirs(pattern string) []string {
	got, _ := filepath.Glob(pattern)
	return got
}

// versions lists the built versions of a template, of all when name is empty, newest first.
func (t *Templates) versions(name string) []*Manifest {
	entries, err := os.ReadDir(t.basesDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.log.Warn("listing templates", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*Manifest
	for _, e := range entries {
		m := t.known[e.Name()]
		if m == nil || !m.Learned {
			if m, err = readManifest(filepath.Join(t.basesDir(), e.Name())); err != nil {
				t.log.Warn("reading a template's manifest", "version", e.Name(), "error", err)
				continue
			}
			t.known[e.Name()] = m
		}
		if name == "" || m.Template == name {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *Manifest) int {
		return 2*b.CreatedAt.Compare(a.CreatedAt) + strings.Compare(a.Digest, b.Digest)
	})
	return out
}

// find returns the newest version with these inputs, or nil.
func (t *Templates) find(name, inputs string) *Manifest {
	for _, m := range t.versions(name) {
		if m.Inputs == inputs {
			return m
		}
	}
	return nil
}

// base is the manifest's base with the operator's registries applied.
func (t *Templates) base(m *Manifest) *Base {
	b := m.Base
	b.Env, b.Managers, b.Runtimes = slices.Clone(b.Env), maps.Clone(b.Managers), maps.Clone(b.Runtimes)
	overrides := *t.overrides.Load()
	b.Registries = applyOverrides(b.Registries, overrides[m.Template], overrides["*"])
	b.Dir, b.Packages = filepath.Join(t.basesDir(), m.Digest, "rootfs"), Packages(m.Declaration.Packages)
	return &b
}

func readManifest(dir string) (*Manifest, error) {
	var m Manifest
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	if m.Digest != filepath.Base(dir) || !m.Built {
		return nil, errors.New("reading manifest: it is of another version")
	}
	b, err = os.ReadFile(filepath.Join(dir, "learned.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &m, nil
	}
	var l learned
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was learned: %w", err)
	}
	if l.Format == learnedFormat { // else it is learned again
		m.add(l)
	}
	return &m, nil
}

func (m *Manifest) add(l learned) {
	m.Learned, m.Managers, m.Runtimes, m.Registries = true, l.Managers, l.Runtimes, l.Registries
	m.Warnings, m.learnedWarnings = append(slices.Clone(m.Warnings), l.Warnings...), len(l.Warnings)
}

// builtWarnings are those of the build, without those of learning.
func (m *Manifest) builtWarnings() []string {
	return slices.Clone(m.Warnings[:len(m.Warnings)-m.learnedWarnings])
}

// commit makes the version durable and gives it its place. A version that is there already is kept: the same digest
// is the same content.
func (t *Templates) commit(m *Manifest, dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding manifest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing manifest: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("storing template: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("storing template: %w", err)
	}
	if err := os.MkdirAll(t.basesDir(), 0o700); err != nil {
		return fmt.Errorf("storing template: %w", err)
	}
	final := filepath.Join(t.basesDir(), m.Digest)
	if _, err := readManifest(final); err == nil {
		return nil
	}
	if err := durable.Rename(dir, final); err != nil {
		return fmt.Errorf("storing template: %w", err)
	}
	return nil
}

// storeLearned writes learned.json beside the manifest, whole or not at all.
func (t *Templates) storeLearned(m *Manifest, l learned) (*Manifest, error) {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding what was learned: %w", err)
	}
	dir := filepath.Join(t.basesDir(), m.Digest)
	if err := durable.WriteFile(filepath.Join(dir, "learned.json"), append(b, '\n'), 0o644, durable.Machine); err != nil {
		return nil, fmt.Errorf("storing what was learned: %w", err)
	}
	with := *m
	with.add(l)
	t.mu.Lock()
	t.known[m.Digest] = &with
	t.mu.Unlock()
	return &with, nil
}

// lockFile takes the lock of a cache directory that other servers may share.
// waiting is called once if another has it.
func lockFile(ctx context.Context, name string, waiting func()) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	return durable.Lock(ctx, name, waiting)
}

// finishRoot adds what every template has whatever it was made from, and fills in the manifest's Env.
func finishRoot(rootfs string, d Declaration, imageEnv []string, cas []Authority, m *Manifest) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return fmt.Errorf("finishing the root: %w", err)
	}
	defer root.Close()
	bundle, err := installAuthorities(root, cas)
	if err != nil {
		return err
	}
	for _, dir := range []string{"workspace", "mnt/session/uploads", "mnt/session/outputs", "proc", "sys", "dev", "tmp", "root", "etc"} {
		real, err := rootResolve(root, dir, false)
		if err == nil {
			err = root.MkdirAll(real, 0o755)
		}
		if err != nil {
			return fmt.Errorf("finishing the root: %s: %w", dir, err)
		}
	}
	if err := emptyDir(root, "dev"); err != nil {
		return err
	}
	if tmp, err := rootResolve(root, "tmp", true); err == nil {
		if err := root.Chmod(tmp, 0o777|os.ModeSticky); err != nil {
			return fmt.Errorf("finishing the root: %w", err)
		}
	}
	if err := os.Chmod(rootfs, 0o755); err != nil {
		return fmt.Errorf("finishing the root: %w", err)
	}
	if err := errors.Join(finishNpm(root), finishPython(root)); err != nil {
		return err
	}
	m.Env = baseEnv(imageEnv, d.Env, bundle)
	return nil
}

func emptyDir(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return fmt.Errorf("emptying %s: %w", dir, err)
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	for _, n := range names {
		err = errors.Join(err, root.RemoveAll(path.Join(dir, n)))
	}
	if err != nil {
		return fmt.Errorf("emptying %s: %w", dir, err)
	}
	return nil
}

// baseEnv is the environment of everything on the template: ours, over that the image's, over that the
// declaration's. The image's PATH comes first in PATH.
func baseEnv(imageEnv []string, own map[string]string, bundle string) []string {
	env := map[string]string{}
	set := func(list ...string) {
		for _, kv := range list {
			if k, v, ok := strings.Cut(kv, "="); ok && envName.MatchString(k) && !strings.ContainsRune(v, 0) {
				env[k] = v
			}
		}
	}
	set("HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"PIP_BREAK_SYSTEM_PACKAGES=1", "PIP_ROOT_USER_ACTION=ignore", "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1",
		"NPM_CONFIG_PREFIX=/usr/local", "NODE_PATH=/usr/local/lib/node_modules", "NPM_CONFIG_FUND=false", "NPM_CONFIG_AUDIT=false",
		"NPM_CONFIG_UPDATE_NOTIFIER=false", "GOBIN=/usr/local/bin", "CARGO_INSTALL_ROOT=/usr/local")
	set(imageEnv...)
	set(caEnv(bundle)...)
	var dirs []string
	for _, dir := range strings.Split(env["PATH"]+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ":") {
		if dir != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	env["PATH"] = strings.Join(dirs, ":")
	maps.Copy(env, own)
	return envList(env)
}

// withEnv is an environment with variables added or replaced.
func withEnv(list []string, own map[string]string) []string {
	env := map[string]string{}
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	maps.Copy(env, own)
	return envList(env)
}

func envList(env map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// treeSize is the disk space of a tree, hard links counted once.
func treeSize(dir string) (int64, error) {
	total, _, err := treeRoom(dir)
	return total, err
}

// treeRoom tells how many bytes of blocks and how many inodes a tree takes.
func treeRoom(dir string) (total, inodes int64, err error) {
	linked := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Nlink > 1 && !e.IsDir() && linked[st.Ino] {
			return nil
		}
		linked[st.Ino] = true
		total, inodes = total+st.Blocks*512, inodes+1
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measuring the tree: %w", err)
	}
	return total, inodes, nil
}
