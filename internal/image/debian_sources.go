package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// aptSource is one line's worth of an apt source: one URI and one suite.
type aptSource struct {
	uri, suite string
	components []string
	signedBy   string // a path, or empty
	trusted    bool
}

// hostAptSources reads the apt sources under etc ("/etc/apt"), one-line and deb822 files. Disabled and source-only
// entries are left out; a file that cannot be parsed is an error, as it is for apt.
func hostAptSources(etc string) ([]aptSource, error) {
	files, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	files = append([]string{filepath.Join(etc, "sources.list")}, files...)
	var out []aptSource
	for _, name := range files {
		parse := parseOneLine
		switch filepath.Ext(name) {
		case ".list":
		case ".sources":
			parse = parseDeb822
		default:
			continue
		}
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading apt sources: %w", err)
		}
		got, err := parse(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading apt sources %s: %w", name, err)
		}
		out = append(out, got...)
	}
	return out, nil
}

// parseOneLine reads "deb [options] uri suite component…".
func parseOneLine(r io.Reader) ([]aptSource, error) {
	var out []aptSource
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = strings.TrimSpace(rest)
		var s aptSource
		if strings.HasPrefix(rest, "[") {
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, fmt.Errorf("options without end: %q", line)
			}
			for _, opt := range strings.Fields(rest[1:end]) {
				k, v, _ := strings.Cut(opt, "=")
				switch strings.ToLower(k) {
				case "signed-by":
					s.signedBy = v
				case "trusted":
					s.trusted = v == "yes"
				}
			}
			rest = rest[end+1:]
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			return nil, fmt.Errorf("malformed line: %q", line)
		}
		s.uri, s.suite, s.components = f[0], f[1], f[2:]
		out = append(out, s)
	}
	return out, sc.Err()
}

// parseDeb822 reads stanzas of "Field: value" with continuation lines.
func parseDeb822(r io.Reader) ([]aptSource, error) {
	var out []aptSource
	fields, last := map[string]string{}, ""
	flush := func() {
		out = append(out, stanzaSources(fields)...)
		fields, last = map[string]string{}, ""
	}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, fmt.Errorf("continuation without a field: %q", line)
			}
			fields[last] += "\n" + strings.TrimSpace(line)
		default:
			k, v, ok := strings.Cut(line, ":")
			if !ok {
				return nil, fmt.Errorf("malformed line: %q", line)
			}
			last = strings.ToLower(strings.TrimSpace(k))
			fields[last] = strings.TrimSpace(v)
		}
	}
	flush()
	return out, sc.Err()
}

func stanzaSources(f map[string]string) []aptSource {
	if !slices.Contains(strings.Fields(f["types"]), "deb") || strings.EqualFold(f["enabled"], "no") {
		return nil
	}
	signed := f["signed-by"]
	if !strings.HasPrefix(signed, "/") || strings.ContainsAny(signed, "\n ") {
		signed = "" // a key written in place: the suite's own keyring is used instead
	}
	var out []aptSource
	for _, uri := range strings.Fields(f["uris"]) {
		for _, suite := range strings.Fields(f["suites"]) {
			out = append(out, aptSource{uri: uri, suite: suite, components: strings.Fields(f["components"]),
				signedBy: signed, trusted: strings.EqualFold(f["trusted"], "yes")})
		}
	}
	return out
}

// debianLines are the apt source lines for d, with mirrors from the host's sources where d names none. codename is
// the host's own release, by which its sources are recognised.
func debianLines(d *Debian, host []aptSource, codename string) ([]string, error) {
	components := d.Components
	if len(components) == 0 {
		components = []string{"main"}
	}
	line := func(uri, suite, keyring string, trusted bool) string {
		var opts []string
		if trusted {
			opts = append(opts, "trusted=yes")
		} else if keyring != "" {
			opts = append(opts, "signed-by="+keyring)
		}
		opt := ""
		if len(opts) > 0 {
			opt = "[" + strings.Join(opts, " ") + "] "
		}
		return fmt.Sprintf("deb %s%s %s %s", opt, uri, suite, strings.Join(components, " "))
	}
	if d.Mirror != "" {
		lines := []string{line(d.Mirror, d.Suite, d.Keyring, false)}
		if d.SecurityMirror != "" {
			lines = append(lines, line(d.SecurityMirror, d.Suite+"-security", d.Keyring, false))
		}
		for _, suite := range slices.Sorted(maps.Keys(d.Suites)) {
			lines = append(lines, line(d.Mirror, suite, d.Keyring, false))
		}
		return lines, nil
	}
	var lines, further []string
	for _, suffix := range []string{"", "-updates", "-security"} {
		s, ok := findSource(host, suffix, codename, d.Suite)
		if suffix == "-security" && d.SecurityMirror != "" {
			s.uri, ok = d.SecurityMirror, true
		}
		if !ok {
			if suffix == "" {
				return nil, fmt.Errorf("the host's apt sources have no Debian archive: set debian.mirror in the template's declaration")
			}
			continue
		}
		if !mirrorURL(s.uri) {
			return nil, fmt.Errorf("the host's apt source for %s%s cannot be used in a template (credentials or an unusual scheme): set debian.mirror", d.Suite, suffix)
		}
		keyring := d.Keyring
		if keyring == "" {
			keyring = s.signedBy
		}
		lines = append(lines, line(s.uri, d.Suite+suffix, keyring, s.trusted))
		if suffix == "" {
			for _, suite := range slices.Sorted(maps.Keys(d.Suites)) {
				further = append(further, line(s.uri, suite, keyring, s.trusted))
			}
		}
	}
	return append(lines, further...), nil
}

// suitePreferences are apt's preferences for the further suites of a template, by apt_preferences(5): what is named comes
// from there, nothing else does by itself, and what came from there is kept up to date.
func suitePreferences(suites map[string][]string) string {
	var text strings.Builder
	for _, suite := range slices.Sorted(maps.Keys(suites)) {
		fmt.Fprintf(&text, "Package: %s\nPin: release n=%s\nPin-Priority: 990\n\n", strings.Join(suites[suite], " "), suite)
		fmt.Fprintf(&text, "Package: *\nPin: release n=%s\nPin-Priority: 100\n\n", suite)
	}
	return text.String()
}

// findSource finds the host's source of the same kind (release, -updates, -security), of its own release, of the one
// wanted, or of a release by role.
func findSource(host []aptSource, suffix, codename, suite string) (aptSource, bool) {
	for _, want := range []string{suite, codename, "stable", "testing", "oldstable"} {
		if want == "" {
			continue
		}
		for _, s := range host {
			if s.suite == want+suffix && slices.Contains(s.components, "main") {
				return s, true
			}
		}
	}
	return aptSource{}, false
}
