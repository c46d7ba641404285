package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/atoll-run/atoll/api"
)

// cursor is a place in a list. It holds nothing secret and opens nothing: it
// only says where in the caller's own list to go on. Scope ties it to the kind
// of list, the workspace and the filters it was made for.
type cursor struct {
	Scope   string `json:"s"`
	Created int64  `json:"t,omitempty"` // microseconds
	ID      string `json:"i,omitempty"`
	Back    bool   `json:"b,omitempty"` // the page before, not after
	Whole   bool   `json:"w,omitempty"` // with the row itself, if it is there
	Version int    `json:"v,omitempty"` // of an agent, instead of Created and ID

	// Of a list of events, instead of all but Scope: see eventWalk.
	Seq   int64 `json:"q,omitempty"`
	Place int64 `json:"p,omitempty"`
	Edge  int64 `json:"e,omitempty"`
}

const cursorPrefix = "page_"

// cursorScope names a list: its kind, whose it is and what it was asked with.
func cursorScope(kind string, caller Caller, filter any) string {
	text, err := json.Marshal([]any{kind, caller.Workspace, filter})
	if err != nil {
		panic("control: a filter that JSON does not take: " + err.Error())
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

func (c cursor) String() string {
	text, _ := json.Marshal(c) // a plain struct always encodes
	return cursorPrefix + base64.RawURLEncoding.EncodeToString(text)
}

// readCursor reads a cursor of this list, byte for byte as String wrote it.
// None is the zero cursor.
func readCursor(text, scope string) (cursor, error) {
	var c cursor
	if text == "" {
		return c, nil
	}
	bad := Faultf(Invalid, "invalid page cursor")
	body, ok := strings.CutPrefix(text, cursorPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(text) > 1024 {
		return c, bad
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if dec.Decode(&c) != nil || c.String() != text || c.Scope != scope || c.Created < 0 || c.Version < 0 {
		return cursor{}, bad
	}
	forms := 0
	for _, there := range []bool{c.ID != "", c.Version != 0, c.Seq != 0 || c.Place != 0} {
		if there {
			forms++
		}
	}
	if forms != 1 || (c.Back || c.Whole) && c.ID == "" || !cursorTime(c.Created) || c.Seq < 0 || c.Place < 0 || c.Edge < 0 {
		return cursor{}, bad
	}
	return c, nil
}

// cursorTime tells whether a cursor's time is one that a record can have.
func cursorTime(us int64) bool { return us < 1<<55 }

// page is what a Store is asked for.
func (c cursor) page(limit int, ascending bool) Page {
	p := Page{Limit: limit, Ascending: ascending, Inclusive: c.Whole}
	if c.ID != "" {
		mark := &Mark{CreatedAt: time.UnixMicro(c.Created).UTC(), ID: c.ID}
		if c.Back {
			p.Before = mark
		} else {
			p.After = mark
		}
	}
	return p
}

// at is the cursor that goes on from a row.
func at(scope string, created time.Time, id string, back bool) *string {
	text := cursor{Scope: scope, Created: created.UnixMicro(), ID: id, Back: back}.String()
	return &text
}

// turned is the cursor that goes back from where this one has led to: from a page
// that is empty, because all of its rows were deleted, to the row before it.
func (c cursor) turned() *string {
	c.Back, c.Whole = !c.Back, !c.Whole
	text := c.String()
	return &text
}

// pageLimit is a list's limit as asked for, 20 by default.
func pageLimit(limit api.Opt[int], most int) (int, error) {
	n := limit.Or(20)
	switch {
	case n < 1:
		return 0, Faultf(Invalid, "limit: Input should be greater than or equal to 1")
	case n > most:
		return 0, Faultf(Invalid, "limit: Input should be less than or equal to %d", most)
	}
	return n, nil
}
