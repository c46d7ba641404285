package agent

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/atoll-run/atoll/api"
)

// maxModelID is how long the name of a model may be, in bytes: agents name no
// longer ones.
const maxModelID = 4 * 256

// readModel reads a model as an endpoint describes it. Of an endpoint that says
// more or less than the Models API only what is as that API has it is taken; it
// tells whether there is a name at all.
func readModel(raw json.RawMessage) (api.ModelInfo, bool) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return api.ModelInfo{}, false
	}
	m := api.ModelInfo{Type: "model", Lifecycle: api.ModelActive, CreatedAt: api.Time{Time: time.Unix(0, 0).UTC()}}
	m.ID = stringOf(fields["id"])
	if m.ID == "" || len(m.ID) > maxModelID {
		return m, false
	}
	if m.DisplayName = stringOf(fields["display_name"]); m.DisplayName == "" {
		m.DisplayName = m.ID
	}
	switch stage := stringOf(fields["lifecycle"]); stage {
	case api.ModelDeprecated, api.ModelRetired:
		m.Lifecycle = stage
	}
	if line := stringOf(fields["line"]); slices.Contains(modelLines, line) {
		m.Line = &line
	}
	if at := momentOf(fields["created_at"]); !at.IsZero() {
		m.CreatedAt = api.Time{Time: at}
	} else if n := countOf(fields["created"]); n != nil && *n < 1<<36 { // as other APIs write it, in seconds
		m.CreatedAt = api.Time{Time: time.Unix(*n, 0).UTC()}
	}
	m.DeprecatedAt, m.RetiresAt = api.NullTime(momentOf(fields["deprecated_at"])), api.NullTime(momentOf(fields["retires_at"]))
	m.MaxInputTokens, m.MaxTokens = countOf(fields["max_input_tokens"]), countOf(fields["max_tokens"])
	if hasCapabilities(fields["capabilities"]) {
		m.Capabilities = fields["capabilities"]
	}
	return m, true
}

// modelLines are the lines of models that the API knows.
var modelLines = []string{"haiku", "sonnet", "opus", "fable", "mythos"}

// capabilities are those that an object of capabilities has to have.
var capabilities = []string{
	"batch", "citations", "code_execution", "context_management", "effort", "image_input", "pdf_input", "server_tools", "structured_outputs", "thinking",
}

// hasCapabilities tells whether an object of capabilities is as the API has it:
// each says whether it is supported.
func hasCapabilities(raw json.RawMessage) bool {
	var all map[string]struct {
		Supported *bool `json:"supported"`
	}
	if json.Unmarshal(raw, &all) != nil {
		return false
	}
	for _, name := range capabilities {
		if all[name].Supported == nil {
			return false
		}
	}
	return true
}

func stringOf(raw json.RawMessage) (s string) {
	if json.Unmarshal(raw, &s) != nil || !utf8.ValidString(s) {
		return ""
	}
	return s
}

func momentOf(raw json.RawMessage) time.Time {
	at, err := time.Parse(time.RFC3339Nano, stringOf(raw))
	if err != nil || at.UTC().Year() < 1970 || at.UTC().Year() > 9999 {
		return time.Time{}
	}
	return at.UTC()
}

// countOf is a number of at least zero, or nil.
func countOf(raw json.RawMessage) *int64 {
	var n *int64
	if json.Unmarshal(raw, &n) != nil || n == nil || *n < 0 {
		return nil
	}
	return n
}

// nameModels is what agents may name, once each: the models of the endpoint in its
// order, each preceded by the names that the map has for it, and the names of what
// the endpoint does not list. A model of the endpoint whose own id the map gives to
// another cannot be named by it.
func nameModels(found []api.ModelInfo, names map[string]string) []api.ModelInfo {
	of := map[string][]string{} // id of the endpoint → names that stand for it
	for _, name := range slices.Sorted(maps.Keys(names)) {
		of[names[name]] = append(of[names[name]], name)
	}
	out, seen := []api.ModelInfo{}, map[string]bool{}
	add := func(m api.ModelInfo, id string) {
		if !seen[id] {
			seen[id] = true
			m.ID = id
			out = append(out, m)
		}
	}
	for _, m := range found {
		for _, name := range of[m.ID] {
			add(m, name)
		}
		if _, given := names[m.ID]; !given {
			add(m, m.ID)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		add(api.ModelInfo{Type: "model", DisplayName: name, Lifecycle: api.ModelActive, CreatedAt: api.Time{Time: time.Unix(0, 0).UTC()}}, name)
	}
	return out
}
