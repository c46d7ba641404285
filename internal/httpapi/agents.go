package httpapi

import (
	"net/http"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

func (s *server) createAgent(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.AgentCreate
	if err := decode(r, &req); err != nil {
		return err
	}
	agent, err := s.service.CreateAgent(r.Context(), caller, req)
	if err != nil {
		return err
	}
	return reply(w, agent)
}

func (s *server) listAgents(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	ask := control.AgentQuery{
		Limit: q.integer("limit"), Page: q.text("page"), IncludeArchived: q.boolean("include_archived", false),
		CreatedGTE: q.moment("created_at[gte]"), CreatedLTE: q.moment("created_at[lte]"),
	}
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListAgents(r.Context(), caller, ask)
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) getAgent(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	version := q.integer("version")
	if q.err != nil {
		return q.err
	}
	agent, err := s.service.Agent(r.Context(), caller, r.PathValue("id"), version)
	if err != nil {
		return err
	}
	return reply(w, agent)
}

func (s *server) updateAgent(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.AgentUpdate
	if err := decode(r, &req); err != nil {
		return err
	}
	agent, err := s.service.UpdateAgent(r.Context(), caller, r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return reply(w, agent)
}

func (s *server) archiveAgent(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := noBody(r); err != nil {
		return err
	}
	agent, err := s.service.ArchiveAgent(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, agent)
}

func (s *server) listAgentVersions(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	limit := q.integer("limit")
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListAgentVersions(r.Context(), caller, r.PathValue("id"), limit, q.text("page"))
	if err != nil {
		return err
	}
	return reply(w, list)
}
