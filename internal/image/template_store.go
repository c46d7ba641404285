package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atoll-run/atoll/internal/outbound"
)

// baseFormat is part of every digest: raise it when what a declaration means has changed.
const baseFormat = "4"

// TemplatesConfig says where templates live and what the operator adds.
type TemplatesConfig struct {
	// CacheDir holds everything; empty is DefaultCacheDir.
	CacheDir string
	// Holder is the data directory of the server whose environments use the templates: versions that it asked for stay
	// while it is there and needs them. Empty holds nothing.
	Holder string
	// Declarations are the operator's; one with the name of a built-in replaces it.
	Declarations []Declaration
	// RegistryOverrides maps a template, or "*" for all, to managers, to hosts ("host" or "host:port"). The hosts
	// replace the learned ones of that manager; a host that begins with "+" is added to them instead.
	RegistryOverrides map[string]map[string][]string
	// ExtraCAFile is a PEM bundle with the authorities that go into templates; empty is the host's own extra ones.
	ExtraCAFile string
	// Logger; nil discards.
	Logger *slog.Logger
	// OpenBox opens the sandboxes in which a template's package managers are asked; nil leaves registries and
	// versions unknown.
	OpenBox OpenBox
}

// Templates knows the declared templates and keeps their built versions. Its methods may be called concurrently, and
// several processes may share the cache directory.
type Templates struct {
	cache     string
	holder    string
	decls     map[string]Declaration
	parents   map[string]string                                // template → the one whose root it takes over, of those that add no packages
	overrides atomic.Pointer[map[string]map[string][]Registry] // SetRegistries replaces it
	extraCA   string
	log       *slog.Logger
	openBox   OpenBox
	etc       string

	mu    sync.Mutex
	known map[string]*Manifest // built versions by digest; never changed once here
}

// DefaultCacheDir is $ATOLL_CACHE, or "atoll" in the user's cache directory, or /var/cache/atoll.
func DefaultCacheDir() string {
	if dir := os.Getenv("ATOLL_CACHE"); dir != "" {
		return dir
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "atoll")
	}
	return "/var/cache/atoll"
}

// NewTemplates checks every declaration and override, and reports all that is wrong at once. It builds nothing.
func NewTemplates(c TemplatesConfig) (*Templates, error) {
	t := &Templates{cache: c.CacheDir, decls: map[string]Declaration{}, parents: map[string]string{}, extraCA: c.ExtraCAFile, log: c.Logger, openBox: c.OpenBox,
		etc: "/etc", known: map[string]*Manifest{}}
	if t.cache == "" {
		t.cache = DefaultCacheDir()
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if t.cache, err = filepath.Abs(t.cache); err != nil {
		return nil, fmt.Errorf("finding the cache directory: %w", err)
	}
	if c.Holder != "" {
		if t.holder, err = filepath.Abs(c.Holder); err != nil {
			return nil, fmt.Errorf("finding the data directory: %w", err)
		}
	}
	raw, err := Builtins()
	if err != nil {
		return nil, err
	}
	for _, d := range raw {
		t.decls[d.Name] = d
	}
	var errs []error
	own := map[string]bool{}
	for _, d := range c.Declarations {
		if own[d.Name] {
			errs = append(errs, fmt.Errorf("template %q is declared twice", d.Name))
		}
		own[d.Name] = true
		errs = append(errs, d.Validate())
		t.decls[d.Name] = d
	}
	resolved := map[string]Declaration{}
	for name, d := range t.decls {
		r, err := resolve(d, t.decls)
		errs = append(errs, err)
		resolved[name] = r
		if d.From != "" && (d.Debian == nil || len(d.Debian.Packages)+len(d.Debian.Suites) == 0) {
			t.parents[name] = d.From
		}
	}
	t.decls = resolved
	if err := errors.Join(append(errs, t.SetRegistries(c.RegistryOverrides))...); err != nil {
		return nil, err
	}
	return t, nil
}

// SetRegistries replaces the operator's registries (TemplatesConfig.RegistryOverrides) in every base that is asked for
// from now on. After an error the old ones stand.
func (t *Templates) SetRegistries(in map[string]map[string][]string) error {
	overrides, err := parseOverrides(in, t.Known)
	if err != nil {
		return err
	}
	t.overrides.Store(&overrides)
	return nil
}

// Names lists the declared templates, sorted.
func (t *Templates) Names() []string { return slices.Sorted(maps.Keys(t.decls)) }

// Known tells whether a template of that name is declared.
func (t *Templates) Known(name string) bool { _, ok := t.decls[name]; return ok }

// Default is the template of environments that name none.
func (t *Templates) Default() string { return "base" }

// Lookup returns the newest built version of the template for its present declaration and authorities, else the
// newest built version at all, without building.
func (t *Templates) Lookup(name string) (*Base, bool) {
	d, ok := t.decls[name]
	if !ok {
		return nil, false
	}
	var newest *Manifest
	inputs, _, err := t.inputs(d)
	for _, m := range t.versions(name) {
		if err == nil && m.Inputs == inputs {
			newest = m
			break
		}
		if newest == nil {
			newest = m
		}
	}
	if newest == nil {
		return nil, false
	}
	return t.base(newest), true
}

// Show returns what is known of a template: of its newest version if it is built, else its declaration. It fails for
// a template that is not declared.
func (t *Templates) Show(name string) (Manifest, error) {
	d, ok := t.decls[name]
	if !ok {
		return Manifest{}, fmt.Errorf("no template %q: there are %s", name, strings.Join(t.Names(), ", "))
	}
	if b, ok := t.Lookup(name); ok {
		t.mu.Lock()
		m := *t.known[b.Digest]
		t.mu.Unlock()
		m.Base, m.Built, m.Description = *b, true, d.Description
		return m, nil
	}
	return Manifest{Base: Base{Template: name, Arch: runtime.GOARCH}, Description: d.Description, Declaration: d}, nil
}

// List is Show of every declared template.
func (t *Templates) List() ([]Manifest, error) {
	var out []Manifest
	for _, name := range t.Names() {
		m, err := t.Show(name)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// BaseDirs lists every built version in the cache, of templates that are no longer declared too, newest first. The
// version's own directory, with its manifest, is the parent of Dir.
func (t *Templates) BaseDirs() []*Base {
	var out []*Base
	for _, m := range t.versions("") {
		out = append(out, t.base(m))
	}
	return out
}

// Ensure returns a version of the template for its present declaration and the host's present authorities, building
// it if there is none. One build runs at a time for each template, across goroutines and processes; others wait for
// it. p may be nil.
func (t *Templates) Ensure(ctx context.Context, name string, p Progress) (*Base, error) {
	return t.ensure(ctx, name, p, false)
}

// Rebuild builds a new version even if there is one, to take up what the distribution or the registry has published
// since. It returns the existing one when nothing has changed.
func (t *Templates) Rebuild(ctx context.Context, name string, p Progress) (*Base, error) {
	return t.ensure(ctx, name, p, true)
}

func (t *Templates) ensure(ctx context.Context, name string, p Progress, fresh bool) (*Base, error) {
	d, ok := t.decls[name]
	if !ok {
		return nil, fmt.Errorf("no template %q: there are %s", name, strings.Join(t.Names(), ", "))
	}
	m, err := t.version(ctx, d, safeProgress{p}, fresh, t.openBox != nil)
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", name, err)
	}
	return t.base(m), nil
}

// version finds or builds a version of the template and holds it; with learn, one whose tools were asked.
func (t *Templates) version(ctx context.Context, d Declaration, p safeProgress, fresh, learn bool) (*Manifest, error) {
	for {
		m, err := t.findOrBuild(ctx, d, p, fresh, learn)
		if err != nil {
			return nil, err
		}
		if err = t.hold(ctx, m.Digest); !errors.Is(err, fs.ErrNotExist) {
			return m, err
		}
		fresh = false // another server removed the version just now
	}
}

func (t *Templates) findOrBuild(ctx context.Context, d Declaration, p safeProgress, fresh, learn bool) (*Manifest, error) {
	inputs, cas, err := t.inputs(d)
	if err != nil {
		return nil, err
	}
	if m := t.find(d.Name, inputs); m != nil && !fresh && (m.Learned || !learn) {
		return m, nil
	}
	lock, err := lockFile(ctx, filepath.Join(t.cache, "locks", "base-"+d.Name+".lock"), func() {
		p.Stage("waiting for another build of this template")
	})
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	m := t.find(d.Name, inputs)
	if m == nil || fresh {
		if m, err = t.build(ctx, d, inputs, cas, lock, fresh, p); err != nil {
			return nil, err
		}
	}
	if !m.Learned && learn {
		return t.learn(ctx, m, p)
	}
	return m, nil
}

// inputs hashes everything outside the source itself that decides what a build makes: with the same inputs an
// existing version is used without asking the source.
func (t *Templates) inputs(d Declaration) (string, []Authority, error) {
	cas, err := extraAuthorities(filepath.Dir(t.etc), t.extraCA)
	if err != nil {
		return "", nil, err
	}
	decl := d
	decl.Description, decl.Runtimes = "", nil // they change nothing in the root
	b, err := json.Marshal(decl)
	if err != nil {
		return "", nil, fmt.Errorf("encoding the declaration: %w", err)
	}
	fields := []string{baseFormat, d.Name, runtime.GOARCH, string(b)}
	for _, a := range cas {
		fields = append(fields, a.SHA256)
	}
	if d.Debian != nil {
		lines, err := bootstrapper{etc: t.etc}.plan(d.Debian)
		if err != nil {
			return "", nil, err
		}
		fields = append(fields, lines...)
	}
	return hashFields(fields...), cas, nil
}

// build makes a new version in scratch space and moves it into its place. The template's lock is held.
func (t *Templates) build(ctx context.Context, d Declaration, inputs string, cas []Authority, lock *os.File, fresh bool, p safeProgress) (*Manifest, error) {
	start := time.Now()
	t.log.Info("building template", "template", d.Name)
	scratchRoot := filepath.Join(t.cache, "scratch")
	if err := os.MkdirAll(scratchRoot, 0o700); err != nil {
		return nil, fmt.Errorf("making scratch space: %w", err)
	}
	// Whoever left something here held the lock and is gone.
	for _, old := range globDirs(filepath.Join(scratchRoot, "base-"+d.Name+"@*")) {
		if err := os.RemoveAll(old); err != nil {
			return nil, fmt.Errorf("removing the rest of an earlier build: %w", err)
		}
	}
	scratch, err := os.MkdirTemp(scratchRoot, "base-"+d.Name+"@")
	if err != nil {
		return nil, fmt.Errorf("making scratch space: %w", err)
	}
	defer os.RemoveAll(scratch)
	rootfs := filepath.Join(scratch, "version", "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, fmt.Errorf("making scratch space: %w", err)
	}
	m := &Manifest{Base: Base{Template: d.Name, Arch: runtime.GOARCH}, Format: baseFormat, Inputs: inputs,
		Description: d.Description, Declaration: d, Authorities: cas, Built: true}
	if err := t.root(ctx, d, cas, rootfs, scratch, lock, m, fresh, p); err != nil {
		return nil, err
	}
	if err := putFiles(rootfs, d.Files, d.Links); err != nil {
		return nil, err
	}
	if m.SizeBytes, err = treeSize(rootfs); err != nil {
		return nil, err
	}
	m.Digest = hashFields(inputs, m.Source)
	m.CreatedAt = time.Now().UTC().Truncate(time.Second)
	if err := t.commit(m, filepath.Join(scratch, "version")); err != nil {
		return nil, err
	}
	t.log.Info("built template", "template", d.Name, "digest", m.Digest, "bytes", m.SizeBytes, "duration", time.Since(start))
	return m, nil
}

// root fills rootfs and the manifest: from the template that this one extends where that is all there is to it, else
// from the source.
func (t *Templates) root(ctx context.Context, d Declaration, cas []Authority, rootfs, scratch string, lock *os.File, m *Manifest, fresh bool, p safeProgress) error {
	if parent, ok := t.parents[d.Name]; ok {
		from, err := t.version(ctx, t.decls[parent], p, fresh, false)
		if err != nil {
			return fmt.Errorf("from %s: %w", parent, err)
		}
		p.Stage("copying template " + parent)
		m.Source, m.Warnings, m.Arch, m.WorkingDir, m.Env = from.Source, from.builtWarnings(), from.Arch, from.WorkingDir, withEnv(from.Env, d.Env)
		return linkTree(ctx, filepath.Join(t.basesDir(), from.Digest, "rootfs"), rootfs)
	}
	imageEnv, err := t.source(ctx, d, cas, rootfs, scratch, lock, m, p)
	if err != nil {
		return err
	}
	p.Stage("storing the template")
	return finishRoot(rootfs, d, imageEnv, cas, m)
}

// source fills rootfs, sets the manifest's Source, and returns the environment that the image brings.
func (t *Templates) source(ctx context.Context, d Declaration, cas []Authority, rootfs, scratch string, lock *os.File, m *Manifest, p Progress) ([]string, error) {
	switch {
	case d.Debian != nil:
		// apt locks its download directory for itself; waiting in line is kinder than its error.
		debs, err := lockFile(ctx, filepath.Join(t.cache, "locks", "debs.lock"), func() { p.Stage("waiting for another bootstrap") })
		if err != nil {
			return nil, err
		}
		defer debs.Close()
		b := bootstrapper{cache: t.cache, etc: t.etc, lock: lock}
		if err := b.bootstrap(ctx, d.Debian, cas, rootfs, scratch, p); err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(rootfs)
		if err != nil {
			return nil, fmt.Errorf("reading the new root: %w", err)
		}
		defer root.Close()
		packages, err := debianPackages(root)
		if err != nil {
			return nil, err
		}
		m.Source = "debian " + d.Debian.Suite + " packages " + hashFields(packages...)
		return nil, nil
	case d.OCI != nil:
		transport, err := t.transport()
		if err != nil {
			return nil, err
		}
		got, err := pullOCI(ctx, d.OCI, runtime.GOARCH, t.cache, scratch, rootfs, outbound.Guard(transport, outbound.Downloads), p)
		if err != nil {
			return nil, err
		}
		m.Source, m.Warnings, m.Arch, m.WorkingDir = "oci "+got.digest, got.skipped, got.arch, got.config.WorkingDir
		return got.config.Env, nil
	default:
		transport, err := t.transport()
		if err != nil {
			return nil, err
		}
		m.Source = "tarball sha256:" + d.Tarball.SHA256
		m.Warnings, err = unpackTarball(ctx, d.Tarball, t.cache, scratch, rootfs, outbound.New(outbound.Config{Transport: transport, Redirects: outbound.Downloads}), p)
		return nil, err
	}
}

// transport connects as all clients of the server do, and also trusts the
// configured authorities.
func (t *Templates) transport() (http.RoundTripper, error) {
	tr := outbound.Transport()
	if t.extraCA == "" {
		return tr, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the host's authorities: %w", err)
	}
	cas, err := ExtraAuthorities(t.extraCA)
	if err != nil {
		return nil, err
	}
	for _, a := range cas {
		pool.AppendCertsFromPEM(a.PEM())
	}
	tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return tr, nil
}
