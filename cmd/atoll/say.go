package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Everything that commands print goes through the functions of this file, so
// that no name, host or message from outside can move the terminal's cursor,
// change its title or forge a line. Exceptions are the bytes of a sandbox's own
// command (exec, shell) and the lines that a build's view draws itself.
// TestOutputIsSafe finds what goes past.

// say writes as fmt.Fprintf does. Of its arguments each text, error or Stringer
// is made one line of printable characters.
func say(w io.Writer, format string, args ...any) error {
	for i, arg := range args {
		_, words := arg.(fmt.Stringer)
		switch kind := reflect.ValueOf(arg).Kind(); {
		case kind >= reflect.Bool && kind <= reflect.Float64 && !words:
		default: // a text, an error, or a value with texts inside
			args[i] = oneLine(fmt.Sprint(arg))
		}
	}
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

// sayText writes a text that may have lines.
func sayText(w io.Writer, text string) error {
	_, err := io.WriteString(w, printable(text))
	return err
}

// sayJSON writes a value as JSON and a newline, with indentation if indent is
// not empty. Characters that are not printable are escaped, so nothing is lost.
func sayJSON(w io.Writer, value any, indent string) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", indent)
	if err := enc.Encode(value); err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range text.String() { // the encoder leaves valid UTF-8
		switch {
		case r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// printable keeps what a program wrote from moving the terminal's cursor: it
// drops all but printable characters, newlines and tabs.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
}

// oneLine is printable for one line of output, or one cell of a table: newlines
// and tabs are spaces.
func oneLine(text string) string {
	return strings.NewReplacer("\r\n", " ", "\n", " ", "\t", " ").Replace(printable(text))
}
