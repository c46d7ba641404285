package image

import (
	"fmt"
	"slices"
	"strings"
)

// The managers, in the order in which their layers are built. The order is part
// of the promise: a later manager may use what an earlier one installed.
var managerOrder = [...]string{"apt", "cargo", "gem", "go", "npm", "pip"}

// Caps on what an environment may list.
const (
	maxEntries  = 256 // entries of one manager
	maxEntry    = 256 // bytes of one entry
	maxEntryPip = 512 // bytes of one pip entry: markers are long
	maxEcho     = 128 // bytes of an entry that an error repeats
)

// Packages are the package lists of an environment, as the caller wrote them.
type Packages struct {
	// Each is the list of one manager, in the manager's own grammar; nil and empty are the same.
	Apt, Cargo, Gem, Go, Npm, Pip []string
	// AptRecommends has apt install what the packages of Apt recommend, too.
	AptRecommends bool `json:",omitempty"`
}

// List returns the entries of one manager, or nil for an unknown one.
func (p Packages) List(manager string) []string {
	switch manager {
	case "apt":
		return p.Apt
	case "cargo":
		return p.Cargo
	case "gem":
		return p.Gem
	case "go":
		return p.Go
	case "npm":
		return p.Npm
	case "pip":
		return p.Pip
	}
	return nil
}

// Empty reports whether no manager lists anything.
func (p Packages) Empty() bool {
	for _, m := range managerOrder {
		if len(p.List(m)) > 0 {
			return false
		}
	}
	return true
}

// SpecError says which entry of a package list is refused and why. Its text
// suits an API reply: it never repeats an entry that might carry credentials
// or bytes that are not printable ASCII.
type SpecError struct {
	// Manager is whose list the entry stands in.
	Manager string
	Index   int    // position in the manager's list; -1 when no list is meant
	Entry   string // the entry, or empty where it must not be repeated
	// Reason is a sentence for the caller, with the entry's form that would do.
	Reason string
}

// Error names the manager, the index and the reason.
func (e *SpecError) Error() string {
	var b strings.Builder
	b.WriteString("packages." + e.Manager)
	if e.Index >= 0 {
		fmt.Fprintf(&b, "[%d]", e.Index)
	}
	b.WriteString(": ")
	if e.Entry != "" {
		fmt.Fprintf(&b, "%q: ", e.Entry)
	}
	b.WriteString(e.Reason)
	return b.String()
}

// CheckPackages checks every entry of every list by its manager's grammar. The
// error is a *SpecError for the first entry refused, in build order.
func CheckPackages(p Packages) error {
	for _, m := range managerOrder {
		list := p.List(m)
		if len(list) > maxEntries {
			return &SpecError{Manager: m, Index: maxEntries, Reason: fmt.Sprintf("at most %d entries are allowed", maxEntries)}
		}
		for i, entry := range list {
			if _, err := parseSpec(m, entry); err != nil {
				err.Index = i
				return err
			}
		}
	}
	return nil
}

// spec is one accepted entry, taken apart.
type spec struct {
	text    string // the entry without surrounding spaces: one argument of the tool
	name    string // the package's name as the manager's listing knows it, or an import path
	version string // what was asked for beyond the name; empty means latest
	pinned  bool   // version names exactly one release
	marker  bool   // pip: the entry applies only under a condition
}

// parseSpec applies the rules that all managers share and then the manager's own.
func parseSpec(manager, entry string) (spec, *SpecError) {
	s, reason := parseEntry(manager, entry)
	if reason == "" {
		return s, nil
	}
	return spec{}, &SpecError{Manager: manager, Index: -1, Entry: echo(manager, entry), Reason: reason}
}

func parseEntry(manager, entry string) (s spec, reason string) {
	limit := maxEntry
	if manager == "pip" {
		limit = maxEntryPip
	}
	if len(entry) > limit {
		return s, fmt.Sprintf("is longer than %d bytes", limit)
	}
	if !printable(entry) {
		return s, "contains a byte that is not printable ASCII"
	}
	text := strings.Trim(entry, " ")
	switch {
	case text == "":
		return s, "must not be blank"
	case text[0] == '-':
		return s, "options are not package specs"
	case strings.Contains(text, "://"):
		return s, "URLs are not package specs"
	}
	switch manager {
	case "apt":
		s, reason = parseApt(text)
	case "cargo":
		s, reason = parseCargo(text)
	case "gem":
		s, reason = parseGem(text)
	case "go":
		s, reason = parseGo(text)
	case "npm":
		s, reason = parseNpm(text)
	case "pip":
		s, reason = parsePip(text)
	default:
		return s, "unknown package manager"
	}
	s.text = text
	return s, reason
}

// echo returns the entry if an error may repeat it.
func echo(manager, entry string) string {
	text := strings.Trim(entry, " ")
	if text == "" || len(text) > maxEcho || !printable(text) || text[0] == '-' || strings.Contains(text, "//") {
		return ""
	}
	if at := strings.LastIndexByte(text, '@'); at > 0 {
		// A version after the at sign is how these three write it; anything else
		// may be user:password@host or user@host.
		versioned := manager == "cargo" || manager == "go" || manager == "npm"
		if !versioned || strings.ContainsAny(text, ":=") || strings.ContainsAny(text[at:], "/") {
			return ""
		}
	}
	return text
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// normalList is the form of a list that decides its layer: surrounding spaces
// gone, exact duplicates gone, order kept because order can change resolution.
func normalList(list []string) []string {
	out := make([]string, 0, len(list))
	for _, e := range list {
		if e = strings.Trim(e, " "); e != "" && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}
