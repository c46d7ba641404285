package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDecode: absent, null and value are three things, and unions know their arm.
func TestDecode(t *testing.T) {
	t.Parallel()
	var got EnvironmentUpdate
	err := Decode([]byte(` {"description":null,"metadata":{"a":null,"b":"","c":"é\ud83d\ude00"},"config":{"type":"cloud","packages":{"pip":[]}}} `), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := EnvironmentUpdate{
		Description: Opt[string]{Set: true, Null: true},
		Metadata:    Some(map[string]Opt[string]{"a": Opt[string]{Set: true, Null: true}, "b": Some(""), "c": Some("é😀")}),
		Config:      Some(ConfigParams{Type: "cloud", Packages: Some(PackagesParams{Pip: Some([]string{})})}),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"description":null,"config":{"type":"cloud","packages":{"pip":[]}},"metadata":{"a":null,"b":"","c":"é😀"}}`; string(text) != want {
		t.Errorf("written %s\nwant %s", text, want)
	}
}

// TestDecodeNames: what a body calls its fields cannot spoil a message.
func TestDecodeNames(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"a\nb":1}`: `"a\nb": Extra inputs are not permitted`,
		`{"` + strings.Repeat("é", 900) + `":1}`: strings.Repeat("é", 50) + "…: Extra inputs are not permitted",
		`{"":1}`: ": Extra inputs are not permitted",
	} {
		err := Decode([]byte(body), &EnvironmentCreate{})
		if err == nil || err.Error() != want && err.Error() != strings.TrimPrefix(want, ": ") {
			t.Errorf("%.20s: %v", body, err)
		}
	}
	if err := Decode([]byte(`{"name":"x","config":{"type":"cloud","networking":{"type":"limited","x":{"y":1,"y":2}}}}`), &EnvironmentCreate{}); err == nil || err.Error() != "config.networking.x.y: Field is given more than once" {
		t.Error(err)
	}
}

func TestSurrogates(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		`"\ud83d\ude00"`: -1, `"\\ud83d"`: -1, `"\u00e9"`: -1, `"\"\ud83d\ude00\n"`: -1,
		`"\ud83d"`: 1, `"\ud83dx"`: 1, `"\ud83d\n"`: 1, `"\ud83d\u0041"`: 1, `"\ude00"`: 1, `"a\\\udfff"`: 4, `"\ud83d\ud83d\ude00"`: 1,
	} {
		if got := loneSurrogate([]byte(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	at := Time{time.Date(2026, 3, 15, 11, 0, 0, 1999, time.FixedZone("x", 3600))}
	text, err := json.Marshal(at)
	if err != nil || string(text) != `"2026-03-15T10:00:00.000001Z"` {
		t.Errorf("%s, %v", text, err)
	}
	var back Time
	if err := json.Unmarshal([]byte(`"2026-03-15T11:00:00+01:00"`), &back); err != nil || !back.Equal(time.Date(2026, 3, 15, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("%v, %v", back, err)
	}
}

// roundTrip holds what Decode promises of any body: no panic, a *FieldError or
// nothing, and what was accepted reads the same after it was written.
func roundTrip[T any](t *testing.T, body []byte) {
	t.Helper()
	var first, second T
	if err := Decode(body, &first); err != nil {
		var field *FieldError
		if !errors.As(err, &field) || field.Reason == "" {
			t.Fatalf("%q: %T %v", body, err, err)
		}
		return
	}
	text, err := json.Marshal(first)
	if err != nil {
		t.Fatalf("%q: writing: %v", body, err)
	}
	if err := Decode(text, &second); err != nil {
		t.Fatalf("%q was accepted, %q is not: %v", body, text, err)
	}
	again, err := json.Marshal(second)
	if err != nil || !bytes.Equal(text, again) {
		t.Fatalf("%q is written %q and then %q, %v", body, text, again, err)
	}
}

var seeds = []string{
	``, `{}`, `null`, `{"name":"x"}`, `{"name":null,"description":null,"metadata":null,"config":null,"scope":null}`,
	`{"name":"x","metadata":{"a":"b","c":null},"scope":"organization","config":{"type":"cloud","base_template":"slim","networking":{"type":"limited","allowed_hosts":["a.example.com"],"allow_mcp_servers":true,"allow_package_managers":null},"packages":{"type":"packages","pip":["a"],"apt":null}}}`,
	`{"config":{"type":"self_hosted"}}`, `{"config":{"type":"self_hosted","x":1}}`,
	`{"name":"x","model":{"id":"m","speed":"fast","effort":"low"},"tools":[{"type":"agent_toolset_20260401","configs":[{"name":"web_fetch","type":"web_fetch","allowed_domains":["a"],"url_sources":{"a":[1.50,"<"]}}]},{"type":"mcp_toolset","mcp_server_name":"s"},{"type":"custom","name":"c","description":"d","input_schema":{"type":"object","required":["q"],"properties":{"q":{"x":1e5}}}}],"mcp_servers":[{"type":"url","name":"s","url":"https://x"}],"skills":[{}],"multiagent":{"a":{}},"execution_identity":{"type":"aws_role","role_arn":"x"}}`,
	`{"agent":"a","environment_id":"e","budget":{"x":"\u2028"}}`,
	`{"agent":{"type":"agent_with_overrides","id":"a","version":1,"system":null,"tools":[]},"environment_id":"e","initial_events":[{"type":"user.message"}]}`,
	`{"title":null,"agent":{"tools":[],"mcp_servers":[]},"version":3}`,
	`{"command":["a"],"env":{"A":"b"},"stdin":"x","timeout_ms":1}`,
	`{"name":"x","name":"y"}`, "{\"name\":\"\xff\"}", `{"name":"\ud800"}`, `{"a":[[[[[[]]]]]]}`, `{"name":"x"}}`, `{"version":1e2}`, `{"version":-0}`,
}

func FuzzDecode(f *testing.F) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		roundTrip[EnvironmentCreate](t, body)
		roundTrip[EnvironmentUpdate](t, body)
		roundTrip[AgentCreate](t, body)
		roundTrip[AgentUpdate](t, body)
		roundTrip[SessionCreate](t, body)
		roundTrip[SessionUpdate](t, body)
		roundTrip[Exec](t, body)
	})
}
