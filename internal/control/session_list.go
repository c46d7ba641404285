package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
)

// SessionQuery asks for a page of sessions.
type SessionQuery struct {
	Limit api.Opt[int] // 1–1000, 20 when absent
	// Page is the cursor of an earlier page; empty for the first.
	Page  string
	Order string // asc or desc; empty is desc
	// IncludeArchived lists archived sessions too.
	IncludeArchived bool
	// Agent is an agent's id; empty does not filter.
	Agent string
	// AgentVersion is a version of Agent; without Agent it has no effect.
	AgentVersion            api.Opt[int]
	Deployment, MemoryStore string // no session has one: a value matches nothing
	// Statuses are the only ones to list; nil lists all.
	Statuses []string
	// The bounds hold for the session's creation; zero does not bound.
	CreatedGT, CreatedGTE, CreatedLT, CreatedLTE time.Time
}

// sessionStatuses are the statuses of sessions and threads.
var sessionStatuses = []string{api.SessionRescheduling, api.SessionRunning, api.SessionIdle, api.SessionTerminated}

const statusesReason = "Input should be 'rescheduling', 'running', 'idle' or 'terminated'"

func (q SessionQuery) filter() (SessionFilter, error) {
	f := SessionFilter{
		Agent: q.Agent, AgentVersion: q.AgentVersion.Or(0), Statuses: q.Statuses, IncludeArchived: q.IncludeArchived,
		CreatedGT: q.CreatedGT, CreatedGTE: q.CreatedGTE, CreatedLT: q.CreatedLT, CreatedLTE: q.CreatedLTE,
	}
	if err := checkVersion("agent_version", q.AgentVersion); err != nil {
		return f, err
	}
	if q.Agent == "" {
		f.AgentVersion = 0 // the reference: no effect without agent_id
	}
	if q.Order != "" && q.Order != "asc" && q.Order != "desc" {
		return f, badField("order", "Input should be 'asc' or 'desc'")
	}
	for i, status := range q.Statuses {
		if !slices.Contains(sessionStatuses, status) {
			return f, badField(fmt.Sprintf("statuses[%d]", i), statusesReason)
		}
	}
	f.Statuses = slices.Compact(slices.Sorted(slices.Values(q.Statuses)))
	return f, nil
}

// ListSessions lists sessions by their time of creation, in both directions.
func (s *Service) ListSessions(ctx context.Context, caller Caller, q SessionQuery) (api.PagedList[api.Session], error) {
	list := api.PagedList[api.Session]{Data: []api.Session{}}
	limit, err := pageLimit(q.Limit, 1000)
	if err != nil {
		return list, err
	}
	filter, err := q.filter()
	if err != nil {
		return list, err
	}
	scope := cursorScope("sessions", caller, []any{filter, q.Order == "asc", q.Deployment, q.MemoryStore})
	from, err := readCursor(q.Page, scope)
	if err != nil || q.Deployment != "" || q.MemoryStore != "" {
		return list, err
	}
	recs, more, err := s.store.ListSessions(ctx, caller.Workspace, filter, from.page(limit, q.Order == "asc"))
	if err != nil {
		return list, err
	}
	for _, rec := range recs {
		reply, err := s.sessionReply(rec)
		if err != nil {
			return list, err
		}
		list.Data = append(list.Data, reply)
	}
	if len(recs) == 0 {
		switch {
		case from.Back:
			list.NextPage = from.turned()
		case from.ID != "":
			list.PrevPage = from.turned()
		}
		return list, nil
	}
	top, bottom := recs[0], recs[len(recs)-1]
	if more && !from.Back || from.Back {
		list.NextPage = at(scope, bottom.CreatedAt, bottom.ID, false)
	}
	if more && from.Back || from.ID != "" && !from.Back {
		list.PrevPage = at(scope, top.CreatedAt, top.ID, true)
	}
	return list, nil
}

// ListSessionResources lists what was put into a session's sandbox. Sessions
// cannot have resources yet, so that there is one page, and it is empty.
func (s *Service) ListSessionResources(ctx context.Context, caller Caller, session string, limit api.Opt[int], page string) (api.List[struct{}], error) {
	list := api.List[struct{}]{Data: []struct{}{}}
	if _, err := pageLimit(limit, 1000); err != nil {
		return list, err
	}
	if page != "" {
		return list, Faultf(Invalid, "invalid page cursor")
	}
	if _, err := s.store.Session(ctx, caller.Workspace, session); err != nil {
		return list, sessionFault(session, err)
	}
	return list, nil
}
