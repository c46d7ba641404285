package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// Bounds of a request body beside its size, which the server checks before.
const (
	// MaxDepth is how deep objects and lists may nest.
	MaxDepth = 100
	// MaxValues is how many values a body may hold; it bounds the memory that
	// a body of tiny values takes.
	MaxValues = 200_000
)

// FieldError says what is wrong with a request body.
type FieldError struct {
	// Path names the field, like config.packages.pip[0]; empty for the body as a
	// whole.
	Path string
	// Reason is a sentence in the API's words.
	Reason string
}

// Error returns "PATH: REASON", or the reason alone.
func (e *FieldError) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return e.Path + ": " + e.Reason
}

func fieldErrorf(path, format string, args ...any) *FieldError {
	return &FieldError{Path: path, Reason: fmt.Sprintf(format, args...)}
}

// kind of a JSON value.
type kind byte

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindList
	kindObject
)

// node is one JSON value of a body.
type node struct {
	kind   kind
	flag   bool
	text   string // of a string, or the literal of a number
	items  []*node
	fields []field // in the order of the body
}

type field struct {
	name  string
	value *node
}

func (n *node) field(name string) *node {
	for _, f := range n.fields {
		if f.name == name {
			return f.value
		}
	}
	return nil
}

// Decode reads a request body, which must be one JSON object, into the struct
// that into points to. It refuses unknown and repeated fields, wrong types,
// missing required fields, invalid UTF-8, deep nesting and anything after the
// object. Every error is a *FieldError. On an error *into is in no useful state.
func Decode(body []byte, into any) error {
	root, err := parse(body)
	if err != nil {
		return err
	}
	if root.kind != kindObject {
		return fieldErrorf("", "Request body must be a JSON object")
	}
	return bindValue("", root, into)
}

func parse(body []byte) (*node, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, fieldErrorf("", "Request body is required")
	}
	if !utf8.Valid(body) {
		return nil, fieldErrorf("", "Request body is not valid UTF-8")
	}
	// The token reader is lenient about structure, so syntax is checked first.
	if !json.Valid(body) { // without a copy of the body
		var raw json.RawMessage
		var syntax *json.SyntaxError
		if errors.As(json.Unmarshal(body, &raw), &syntax) {
			return nil, fieldErrorf("", "Request body is not valid JSON at byte %d: %s", syntax.Offset, syntax.Error())
		}
		return nil, fieldErrorf("", "Request body is not valid JSON")
	}
	if at := loneSurrogate(body); at >= 0 {
		return nil, fieldErrorf("", "Request body holds half of a surrogate pair at byte %d", at)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	p := &parser{dec: dec}
	root, err := p.value("", 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fieldErrorf("", "Request body has data after the JSON object")
	}
	return root, nil
}

type parser struct {
	dec    *json.Decoder
	values int
}

func (p *parser) value(path string, depth int) (*node, error) {
	p.values++
	if p.values > MaxValues {
		return nil, fieldErrorf("", "Request body has more than %d values", MaxValues)
	}
	tok, err := p.dec.Token()
	if err != nil {
		return nil, fieldErrorf("", "Request body is not valid JSON")
	}
	switch t := tok.(type) {
	case nil:
		return &node{kind: kindNull}, nil
	case bool:
		return &node{kind: kindBool, flag: t}, nil
	case json.Number:
		return &node{kind: kindNumber, text: t.String()}, nil
	case string:
		return &node{kind: kindString, text: t}, nil
	case json.Delim:
		if depth == MaxDepth {
			return nil, fieldErrorf("", "Request body nests deeper than %d levels", MaxDepth)
		}
		if t == '[' {
			return p.list(path, depth)
		}
		return p.object(path, depth)
	}
	return nil, fieldErrorf("", "Request body is not valid JSON")
}

func (p *parser) list(path string, depth int) (*node, error) {
	n := &node{kind: kindList}
	for p.dec.More() {
		v, err := p.value(index(path, len(n.items)), depth+1)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, v)
	}
	_, _ = p.dec.Token() // the closing bracket; the syntax was checked
	return n, nil
}

func (p *parser) object(path string, depth int) (*node, error) {
	n := &node{kind: kindObject}
	seen := map[string]bool{}
	for p.dec.More() {
		tok, err := p.dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return nil, fieldErrorf("", "Request body is not valid JSON")
		}
		at := join(path, name)
		if seen[name] {
			return nil, fieldErrorf(at, "Field is given more than once")
		}
		seen[name] = true
		v, err := p.value(at, depth+1)
		if err != nil {
			return nil, err
		}
		n.fields = append(n.fields, field{name, v})
	}
	_, _ = p.dec.Token() // the closing brace; the syntax was checked
	return n, nil
}

// join and index build the path of an error. Names come from the body, so that
// what is long or strange is cut and quoted.
func join(path, name string) string {
	name = showName(name)
	if path == "" {
		return name
	}
	return path + "." + name
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func showName(name string) string {
	if len(name) > 100 {
		cut := 100
		for !utf8.RuneStart(name[cut]) {
			cut--
		}
		name = name[:cut] + "…"
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return strconv.Quote(name)
		}
	}
	return name
}

// loneSurrogate finds a \u escape that is half of a pair, which encoding/json
// would silently replace. body is valid JSON. It returns -1 when there is none.
func loneSurrogate(body []byte) int {
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		if body[i+1] != 'u' {
			i++
			continue
		}
		r := hex4(body[i+2:])
		switch {
		case r >= 0xd800 && r < 0xdc00:
			next := body[i+6:]
			if len(next) < 6 || next[0] != '\\' || next[1] != 'u' {
				return i
			}
			if low := hex4(next[2:]); low < 0xdc00 || low > 0xdfff {
				return i
			}
			i += 11
		case r >= 0xdc00 && r <= 0xdfff:
			return i
		default:
			i += 5
		}
	}
	return -1
}

func hex4(b []byte) int64 {
	v, err := strconv.ParseInt(string(b[:4]), 16, 32)
	if err != nil {
		return -1
	}
	return v
}
