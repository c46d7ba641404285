package httpapi

import (
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
	"time"
)

// FuzzQuery: any query string is read or refused; a moment that is read is one
// that a row can have, and says the same when it is written again.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"limit=5&page=page_x&created_at[gt]=2026-11-27T10:00:00Z", "created_at[gt]=2026-11-27t10:00:00.123456789+14:00", "created_at%5Bgt%5D=9999-12-31T23:59:60Z",
		"limit=%zz", "limit=99999999999999999999", "statuses[]=idle&statuses=running", "include_archived=TRUE", "a;b", "=&=&", "created_at[gt]=0000-00-00T00:00:00Z", "created_at[gt]=1970-01-01T00:00:00%2B23:59",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL = &url.URL{Path: "/", RawQuery: raw}
		q := queryOf(r)
		at := q.moment("created_at[gt]")
		limit, flag, list := q.integer("limit"), q.boolean("include_archived", false), q.list("statuses")
		if q.err != nil {
			return
		}
		written := url.Values{"statuses[]": list}
		if limit.Set {
			written.Set("limit", q.text("limit"))
		}
		if q.values.Has("created_at[gt]") {
			if at.Before(time.Unix(-86400, 0)) || at.Year() > 10000 || at.Location() != time.UTC {
				t.Fatalf("%q is the moment %v", raw, at)
			}
			written.Set("created_at[gt]", at.Format(time.RFC3339Nano))
		}
		r.URL.RawQuery = written.Encode()
		again := queryOf(r)
		if at.Year() >= 1970 && at.Year() <= 9999 || at.IsZero() {
			if got := again.moment("created_at[gt]"); !got.Equal(at) {
				t.Fatalf("%q: %v is %v when it is read again", raw, at, got)
			}
		}
		if got := again.integer("limit"); got != limit || !slices.Equal(again.list("statuses"), list) || again.err != nil && at.Year() >= 1970 && at.Year() <= 9999 {
			t.Fatalf("%q is read as %v %v %v and again as %v, %v", raw, limit, flag, list, got, again.err)
		}
	})
}
