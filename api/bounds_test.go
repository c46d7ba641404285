package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// countValues counts the values of a decoded body, itself included.
func countValues(v any) int {
	n := 1
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			n += countValues(item)
		}
	case map[string]any:
		for _, item := range v {
			n += countValues(item)
		}
	}
	return n
}

func TestBoundsCount(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{}`, `[]`, ` { "a" : 1 } `, `{"a":[],"b":{}}`, `[[[]],[1,2,{"x":"],[,{"}]]`, `{"a":"\\\"","b":[true,null]}`, `"x"`, `7`,
	} {
		var v any
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		var whole, cut Bounds
		if err := whole.Check([]byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		for i := range body {
			if err := cut.Check([]byte{body[i]}); err != nil {
				t.Errorf("%s: %v", body, err)
			}
		}
		if want := countValues(v); whole.Values() != want || cut.Values() != want {
			t.Errorf("%s: %d values whole and %d in pieces, want %d", body, whole.Values(), cut.Values(), want)
		}
	}
}

func TestBoundsRefuse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		body string
		bad  bool
	}{
		{"[" + strings.Repeat("0,", MaxValues-2) + "0]", false},
		{"[" + strings.Repeat("0,", MaxValues-1) + "0]", true},
		{strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth), false},
		{strings.Repeat("[", MaxDepth+1), true},
		{`["` + strings.Repeat("[,", MaxValues) + `"]`, false},
	} {
		var b Bounds
		err := b.Check([]byte(test.body))
		var field *FieldError
		if (err != nil) != test.bad || err != nil && !errors.As(err, &field) {
			t.Errorf("%.40s…: %v, want an error: %v", test.body, err, test.bad)
		}
	}
}

// FuzzBounds: what Decode takes, Bounds takes, however it is cut; and both
// count the same.
func FuzzBounds(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,{"b":"\"]"}]}`, `[[],{}]`, `{"a":"\\"}`, `]`, `}{`} {
		f.Add([]byte(seed), 1)
	}
	f.Fuzz(func(t *testing.T, body []byte, at int) {
		at = min(max(at, 0), len(body))
		var whole, cut Bounds
		wholeErr := whole.Check(body)
		cutErr := errors.Join(cut.Check(body[:at]), cut.Check(body[at:]))
		if (wholeErr == nil) != (cutErr == nil) {
			t.Fatalf("%q: %v whole and %v cut at %d", body, wholeErr, cutErr, at)
		}
		var v any
		if _, err := parse(body); err != nil || json.Unmarshal(body, &v) != nil {
			return
		}
		if wholeErr != nil || whole.Values() != countValues(v) {
			t.Fatalf("%q: %v and %d values, want %d", body, wholeErr, whole.Values(), countValues(v))
		}
	})
}
