package control

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
)

func sessionReply(rec SessionRecord) (api.Session, error) {
	d, err := readSession(rec)
	if err != nil {
		return api.Session{}, err
	}
	return api.Session{
		Type: "session", ID: rec.ID, Status: rec.Status, Agent: d.Agent, EnvironmentID: rec.Environment,
		Title: d.Title, Metadata: d.Metadata, Resources: []struct{}{}, VaultIDs: []string{},
		OutcomeEvaluations: []struct{}{}, ArchivedAt: api.NullTime(rec.ArchivedAt),
		CreatedAt: api.Time{Time: rec.CreatedAt}, UpdatedAt: api.Time{Time: rec.UpdatedAt},
	}, nil
}

// CreateSession makes a session with snapshots of its agent and its
// environment, and starts preparing its sandbox.
func (s *Service) CreateSession(ctx context.Context, caller Caller, req api.SessionCreate) (api.Session, error) {
	if err := checkSessionCreate(req); err != nil {
		return api.Session{}, err
	}
	agent, err := s.sessionAgent(ctx, caller, req.Agent)
	if err != nil {
		return api.Session{}, err
	}
	config, err := s.sessionConfig(ctx, caller, req.EnvironmentID)
	if err != nil {
		return api.Session{}, err
	}
	if err := checkServersReachable(req.EnvironmentID, config.Networking, agent.MCPServers); err != nil {
		return api.Session{}, err
	}
	d := sessionDocument{Title: orNull(req.Title), Metadata: req.Metadata.Or(nil), Agent: agent, Environment: config}
	if d.Metadata == nil {
		d.Metadata = map[string]string{}
	}
	now := s.clock()
	rec := SessionRecord{
		ID: s.ids.make("sesn_", now), Workspace: caller.Workspace, Environment: req.EnvironmentID,
		Agent: agent.ID, AgentVersion: agent.Version, Status: api.SessionIdle, CreatedAt: now, UpdatedAt: now,
	}
	if err := d.set(&rec); err != nil {
		return api.Session{}, err
	}
	switch err := s.store.CreateSession(ctx, rec); {
	case errors.Is(err, ErrStale):
		return api.Session{}, environmentArchived(req.EnvironmentID)
	case err != nil:
		return api.Session{}, environmentFault(req.EnvironmentID, "", err)
	}
	if s.runtime != nil {
		s.runtime.SessionCreated(rec)
	}
	return sessionReply(rec)
}

func checkSessionCreate(req api.SessionCreate) error {
	switch {
	case len(req.Resources.Value) > 0:
		return unsupported("resources")
	case len(req.VaultIDs.Value) > 0:
		return unsupported("vault_ids")
	case len(req.InitialEvents.Value) > 0:
		return unsupported("initial_events")
	case req.Budget.Given():
		return unsupported("budget")
	case len(req.Agent.Skills.Value) > 0:
		return unsupported("agent.skills")
	}
	return first(errors.Join(
		checkLength("agent.id", req.Agent.ID, 1, maxIDLen),
		checkVersion("agent.version", req.Agent.Version),
		checkLength("environment_id", req.EnvironmentID, 1, maxIDLen),
		checkOptional("title", req.Title, 0, 500),
		checkOptional("agent.system", req.Agent.System, 0, 100_000),
		checkMetadata(req.Metadata.Or(nil))))
}

func environmentArchived(id string) error {
	return Faultf(Invalid, "Environment %s is archived.", id)
}

// sessionConfig is the config that a new session gets.
func (s *Service) sessionConfig(ctx context.Context, caller Caller, id string) (api.CloudConfig, error) {
	rec, err := s.store.Environment(ctx, caller.Workspace, id)
	if err != nil {
		return api.CloudConfig{}, environmentFault(id, "", err)
	}
	if !rec.ArchivedAt.IsZero() {
		return api.CloudConfig{}, environmentArchived(id)
	}
	config, err := EnvironmentConfig(rec)
	if err != nil {
		return api.CloudConfig{}, err
	}
	if config.Cloud == nil {
		return api.CloudConfig{}, Faultf(Invalid, "Environment %s is self_hosted: sessions on self-hosted environments are not supported yet by this server.", id)
	}
	return *config.Cloud, nil
}

// sessionAgent is the agent that a new session runs, with its overrides.
func (s *Service) sessionAgent(ctx context.Context, caller Caller, choice api.AgentChoice) (api.SessionAgent, error) {
	rec, err := s.store.Agent(ctx, caller.Workspace, choice.ID, choice.Version.Or(0))
	if err != nil {
		return api.SessionAgent{}, agentFault(choice.ID, err)
	}
	if !rec.ArchivedAt.IsZero() {
		return api.SessionAgent{}, Faultf(Invalid, "Agent %s is archived.", rec.ID)
	}
	d, err := readAgent(rec)
	if err != nil {
		return api.SessionAgent{}, err
	}
	a := api.SessionAgent{
		Type: "agent", ID: rec.ID, Version: rec.Version, Name: rec.Name, Description: d.Description,
		Model: d.Model, System: d.System, Tools: d.Tools, MCPServers: d.MCPServers,
		Skills: []api.Skill{}, ExecutionIdentity: serviceAccount,
	}
	if choice.Model.Null {
		return a, badField("agent.model", "Input should be a valid string or dictionary")
	}
	if choice.Model.Given() {
		if a.Model, err = resolveModel("agent.model", choice.Model.Value); err != nil {
			return a, err
		}
	}
	clearable(&a.System, choice.System)
	return a, overrideTools(&a, choice.Tools, choice.MCPServers)
}

// overrideTools replaces a session's tools and MCP servers by those given.
func overrideTools(a *api.SessionAgent, tools api.Opt[[]api.ToolParams], servers api.Opt[[]api.MCPServerParams]) (err error) {
	switch {
	case tools.Null:
		return badField("agent.tools", "Input should be a valid list")
	case servers.Null:
		return badField("agent.mcp_servers", "Input should be a valid list")
	}
	if tools.Set {
		if a.Tools, err = resolveTools("agent.tools", tools.Value); err != nil {
			return err
		}
	}
	if servers.Set {
		if a.MCPServers, err = resolveServers("agent.mcp_servers", servers.Value); err != nil {
			return err
		}
	}
	return checkToolReferences("agent.", a.Tools, a.MCPServers)
}

// Session returns a session, archived or not.
func (s *Service) Session(ctx context.Context, caller Caller, id string) (api.Session, error) {
	rec, err := s.store.Session(ctx, caller.Workspace, id)
	if err != nil {
		return api.Session{}, sessionFault(id, err)
	}
	return sessionReply(rec)
}

// UpdateSession changes a session that is not archived; its agent's tools only
// while it does not run.
func (s *Service) UpdateSession(ctx context.Context, caller Caller, id string, req api.SessionUpdate) (api.Session, error) {
	switch {
	case req.VaultIDs.Given():
		return api.Session{}, unsupported("vault_ids")
	case req.Budget.Given():
		return api.Session{}, unsupported("budget")
	case req.Agent.Null:
		return api.Session{}, badField("agent", "Input should be a valid dictionary")
	}
	if err := checkOptional("title", req.Title, 1, 500); err != nil {
		return api.Session{}, err
	}
	rec, err := s.store.UpdateSession(ctx, caller.Workspace, id, func(rec *SessionRecord) (bool, error) {
		return s.patchSession(rec, req)
	})
	if err != nil {
		return api.Session{}, sessionFault(id, err)
	}
	return sessionReply(rec)
}

func (s *Service) patchSession(rec *SessionRecord, req api.SessionUpdate) (altered bool, err error) {
	if !rec.ArchivedAt.IsZero() {
		return false, Faultf(Invalid, "Session %s is archived.", rec.ID)
	}
	d, err := readSession(*rec)
	if err != nil {
		return false, err
	}
	if req.Title.Set {
		d.Title = orNull(req.Title)
	}
	if req.Metadata.Given() {
		d.Metadata = mergeMetadata(d.Metadata, req.Metadata.Value, false)
		if err := checkMetadata(d.Metadata); err != nil {
			return false, err
		}
	}
	if req.Agent.Set {
		if rec.Status == api.SessionRunning {
			return false, Faultf(Invalid, "Cannot update the agent of a session while it is running. Send an interrupt event or wait for the session to complete.")
		}
		if err := overrideTools(&d.Agent, req.Agent.Value.Tools, req.Agent.Value.MCPServers); err != nil {
			return false, err
		}
		if err := checkServersReachable(rec.Environment, d.Environment.Networking, d.Agent.MCPServers); err != nil {
			return false, err
		}
	}
	before := rec.Document
	if err := d.set(rec); err != nil {
		return false, err
	}
	if bytes.Equal(before, rec.Document) {
		return false, nil
	}
	rec.UpdatedAt = s.clock()
	return true, nil
}

// ArchiveSession ends a session that does not run: its sandbox goes, its record
// stays. Repeating it changes nothing.
func (s *Service) ArchiveSession(ctx context.Context, caller Caller, id string) (api.Session, error) {
	rec, err := s.store.UpdateSession(ctx, caller.Workspace, id, func(rec *SessionRecord) (bool, error) {
		if !rec.ArchivedAt.IsZero() {
			return false, nil
		}
		if rec.Status == api.SessionRunning {
			return false, whileRunning("archive")
		}
		rec.Status = api.SessionTerminated
		rec.ArchivedAt = s.clock()
		rec.UpdatedAt = rec.ArchivedAt
		return true, nil
	})
	if err != nil {
		return api.Session{}, sessionFault(id, err)
	}
	if s.runtime != nil {
		// The archive is durable, so the caller hears of it; what is left of
		// the sandbox goes at the next attempt or reconciliation.
		if err := s.runtime.SessionEnded(context.WithoutCancel(ctx), rec); err != nil {
			s.log.ErrorContext(ctx, "ending the sandbox of an archived session", "session_id", rec.ID, "error", err)
		}
	}
	return sessionReply(rec)
}

func whileRunning(verb string) error {
	return Faultf(Invalid, "Cannot %s session while it is running. Send an interrupt event or wait for the session to complete.", verb)
}

// DeleteSession removes a session that does not run, and all it had.
func (s *Service) DeleteSession(ctx context.Context, caller Caller, id string) (api.Deleted, error) {
	rec, err := s.store.Session(ctx, caller.Workspace, id)
	if err != nil {
		return api.Deleted{}, sessionFault(id, err)
	}
	if rec.Status == api.SessionRunning {
		return api.Deleted{}, whileRunning("delete")
	}
	if s.runtime != nil {
		if err := s.runtime.SessionEnded(context.WithoutCancel(ctx), rec); err != nil {
			return api.Deleted{}, err
		}
	}
	if err := s.store.DeleteSession(ctx, caller.Workspace, id); err != nil {
		return api.Deleted{}, sessionFault(id, err)
	}
	if s.runtime != nil {
		// A command may have asked for a sandbox while the record was still there.
		if err := s.runtime.SessionEnded(context.WithoutCancel(ctx), rec); err != nil {
			s.log.ErrorContext(ctx, "ending the sandbox of a deleted session", "session_id", rec.ID, "error", err)
		}
	}
	return api.Deleted{ID: id, Type: "session_deleted"}, nil
}

// SessionQuery asks for a page of sessions.
type SessionQuery struct {
	Limit                                        api.Opt[int] // 1–1000, 20 when absent
	Page                                         string
	Order                                        string // asc or desc; empty is desc
	IncludeArchived                              bool
	Agent                                        string
	AgentVersion                                 api.Opt[int]
	Deployment, MemoryStore                      string // no session has one: a value matches nothing
	Statuses                                     []string
	CreatedGT, CreatedGTE, CreatedLT, CreatedLTE time.Time
}

func (q SessionQuery) filter() (SessionFilter, error) {
	f := SessionFilter{
		Agent: q.Agent, AgentVersion: q.AgentVersion.Or(0), Statuses: q.Statuses, IncludeArchived: q.IncludeArchived,
		CreatedGT: q.CreatedGT, CreatedGTE: q.CreatedGTE, CreatedLT: q.CreatedLT, CreatedLTE: q.CreatedLTE,
	}
	if err := checkVersion("agent_version", q.AgentVersion); err != nil {
		return f, err
	}
	if q.AgentVersion.Set && q.Agent == "" {
		return f, badField("agent_version", "agent_id is required with it")
	}
	if q.Order != "" && q.Order != "asc" && q.Order != "desc" {
		return f, badField("order", "Input should be 'asc' or 'desc'")
	}
	known := []string{api.SessionRescheduling, api.SessionRunning, api.SessionIdle, api.SessionTerminated}
	for i, status := range q.Statuses {
		if !slices.Contains(known, status) {
			return f, Faultf(Invalid, "statuses[%d]: Input should be 'rescheduling', 'running', 'idle' or 'terminated'", i)
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
		reply, err := sessionReply(rec)
		if err != nil {
			return list, err
		}
		list.Data = append(list.Data, reply)
	}
	if len(recs) == 0 {
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

// sessionFault translates a Store's errors.
func sessionFault(id string, err error) error {
	if errors.Is(err, ErrNoRecord) {
		return &Fault{Kind: NotFound, Message: "Session " + printable(id) + " not found.", Cause: err}
	}
	return err
}
