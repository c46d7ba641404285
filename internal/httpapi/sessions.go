package httpapi

import (
	"net/http"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

func (s *server) createSession(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.SessionCreate
	if err := decodeLarge(r, &req); err != nil {
		return err
	}
	session, err := s.service.CreateSession(r.Context(), caller, req)
	if err != nil {
		return err
	}
	return reply(w, session)
}

func (s *server) listSessions(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	ask := control.SessionQuery{
		Limit: q.integer("limit"), Page: q.text("page"), Order: q.text("order"), IncludeArchived: q.boolean("include_archived", false),
		Agent: q.text("agent_id"), AgentVersion: q.integer("agent_version"),
		Deployment: q.text("deployment_id"), MemoryStore: q.text("memory_store_id"), Statuses: q.list("statuses"),
		CreatedGT: q.moment("created_at[gt]"), CreatedGTE: q.moment("created_at[gte]"),
		CreatedLT: q.moment("created_at[lt]"), CreatedLTE: q.moment("created_at[lte]"),
	}
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListSessions(r.Context(), caller, ask)
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) getSession(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	session, err := s.service.Session(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, session)
}

func (s *server) updateSession(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.SessionUpdate
	if err := decode(r, &req); err != nil {
		return err
	}
	session, err := s.service.UpdateSession(r.Context(), caller, r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return reply(w, session)
}

func (s *server) archiveSession(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := noBody(r); err != nil {
		return err
	}
	session, err := s.service.ArchiveSession(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, session)
}

func (s *server) deleteSession(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	gone, err := s.service.DeleteSession(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, gone)
}

func (s *server) listResources(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	limit := q.integer("limit")
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListSessionResources(r.Context(), caller, r.PathValue("id"), limit, q.text("page"))
	if err != nil {
		return err
	}
	return reply(w, list)
}
