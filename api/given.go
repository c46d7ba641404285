package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseObject reads the one JSON object that a model or a server gives where the
// wire has one, like the input of a tool call, under the rules of request bodies:
// no repeated names, valid UTF-8, [MaxDepth] and [MaxValues], nothing behind it.
// Numbers have to be finite as 64-bit floats, because some readers take them for
// these. It answers the object as it may be stored: compact, with its members in
// their order. Every error is a *FieldError that calls the text "it".
func ParseObject(text []byte) (json.RawMessage, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, fieldErrorf("", "it is empty")
	}
	root, err := parse(text)
	var field *FieldError
	switch {
	case errors.As(err, &field):
		return nil, &FieldError{Path: field.Path, Reason: strings.Replace(field.Reason, "Request body", "it", 1)}
	case root.kind != kindObject:
		return nil, fieldErrorf("", "it is %s", kindNames[root.kind])
	}
	if err := checkNumbers("", root); err != nil {
		return nil, err
	}
	return root.raw(), nil
}

var kindNames = map[kind]string{
	kindNull: "null", kindBool: "true or false", kindNumber: "a number", kindString: "a string", kindList: "a list", kindObject: "an object",
}

func checkNumbers(path string, n *node) error {
	if n.kind == kindNumber {
		if f, err := strconv.ParseFloat(n.text, 64); err != nil || math.IsInf(f, 0) {
			return fieldErrorf(path, "the number is out of range")
		}
	}
	for i, item := range n.items {
		if err := checkNumbers(index(path, i), item); err != nil {
			return err
		}
	}
	for _, f := range n.fields {
		if err := checkNumbers(join(path, f.name), f.value); err != nil {
			return err
		}
	}
	return nil
}

// CheckResultContent checks content blocks of a tool's result that a tool, an MCP
// server or a search endpoint gave, as those that a client sends are checked.
func CheckResultContent(blocks []json.RawMessage) error {
	for i, b := range blocks {
		n, err := parse(b)
		if err != nil {
			return fmt.Errorf("content[%d]: %w", i, err)
		}
		if err := checkBlock(index("content", i), n, resultBlocks); err != nil {
			return err
		}
	}
	return nil
}

// resultBlocks are the types of blocks that the result of a tool may have.
var resultBlocks = []string{"text", "image", "document", "search_result"}
