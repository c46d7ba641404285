package image

import (
	"regexp"
	"slices"
	"strings"
)

var (
	pipName    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`)
	pipClause  = regexp.MustCompile(`^(===|~=|==|!=|<=|>=|<|>) *([A-Za-z0-9][A-Za-z0-9.*+!_-]*)$`)
	pipArchive = regexp.MustCompile(`(?i)\.(whl|zip|tar|tgz|tbz|txz|tlz|tar\.(gz|bz2|xz|lz|lzma))$`)
	pipWord    = regexp.MustCompile(`^[a-z_.]+`)
	pipMarkers = strings.Fields(`os_name sys_platform platform_machine platform_python_implementation platform_release
		platform_system platform_version python_version python_full_version implementation_name implementation_version extra`)
)

// parsePip: PEP 508 without URLs: name [extras] specifiers ; marker. pip takes
// what ends in an archive's suffix for a local file, wherever the suffix stands.
func parsePip(text string) (spec, string) {
	head, marker, hasMarker := strings.Cut(text, ";")
	head = strings.Trim(head, " ")
	s := spec{marker: hasMarker}
	switch {
	case strings.ContainsAny(head, `/\`):
		return s, "paths are not package specs"
	case strings.Contains(head, "@"):
		return s, "direct references are not package specs"
	case pipArchive.MatchString(head):
		return s, "local files are not package specs"
	}
	s.name = pipName.FindString(head)
	if s.name == "" {
		return s, "not a requirement: name[extras] specifiers ; marker is expected"
	}
	rest := strings.TrimLeft(head[len(s.name):], " ")
	if pipArchive.MatchString(s.name) {
		return s, "local files are not package specs"
	}
	if strings.HasPrefix(rest, "[") {
		extras, after, ok := strings.Cut(rest[1:], "]")
		if !ok || !pipExtras(extras) {
			return s, "not a list of extras"
		}
		rest = strings.TrimLeft(after, " ")
	}
	if strings.HasPrefix(rest, "(") && strings.HasSuffix(rest, ")") {
		rest = strings.Trim(rest[1:len(rest)-1], " ")
	}
	if rest != "" {
		clauses := strings.Split(rest, ",")
		for _, c := range clauses {
			m := pipClause.FindStringSubmatch(strings.Trim(c, " "))
			if m == nil {
				return s, "not a version specifier"
			}
			s.pinned = len(clauses) == 1 && (m[1] == "===" || m[1] == "==" && !strings.Contains(m[2], "*"))
		}
	}
	s.version = rest
	if hasMarker && !pipMarker(marker) {
		return s, "not an environment marker after ;"
	}
	return s, ""
}

func pipExtras(list string) bool {
	if strings.Trim(list, " ") == "" {
		return true
	}
	for e := range strings.SplitSeq(list, ",") {
		if e = strings.Trim(e, " "); e == "" || pipName.FindString(e) != e {
			return false
		}
	}
	return true
}

// pipMarker accepts PEP 508's marker language: comparisons of variables and
// quoted strings, joined by and, or and parentheses.
func pipMarker(text string) bool {
	m := markerParser{rest: text}
	return m.expression(0) && m.space() == ""
}

type markerParser struct{ rest string }

func (m *markerParser) space() string {
	m.rest = strings.TrimLeft(m.rest, " ")
	return m.rest
}

func (m *markerParser) expression(depth int) bool {
	if depth > 20 {
		return false
	}
	for {
		if m.take("(") {
			if !m.expression(depth+1) || !m.take(")") {
				return false
			}
		} else if _, ok := m.value(); !ok || !m.operator() {
			return false
		} else if _, ok := m.value(); !ok {
			return false
		}
		if !m.word("and") && !m.word("or") {
			return true
		}
	}
}

func (m *markerParser) take(token string) bool {
	rest, ok := strings.CutPrefix(m.space(), token)
	if ok {
		m.rest = rest
	}
	return ok
}

func (m *markerParser) word(w string) bool {
	if pipWord.FindString(m.space()) != w {
		return false
	}
	m.rest = m.rest[len(w):]
	return true
}

func (m *markerParser) operator() bool {
	for _, op := range []string{"===", "~=", "==", "!=", "<=", ">=", "<", ">"} {
		if m.take(op) {
			return true
		}
	}
	return m.word("in") || m.word("not") && m.word("in")
}

func (m *markerParser) value() (string, bool) {
	text := m.space()
	if text != "" && (text[0] == '"' || text[0] == '\'') {
		end := strings.IndexByte(text[1:], text[0])
		if end < 0 {
			return "", false
		}
		m.rest = text[end+2:]
		return text[1 : end+1], true
	}
	w := pipWord.FindString(text)
	if !slices.Contains(pipMarkers, w) {
		return "", false
	}
	m.rest = text[len(w):]
	return w, true
}
