package api

// Bounds watches a JSON body while it arrives, so that one with too many values
// or too much nesting is refused before the rest of it is read. It takes pieces
// cut anywhere and does not check the syntax; [Decode] does, and holds the same
// bounds. The zero value is ready.
type Bounds struct {
	values   int
	depth    int
	inString bool
	escaped  bool // the byte before was a backslash in a string
	opened   bool // the last token opened an object or a list: it may be empty
}

// Values is how many values have begun so far.
func (b *Bounds) Values() int { return b.values }

// Check looks at the next piece. Its error is a *FieldError in the words of
// [Decode].
func (b *Bounds) Check(piece []byte) error {
	for _, c := range piece {
		if b.inString {
			switch {
			case b.escaped:
				b.escaped = false
			case c == '\\':
				b.escaped = true
			case c == '"':
				b.inString = false
			}
			continue
		}
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		if b.values == 0 || b.opened && c != ']' && c != '}' {
			b.values++ // the body itself, or the first value of an object or list
		}
		b.opened = false
		switch c {
		case '"':
			b.inString = true
		case '{', '[':
			b.depth++
			b.opened = true
		case '}', ']':
			b.depth--
		case ',':
			b.values++
		}
		if b.values > MaxValues {
			return fieldErrorf("", "Request body has more than %d values", MaxValues)
		}
		if b.depth > MaxDepth {
			return fieldErrorf("", "Request body nests deeper than %d levels", MaxDepth)
		}
	}
	return nil
}
