package image

import (
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// The grammars accept what is written in the table of docs/packages.md and
// nothing more. Each returns the reason of a refusal, or an empty string.
// Regular expressions are anchored and run in linear time.

var (
	aptName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	aptArch    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
	aptVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+:~-]*$`)
	aptRelease = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]*$`)
)

// parseApt: name[:arch][=version] or name[:arch][/release]. A trailing minus
// anywhere means "remove" to apt, even after --.
func parseApt(text string) (spec, string) {
	s := spec{name: text}
	if strings.HasSuffix(text, "-") {
		return s, "a trailing - would remove the package"
	}
	if strings.ContainsAny(text, "*?[]~^") && !strings.Contains(text, "=") {
		return s, "patterns and tasks are not package names"
	}
	if name, version, ok := strings.Cut(text, "="); ok {
		if !aptVersion.MatchString(version) {
			return s, "not a version after ="
		}
		s.name, s.version, s.pinned = name, version, true
	} else if name, release, ok := strings.Cut(text, "/"); ok {
		if !aptRelease.MatchString(release) {
			return s, "not a release after /"
		}
		s.name, s.version = name, release
	}
	if name, arch, ok := strings.Cut(s.name, ":"); ok {
		if !aptArch.MatchString(arch) {
			return s, "not an architecture after :"
		}
		s.name = name
	}
	switch {
	case strings.ContainsAny(s.name, "/\\"):
		return s, "paths are not package names"
	case strings.HasSuffix(s.name, "-"):
		return s, "a trailing - would remove the package"
	case !aptName.MatchString(s.name):
		return s, "not a package name: name[:arch][=version] or name[:arch][/release] is expected"
	}
	return s, ""
}

var (
	cargoName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,63}$`)
	cargoReq  = regexp.MustCompile(`^(\*|(=|<|>|<=|>=|\^|~)? *[0-9]+(\.([0-9]+|\*)){0,2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?)$`)
	exactSem  = regexp.MustCompile(`^=? *v?[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)
)

// parseCargo: name[@requirement].
func parseCargo(text string) (spec, string) {
	name, req, versioned := strings.Cut(text, "@")
	s := spec{name: name, version: req}
	if !cargoName.MatchString(name) {
		return s, "not a crate: name[@requirement] is expected"
	}
	if !versioned {
		return s, ""
	}
	for part := range strings.SplitSeq(req, ",") {
		if !cargoReq.MatchString(strings.Trim(part, " ")) {
			return s, "not a version requirement after @"
		}
	}
	s.pinned = exactSem.MatchString(req)
	return s, ""
}

var (
	gemName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	gemReq  = regexp.MustCompile(`^(=|!=|>|<|>=|<=|~>)? *[0-9]+(\.[0-9A-Za-z]+)*(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)
)

// parseGem: name[:requirement]. A name that ends in .gem is a local file to gem.
func parseGem(text string) (spec, string) {
	name, req, versioned := strings.Cut(text, ":")
	s := spec{name: name, version: strings.Trim(req, " ")}
	switch {
	case !gemName.MatchString(name):
		return s, "not a gem: name[:requirement] is expected"
	case strings.HasSuffix(strings.ToLower(name), ".gem"):
		return s, "local files are not package specs"
	case versioned && !gemReq.MatchString(s.version):
		return s, "not a version requirement after :"
	}
	s.pinned = versioned && strings.IndexFunc(s.version, func(r rune) bool { return r >= '0' && r <= '9' }) == 0
	return s, ""
}

// goStandard holds the first path elements of Go's own library and its reserved
// patterns; go install would look for them in the toolchain, not in a registry.
var goStandard = strings.Fields(`all archive arena bufio builtin bytes cmd cmp compress container context crypto
	database debug embed encoding errors expvar flag fmt go hash html image index internal io iter log main maps
	math mime net os path plugin reflect regexp runtime slices sort std strconv strings structs sync syscall
	testing text time tool unicode unique unsafe vendor weak work`)

var (
	goQuery  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+-]*$`)
	goCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// parseGo: import/path[@version]. A path of one element without a dot cannot be
// a module, yet the official clients' tests send one: the tool refuses it in
// its own words.
func parseGo(text string) (spec, string) {
	path, version, versioned := strings.Cut(text, "@")
	s := spec{name: path, version: version}
	root := strings.TrimSuffix(path, "/...")
	first, _, nested := strings.Cut(root, "/")
	switch {
	case strings.HasPrefix(path, ".") || strings.HasPrefix(path, "/") || strings.HasPrefix(path, "~") || strings.Contains(path, `\`):
		return s, "local paths are not package specs"
	case strings.Contains(root, "..."):
		return s, "... is allowed only as the last path element"
	case slices.Contains(goStandard, first):
		return s, "the standard library is not installable"
	case nested && !strings.Contains(first, "."):
		return s, "the first path element must be a host name"
	case module.CheckImportPath(root) != nil:
		return s, "not a Go package: import/path[@version] is expected"
	case versioned && (!goQuery.MatchString(version) || strings.Contains(version, "..")):
		return s, "not a version, branch or commit after @"
	case version == "none" || version == "all":
		return s, "not a version that can be installed"
	}
	s.pinned = goCommit.MatchString(version) || (semver.IsValid(version) && semver.Canonical(version)+semver.Build(version) == version)
	return s, ""
}

var (
	npmName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~-]*$`)
	npmRange = regexp.MustCompile(`^[A-Za-z0-9^~<>=|*+_-][A-Za-z0-9. ^~<>=|*+_-]*$`)
	npmFile  = regexp.MustCompile(`(?i)\.(tgz|tar\.gz|tar)$`)
)

// parseNpm: [@scope/]name[@tag-or-range]. To npm a slash without a scope is a
// directory or a repository, a colon a URL or an alias, a .tgz suffix a file,
// in the range as well as in the name.
func parseNpm(text string) (spec, string) {
	full, scope := text, ""
	if strings.HasPrefix(text, "@") {
		s, rest, ok := strings.Cut(text[1:], "/")
		if !ok || !npmName.MatchString(s) {
			return spec{}, "not a scoped name: @scope/name[@range] is expected"
		}
		scope, full = "@"+s+"/", rest
	}
	name, version, versioned := strings.Cut(full, "@")
	s := spec{name: scope + name, version: version}
	switch {
	case strings.ContainsAny(full, `/\`):
		return s, "paths and repositories are not package specs"
	case strings.Contains(full, ":"):
		return s, "URLs and aliases are not package specs"
	case npmFile.MatchString(name) || npmFile.MatchString(strings.TrimRight(version, " ")):
		return s, "local files are not package specs"
	case !npmName.MatchString(name):
		return s, "not a package name: [@scope/]name[@range] is expected"
	case versioned && !npmRange.MatchString(version):
		return s, "not a tag or range after @"
	}
	s.pinned = exactSem.MatchString(version)
	return s, ""
}
