package control

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func TestCursor(t *testing.T) {
	t.Parallel()
	scope := cursorScope("environments", Caller{Workspace: "w"}, false)
	made := time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC)
	for _, back := range []bool{false, true} {
		text := *at(scope, made, "env_1", back)
		c, err := readCursor(text, scope)
		if err != nil {
			t.Fatal(err)
		}
		page := c.page(7, true)
		mark := page.After
		if back {
			mark = page.Before
		}
		if mark == nil || !mark.CreatedAt.Equal(made) || mark.ID != "env_1" || page.Limit != 7 || !page.Ascending || (page.After != nil) == back {
			t.Errorf("page %+v of %s", page, text)
		}
	}
	turned, err := readCursor(*cursor{Scope: scope, Created: made.UnixMicro(), ID: "env_1"}.turned(), scope)
	if p := turned.page(7, false); err != nil || p.After != nil || p.Before == nil || p.Before.ID != "env_1" || !p.Inclusive {
		t.Errorf("turned round it is %+v, %v", p, err)
	}
	if _, err := readCursor(cursor{Scope: scope, Seq: 5, Whole: true}.String(), scope); err == nil {
		t.Error("a cursor of events with a direction is taken")
	}
	if p := (cursor{}).page(1, false); p.After != nil || p.Before != nil {
		t.Errorf("the first page is %+v", p)
	}
	// No two lists have the same scope.
	scopes := map[string]bool{scope: true}
	for _, other := range []string{
		cursorScope("agents", Caller{Workspace: "w"}, false), cursorScope("environments", Caller{Workspace: "v"}, false),
		cursorScope("environments", Caller{Workspace: "w"}, true), cursorScope("agent_versions", Caller{Workspace: "w"}, "agent_1"),
		cursorScope("sessions", Caller{Workspace: "w"}, []any{SessionFilter{Agent: "a"}, true}), cursorScope("sessions", Caller{Workspace: "w"}, []any{SessionFilter{}, true}),
	} {
		if scopes[other] {
			t.Errorf("scope %s twice", other)
		}
		scopes[other] = true
	}
}

// FuzzCursor: a cursor that is taken is one that this server wrote, byte for
// byte, and everything else is the same fault.
func FuzzCursor(f *testing.F) {
	scope := cursorScope("environments", Caller{Workspace: "w"}, nil)
	whole := *at(scope, time.Unix(1, 0), "env_1", true)
	f.Add(whole)
	f.Add(cursor{Scope: scope, Version: 3}.String())
	f.Add(cursor{Scope: scope, Seq: 5, Place: 7, Edge: 9}.String())
	f.Add(cursor{Scope: scope, Seq: -5}.String())
	f.Add(cursor{Scope: scope, Edge: 5}.String())
	f.Add(whole + "=")
	f.Add("page_")
	f.Add("page_e30")
	f.Add("page_" + base64.RawURLEncoding.EncodeToString([]byte(`{"s":"`+scope+`","t":-1,"i":"x"}`)))
	f.Add("page_" + base64.RawURLEncoding.EncodeToString([]byte(`{"s":"`+scope+`","i":"x","v":2}`)))
	f.Add("page_" + base64.RawURLEncoding.EncodeToString([]byte(`{"s":"`+scope+`","t":9223372036854775807,"i":"x"} `)))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := readCursor(text, scope)
		if err != nil {
			if fault, ok := AsFault(err); !ok || fault.Kind != Invalid || fault.Message != "invalid page cursor" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if text == "" {
			return
		}
		if c.String() != text || c.Scope != scope || !strings.HasPrefix(text, cursorPrefix) || min(c.Created, int64(c.Version), c.Seq, c.Place, c.Edge) < 0 {
			t.Fatalf("%q is taken as %+v", text, c)
		}
		if row, version, event := c.ID != "", c.Version != 0, c.Seq != 0 || c.Place != 0; row && (version || event) || version && event || !row && !version && !event {
			t.Fatalf("%q is a place in several lists: %+v", text, c)
		}
	})
}
