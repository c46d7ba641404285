package image

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Declaration says how a template is made. Exactly one of Debian, OCI and Tarball is set, except that a declaration
// with From may set only Debian, which then adds to the other's packages. One that adds none of these is made from the
// other's root without building that again.
type Declaration struct {
	// Name is how environments refer to it: lower-case letters, digits, "-", "_" and ".", at most 64.
	Name string `yaml:"name" json:"name"`
	// Description is for people.
	Description string `yaml:"description,omitempty" json:"description,omitempty"`
	// From names a template that this one extends: its source, env, files, packages and runtimes, with what is here added.
	From string `yaml:"from,omitempty" json:"from,omitempty"`
	// Debian, OCI and Tarball are where the root comes from: exactly one, here or in the template that
	// From names. Debian bootstraps it.
	Debian *Debian `yaml:"debian,omitempty" json:"debian,omitempty"`
	// OCI takes an image of a registry.
	OCI *OCI `yaml:"oci,omitempty" json:"oci,omitempty"`
	// Tarball takes a file.
	Tarball *Tarball `yaml:"tarball,omitempty" json:"tarball,omitempty"`
	// Packages are those of package managers, apt too. They are no part of the root: they become layers, as those of
	// environments do, and lie below these. So every environment of the template has them, and installs of packages
	// that nobody vouches for have no part in making a root.
	Packages TemplatePackages `yaml:"packages,omitempty" json:"packages,omitzero"`
	// Env is added to the environment of everything that runs on the template, over what the image says.
	Env map[string]string `yaml:"env,omitempty" json:"env,omitempty"`
	// Files are written into the root, over what the image has there: absolute path to content, owned by root, mode
	// 0644. They are for settings such as /etc/pip.conf and /etc/gemrc; at most 1 MiB together.
	Files map[string]string `yaml:"files,omitempty" json:"files,omitempty"`
	// Links are symbolic links in the root, over what the image has there: absolute path to target.
	Links map[string]string `yaml:"links,omitempty" json:"links,omitempty"`
	// Runtimes maps a name to the command that prints its version.
	Runtimes map[string][]string `yaml:"runtimes,omitempty" json:"runtimes,omitempty"`
}

// TemplatePackages are the package lists of a template: a Packages, as a declaration writes it.
type TemplatePackages struct {
	// Apt are Debian packages: "name[:arch]", with "=version" or "/release".
	Apt []string `yaml:"apt,omitempty" json:"apt,omitempty"`
	// Cargo are programs of crates: "name[@requirement]".
	Cargo []string `yaml:"cargo,omitempty" json:"cargo,omitempty"`
	// Gem are Ruby gems: "name[:requirement]".
	Gem []string `yaml:"gem,omitempty" json:"gem,omitempty"`
	// Go are programs of modules: "import/path[@version]".
	Go []string `yaml:"go,omitempty" json:"go,omitempty"`
	// Npm are global packages of Node: "[@scope/]name[@tag-or-range]".
	Npm []string `yaml:"npm,omitempty" json:"npm,omitempty"`
	// Pip are requirements of PEP 508 without URLs.
	Pip []string `yaml:"pip,omitempty" json:"pip,omitempty"`
	// AptRecommends has apt install what the packages of Apt recommend, too.
	AptRecommends bool `yaml:"apt_recommends,omitempty" json:"apt_recommends,omitempty"`
}

// with returns the lists of p and then those of more.
func (p TemplatePackages) with(more TemplatePackages) TemplatePackages {
	return TemplatePackages{Apt: slices.Concat(p.Apt, more.Apt), Cargo: slices.Concat(p.Cargo, more.Cargo), Gem: slices.Concat(p.Gem, more.Gem),
		Go: slices.Concat(p.Go, more.Go), Npm: slices.Concat(p.Npm, more.Npm), Pip: slices.Concat(p.Pip, more.Pip), AptRecommends: p.AptRecommends || more.AptRecommends}
}

// Debian is a template bootstrapped with mmdebstrap.
type Debian struct {
	// Suite is the release, "trixie".
	Suite string `yaml:"suite,omitempty" json:"suite,omitempty"`
	// Suites are further ones of the same archive, as "trixie-backports", each with the packages that come from there: a
	// package's name, or "src:NAME" for all that are built from one source. Nothing else comes from there unless one of
	// these needs it. apt in sandboxes follows the same rule.
	Suites map[string][]string `yaml:"suites,omitempty" json:"suites,omitempty"`
	// Variant is mmdebstrap's; empty is minbase.
	Variant string `yaml:"variant,omitempty" json:"variant,omitempty"`
	// Components of the archive; empty is main.
	Components []string `yaml:"components,omitempty" json:"components,omitempty"`
	// Packages beside those of the variant; with From, beside the other template's.
	Packages []string `yaml:"packages,omitempty" json:"packages,omitempty"`
	// Mirror is the URL of the archive; empty is the one in the host's own apt sources.
	Mirror string `yaml:"mirror,omitempty" json:"mirror,omitempty"`
	// SecurityMirror is the URL of the security archive; empty is the host's, or none when Mirror is set.
	SecurityMirror string `yaml:"security_mirror,omitempty" json:"security_mirror,omitempty"`
	// Keyring is the file with the archive's keys; empty is the host's keyring for its own sources.
	Keyring string `yaml:"keyring,omitempty" json:"keyring,omitempty"`
}

// OCI is a template made of a container image, its layers flattened.
type OCI struct {
	// Ref is an image reference with a registry: "registry.example.com/team/image:tag".
	Ref string `yaml:"ref" json:"ref"`
	// Platform is "os/arch[/variant]"; empty is linux on the host's architecture.
	Platform string `yaml:"platform,omitempty" json:"platform,omitempty"`
	// PlainHTTP talks to the registry without TLS.
	PlainHTTP bool `yaml:"plain_http,omitempty" json:"plain_http,omitempty"`
}

// Tarball is a template unpacked from an archive: tar, plain or compressed by gzip, bzip2, xz or zstd.
type Tarball struct {
	// Path is a file on the host; URL is fetched. Exactly one is set.
	Path string `yaml:"path,omitempty" json:"path,omitempty"`
	// URL is http or https, with a host and without credentials.
	URL string `yaml:"url,omitempty" json:"url,omitempty"`
	// SHA256 of the file, 64 hexadecimal digits; it is always checked.
	SHA256 string `yaml:"sha256" json:"sha256"`
}

//go:embed templates/*.yaml
var builtinFiles embed.FS

var (
	templateName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	debianWord    = regexp.MustCompile(`^[a-z0-9][a-zA-Z0-9+._-]*$`)
	debianPackage = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	envName       = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	sha256Hex     = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Builtins returns the declarations that Atoll comes with: base, code_interpreter and slim.
func Builtins() ([]Declaration, error) {
	entries, err := builtinFiles.ReadDir("templates")
	if err != nil {
		return nil, fmt.Errorf("reading built-in templates: %w", err)
	}
	var out []Declaration
	for _, e := range entries {
		b, err := builtinFiles.ReadFile("templates/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("reading built-in templates: %w", err)
		}
		d, err := ParseDeclaration(b)
		if err != nil {
			return nil, fmt.Errorf("built-in template %s: %w", e.Name(), err)
		}
		out = append(out, d)
	}
	return out, nil
}

// ParseDeclaration reads one template from YAML. Unknown fields, several documents and anything that Validate refuses
// are errors.
func ParseDeclaration(b []byte) (Declaration, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	var d Declaration
	if err := dec.Decode(&d); err != nil {
		return Declaration{}, fmt.Errorf("parsing template: %w", err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Declaration{}, errors.New("parsing template: more than one document")
	}
	return d, d.Validate()
}

// Validate tells everything that is wrong with the declaration, joined. It does not know other templates, so it
// cannot tell whether From exists.
func (d Declaration) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("template %q: "+format, append([]any{d.Name}, args...)...))
	}
	if !templateName.MatchString(d.Name) {
		bad("name must be lower-case letters, digits, '-', '_' and '.', at most 64")
	}
	sources := 0
	for _, set := range []bool{d.Debian != nil, d.OCI != nil, d.Tarball != nil} {
		if set {
			sources++
		}
	}
	switch {
	case d.From == "" && sources != 1:
		bad("exactly one of debian, oci and tarball is needed")
	case d.From != "" && (d.OCI != nil || d.Tarball != nil):
		bad("with from, only debian packages can be added")
	case d.From != "" && d.Debian != nil && !d.Debian.onlyPackages():
		bad("with from, debian can only have packages and suites")
	}
	if d.Debian != nil {
		d.Debian.validate(d.From == "", bad)
	}
	if d.OCI != nil {
		if err := d.OCI.validate(); err != nil {
			bad("%w", err)
		}
	}
	if d.Tarball != nil {
		d.Tarball.validate(bad)
	}
	for k, v := range d.Env {
		if !envName.MatchString(k) || strings.ContainsAny(v, "\x00\n") {
			bad("env %q: a name is letters, digits and '_', a value has no newline", k)
		}
	}
	d.validateFiles(bad)
	if err := CheckPackages(Packages(d.Packages)); err != nil {
		bad("%w", err)
	}
	for k, argv := range d.Runtimes {
		if k == "" || len(argv) == 0 || argv[0] == "" {
			bad("runtime %q needs a command", k)
		}
	}
	return errors.Join(errs...)
}

func (d Declaration) validateFiles(bad func(string, ...any)) {
	total := 0
	for name, content := range d.Files {
		validatePath("files", name, bad)
		total += len(content)
	}
	if total > maxTemplateFiles {
		bad("files: more than %d bytes together", maxTemplateFiles)
	}
	for name, target := range d.Links {
		validatePath("links", name, bad)
		if target == "" || len(target) > maxTemplateLink || strings.ContainsFunc(target, unicode.IsControl) {
			bad("links: %q: the target must be 1 to %d bytes without control characters", name, maxTemplateLink)
		}
		if _, twice := d.Files[name]; twice {
			bad("links: %q is one of files, too", name)
		}
	}
}

// validatePath refuses a path that a template cannot have, or that no sandbox would see.
func validatePath(field, name string, bad func(string, ...any)) {
	top, rest, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" || strings.ContainsFunc(name, unicode.IsControl) {
		bad("%s: %q is not a clean absolute path", field, name)
	}
	if rest != "" && slices.Contains([]string{"proc", "sys", "dev", "tmp", "run", "workspace"}, top) || strings.HasPrefix(name, "/mnt/session/") {
		bad("%s: %q is in a directory that each sandbox has for itself", field, name)
	}
}

// maxTemplateFiles bounds the content of Files, which every manifest repeats.
const maxTemplateFiles = 1 << 20

// maxTemplateLink bounds the target of a link.
const maxTemplateLink = 1024

func (d *Debian) onlyPackages() bool {
	return d.Suite == "" && d.Variant == "" && len(d.Components) == 0 && d.Mirror == "" && d.SecurityMirror == "" && d.Keyring == ""
}

func (d *Debian) validate(whole bool, bad func(string, ...any)) {
	if whole && d.Suite == "" {
		bad("debian.suite is needed")
	}
	for _, w := range slices.Concat([]string{d.Suite, d.Variant}, d.Components) {
		if w != "" && !debianWord.MatchString(w) {
			bad("debian: %q is not a suite, variant or component", w)
		}
	}
	for _, p := range d.Packages {
		if !debianPackageName(p) {
			bad("debian.packages: %q is not a package name", p)
		}
	}
	for suite, packages := range d.Suites {
		if !debianWord.MatchString(suite) || suite == d.Suite {
			bad("debian.suites: %q is not a suite beside debian.suite", suite)
		}
		if len(packages) == 0 {
			bad("debian.suites: %q: say which packages come from there", suite)
		}
		for _, p := range packages {
			if !debianPackageName(strings.TrimPrefix(p, "src:")) {
				bad("debian.suites: %q is not a package name", p)
			}
		}
	}
	for _, m := range []string{d.Mirror, d.SecurityMirror} {
		if m != "" && !mirrorURL(m) {
			bad("debian: mirror %q must be an http, https or file URL without credentials", m)
		}
	}
	if d.Keyring != "" && (!path.IsAbs(d.Keyring) || strings.ContainsAny(d.Keyring, " \t\n],")) {
		bad("debian.keyring must be an absolute path")
	}
}

// debianPackageName tells whether a name is one of a package, and not an option or apt's "remove this one".
func debianPackageName(p string) bool {
	return debianPackage.MatchString(p) && !strings.HasSuffix(p, "-") && (!strings.HasSuffix(p, "+") || strings.HasSuffix(p, "++"))
}

func mirrorURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.User != nil || strings.ContainsAny(s, " \t\n[]\"") {
		return false
	}
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" || u.Scheme == "file" && path.IsAbs(u.Path)
}

func (t *Tarball) validate(bad func(string, ...any)) {
	if (t.Path == "") == (t.URL == "") {
		bad("tarball needs exactly one of path and url")
	}
	if t.Path != "" && !path.IsAbs(t.Path) {
		bad("tarball.path must be absolute")
	}
	if t.URL != "" {
		if u, err := url.Parse(t.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			bad("tarball.url must be an http or https URL without credentials")
		}
	}
	if !sha256Hex.MatchString(t.SHA256) {
		bad("tarball.sha256 must be 64 lower-case hexadecimal digits")
	}
}

// resolve follows From through all, the declarations by name, to one self-contained declaration.
func resolve(d Declaration, all map[string]Declaration) (Declaration, error) {
	seen := map[string]bool{}
	chain := []Declaration{d}
	for cur := d; cur.From != ""; {
		if seen[cur.Name] {
			return Declaration{}, fmt.Errorf("template %q: from is circular", d.Name)
		}
		seen[cur.Name] = true
		next, ok := all[cur.From]
		if !ok {
			return Declaration{}, fmt.Errorf("template %q: from %q is not a template", cur.Name, cur.From)
		}
		chain = append(chain, next)
		cur = next
	}
	out := chain[len(chain)-1]
	out.Env, out.Runtimes, out.Files, out.Links = maps.Clone(out.Env), maps.Clone(out.Runtimes), maps.Clone(out.Files), maps.Clone(out.Links)
	for _, more := range slices.Backward(chain[:len(chain)-1]) {
		if more.Debian != nil {
			if out.Debian == nil {
				return Declaration{}, fmt.Errorf("template %q: debian packages can only be added to a debian template", d.Name)
			}
			sum := *out.Debian
			sum.Packages = append(slices.Clone(sum.Packages), more.Debian.Packages...)
			sum.Suites = merge(maps.Clone(sum.Suites), more.Debian.Suites)
			out.Debian = &sum
		}
		out.Packages = out.Packages.with(more.Packages)
		out.Env = merge(out.Env, more.Env)
		out.Files = merge(out.Files, more.Files)
		out.Links = merge(out.Links, more.Links)
		out.Runtimes = merge(out.Runtimes, more.Runtimes)
	}
	out.Name, out.Description, out.From = d.Name, d.Description, ""
	return out, nil
}

func merge[V any](low, high map[string]V) map[string]V {
	if len(high) == 0 {
		return low
	}
	if low == nil {
		low = map[string]V{}
	}
	maps.Copy(low, high)
	return low
}
