package httpapi

import (
	"net/http"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

func (s *server) createEnvironment(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.EnvironmentCreate
	if err := decode(r, &req); err != nil {
		return err
	}
	env, err := s.service.CreateEnvironment(r.Context(), caller, req)
	if err != nil {
		return err
	}
	return reply(w, env)
}

func (s *server) listEnvironments(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	ask := control.EnvironmentQuery{Limit: q.integer("limit"), Page: q.text("page"), IncludeArchived: q.boolean("include_archived", false)}
	if q.err != nil {
		return q.err
	}
	list, err := s.service.ListEnvironments(r.Context(), caller, ask)
	if err != nil {
		return err
	}
	return reply(w, list)
}

func (s *server) getEnvironment(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	env, err := s.service.Environment(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, env)
}

func (s *server) updateEnvironment(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.EnvironmentUpdate
	if err := decode(r, &req); err != nil {
		return err
	}
	env, err := s.service.UpdateEnvironment(r.Context(), caller, r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return reply(w, env)
}

func (s *server) archiveEnvironment(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	if err := noBody(r); err != nil {
		return err
	}
	env, err := s.service.ArchiveEnvironment(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, env)
}

func (s *server) deleteEnvironment(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	gone, err := s.service.DeleteEnvironment(r.Context(), caller, r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, gone)
}
