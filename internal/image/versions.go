package image

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
)

// installed is one package in a manager's listing. Listings come out of a
// sandbox: what does not look like one is skipped, nothing is believed beyond it.
type installed struct {
	PackageVersion
	top      bool     // npm: not somebody's dependency
	fresh    bool     // npm and pip: it was not there before
	provides []string // apt: virtual packages
}

func (p installed) id() string { return p.Name + "\x00" + p.Version + "\x00" + p.Detail }

func listed(name, version, detail string) installed {
	return installed{PackageVersion: PackageVersion{Name: clip(name), Version: clip(version), Detail: clip(detail)}}
}

// clip bounds and cleans a name or version out of a sandbox.
func clip(s string) string {
	const most = 300
	s = cleanLine([]byte(s[:min(len(s), most)]))
	if len(s) > most { // bytes that are no UTF-8 have become longer
		s = cleanLine([]byte(strings.ToValidUTF8(s[:most], "")))
	}
	return s
}

// parseDpkg reads name, version, architecture, status and provides, tab-separated.
func parseDpkg(out []byte) ([]installed, error) {
	var list []installed
	for line := range bytes.Lines(out) {
		f := strings.Split(strings.TrimRight(string(line), "\n"), "\t")
		if len(f) < 5 || f[3] != "installed" {
			continue
		}
		name, _, _ := strings.Cut(f[0], ":")
		p := listed(name, f[1], f[2])
		for v := range strings.SplitSeq(f[4], ",") {
			v, _, _ = strings.Cut(strings.TrimSpace(v), " ")
			if v != "" {
				p.provides = append(p.provides, v)
			}
		}
		list = append(list, p)
	}
	if len(list) == 0 {
		return nil, errors.New("the package database is empty")
	}
	return list, nil
}

var cargoLine = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_-]*) v([^ :]+)[^:]*:`)

// parseCargoList reads "ripgrep v14.1.0:" lines, each followed by its programs.
func parseCargoList(out []byte) ([]installed, error) {
	var list []installed
	for line := range bytes.Lines(out) {
		if m := cargoLine.FindStringSubmatch(string(line)); m != nil {
			list = append(list, listed(m[1], m[2], ""))
		}
	}
	return list, nil
}

var gemLine = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]*) \(([^)]*)\)`)

// parseGemList reads "rake (13.2.1, default: 13.1.0)" lines; a gem may be there
// in several versions.
func parseGemList(out []byte) ([]installed, error) {
	var list []installed
	for line := range bytes.Lines(out) {
		m := gemLine.FindStringSubmatch(string(line))
		if m == nil {
			continue
		}
		for v := range strings.SplitSeq(m[2], ",") {
			v = strings.TrimPrefix(strings.TrimSpace(v), "default: ")
			v, _, _ = strings.Cut(v, " ")
			list = append(list, listed(m[1], v, ""))
		}
	}
	return list, nil
}

// parseGoList reads what go version -m tells of the programs in a directory:
// package path, module, version, checksum.
func parseGoList(out []byte) ([]installed, error) {
	var list []installed
	path := ""
	for line := range bytes.Lines(out) {
		f := strings.Split(strings.TrimRight(string(line), "\n"), "\t")
		switch {
		case len(f) >= 3 && f[0] == "" && f[1] == "path":
			path = f[2]
		case len(f) >= 4 && f[0] == "" && f[1] == "mod" && path != "":
			sum := ""
			if len(f) > 4 {
				sum = f[4]
			}
			list = append(list, listed(path, f[3], strings.TrimSpace(f[2]+" "+sum)))
			path = ""
		case len(f) > 0 && f[0] != "":
			path = ""
		}
	}
	return list, nil
}

var pipSeparators = regexp.MustCompile(`[-_.]+`)

// pipCanonical is the form in which two names of one distribution are equal.
func pipCanonical(name string) string {
	return strings.ToLower(pipSeparators.ReplaceAllString(name, "-"))
}
