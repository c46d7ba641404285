package httpapi

import (
	"fmt"
	"math"
	"net/http"
	"slices"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
)

func (s *server) getBuild(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	build, err := s.sandboxes.BuildStatus(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, build)
}

func (s *server) rebuild(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := noBody(r); err != nil {
		return err
	}
	build, err := s.sandboxes.Rebuild(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, build)
}

// getBuildLog streams the log as plain text.
func (s *server) getBuildLog(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	offset, follow := q.integer("offset"), q.boolean("follow", false)
	if offset.Or(0) < 0 || int64(offset.Or(0)) > math.MaxInt64/2 {
		q.bad("offset", "Input should be greater than or equal to 0")
	}
	if q.err != nil {
		return q.err
	}
	follow = follow && r.Method != http.MethodHead
	flusher := http.NewResponseController(w)
	started := false
	start := func() {
		if !started {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.WriteHeader(http.StatusOK)
			started = true
		}
	}
	err := s.sandboxes.BuildLog(r.Context(), caller, r.PathValue("id"), int64(offset.Or(0)), follow, func(p []byte) error {
		start()
		if _, err := w.Write(p); err != nil {
			return err
		}
		return flusher.Flush()
	})
	return s.endStream(r, start, started, err)
}

// endStream ends a stream: with an error before its first byte as an error
// reply, later by breaking it off.
func (s *server) endStream(r *http.Request, start func(), started bool, err error) error {
	switch {
	case err == nil:
		start()
		return nil
	case !started:
		return err
	}
	noteOf(r).err = fmt.Errorf("stream broken off: %w", err)
	panic(http.ErrAbortHandler)
}

// listEgress lists a session's network decisions, newest first.
func (s *server) listEgress(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	limit := q.integer("limit").Or(100)
	if limit < 1 || limit > 1000 {
		q.bad("limit", "Input should be between 1 and 1000")
	}
	verdict := q.text("verdict")
	known := []string{"", string(egress.VerdictAllowed), string(egress.VerdictRefused), string(egress.VerdictFailed)}
	if !slices.Contains(known, verdict) {
		q.bad("verdict", "Input should be 'allowed', 'refused' or 'failed'")
	}
	for _, cursor := range []string{"before", "after"} {
		if id := q.text(cursor); id != "" && !egress.IsRecordID(id) {
			q.bad(cursor, "Input should be the id of a decision")
		}
	}
	if q.err != nil {
		return q.err
	}
	records, err := s.sandboxes.Egress(r.Context(), caller, r.PathValue("id"),
		egress.Filter{Verdict: verdict, Limit: limit + 1, Before: q.text("before"), After: q.text("after")})
	if err != nil {
		return err
	}
	page := api.DataPage[egress.Record]{Data: []egress.Record{}, HasMore: len(records) > limit}
	page.Data = append(page.Data, records[:min(limit, len(records))]...)
	return reply(w, page)
}

func (s *server) listTemplates(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	templates, err := s.sandboxes.Templates(r.Context(), caller)
	if err != nil {
		return err
	}
	if templates == nil {
		templates = []api.Template{}
	}
	return reply(w, api.DataList[api.Template]{Data: templates})
}
