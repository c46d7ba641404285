package httpapi

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// query reads the query of a request; the first thing wrong with it stays in
// err. Parameters that nobody asks for are ignored.
type query struct {
	values url.Values
	err    error
}

// queryOf reads the query as a whole: a part that cannot be read is refused,
// where net/url would drop it.
func queryOf(r *http.Request) *query {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &query{values: values, err: &control.Fault{Kind: control.Invalid, Message: "The query string is not valid", Cause: err}}
	}
	return &query{values: values}
}

func (q *query) bad(name, reason string) {
	if q.err == nil {
		q.err = control.Faultf(control.Invalid, "%s: %s", name, reason)
	}
}

func (q *query) text(name string) string { return q.values.Get(name) }

// list is a parameter that may be given several times, as name[] or, by clients
// that write lists so, as name.
func (q *query) list(name string) []string {
	return slices.Concat(q.values[name+"[]"], q.values[name])
}

func (q *query) integer(name string) api.Opt[int] {
	if !q.values.Has(name) {
		return api.Opt[int]{}
	}
	n, err := strconv.Atoi(q.values.Get(name))
	if err != nil {
		q.bad(name, "Input should be a valid integer")
	}
	return api.Some(n)
}

func (q *query) boolean(name string, fallback bool) bool {
	if !q.values.Has(name) {
		return fallback
	}
	switch q.values.Get(name) {
	case "true", "True", "1":
		return true
	case "false", "False", "0":
		return false
	}
	q.bad(name, "Input should be a valid boolean")
	return fallback
}

func (q *query) moment(name string) time.Time {
	if !q.values.Has(name) {
		return time.Time{}
	}
	// RFC 3339, section 5.6: T and Z may be in lower case.
	t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(q.values.Get(name)))
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		q.bad(name, "Input should be a valid RFC 3339 datetime")
	}
	return t.UTC()
}
