package toolset

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestOffered(t *testing.T) {
	for _, test := range []struct{ schema, want string }{
		{`{"type":"object"}`, `{"type":"object"}`},
		{`{"type":"object","properties":{"a":{"anyOf":[{"type":"string"}]}},"required":["a"]}`, `{"type":"object","properties":{"a":{"anyOf":[{"type":"string"}]}},"required":["a"]}`},
		{`{"type":"object","properties":{"a":{"type":"string"}},"anyOf":[{"required":["a"]},{"properties":{"a":{},"b":{"type":"number"}}}],"oneOf":7}`,
			`{"properties":{"a":{"type":"string"},"b":{"type":"number"}},"type":"object"}`},
		{`{"type":"object","allOf":[{"properties":{"c d":{}}}]}`, `{"properties":{},"type":"object"}`},
		{`{"type":"object","properties":{"filter[id]":{},"ok":{}},"required":["ok"]}`, `{"properties":{"ok":{}},"required":["ok"],"type":"object"}`},
		{`{"type":"object","properties":{"$.x":{}},"required":["$.x"]}`, ""},
		{`{"type":"object","properties":{"` + strings.Repeat("x", 65) + `":{}}}`, `{"properties":{},"type":"object"}`},
		{`{"type":"string"}`, ""}, {`{"type":["object"]}`, ""}, {`{}`, ""}, {`[]`, ""}, {`null`, ""}, {``, ""},
		{`{"type":"object","properties":[]}`, ""}, {`{"type":"object","required":"a"}`, ""},
	} {
		got, err := offered(json.RawMessage(test.schema))
		if string(got) != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s becomes %s, %v; want %s", test.schema, got, err, test.want)
		}
	}
}

// FuzzOffered: whatever a server says of its tools, what is offered keeps the
// rules of the Messages API.
func FuzzOffered(f *testing.F) {
	f.Add([]byte(`{"type":"object","properties":{"a b":{},"a":{"oneOf":[]}},"required":["a"],"anyOf":[{"properties":{"b":1}},null]}`))
	f.Fuzz(func(t *testing.T, schema []byte) {
		got, err := offered(schema)
		if err != nil {
			return
		}
		var members map[string]json.RawMessage
		var properties map[string]json.RawMessage
		if json.Unmarshal(got, &members) != nil || len(members["properties"]) > 0 && json.Unmarshal(members["properties"], &properties) != nil {
			t.Fatalf("%s becomes %s", schema, got)
		}
		for _, name := range combinators {
			if _, there := members[name]; there {
				t.Errorf("%s keeps its %s: %s", schema, name, got)
			}
		}
		for name := range properties {
			if !propertyName.MatchString(name) {
				t.Errorf("%s keeps %q: %s", schema, name, got)
			}
		}
	})
}
