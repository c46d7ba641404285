package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atoll-run/atoll/api"
)

// sessionReply is a session as clients see it at this time.
func (s *Service) sessionReply(rec SessionRecord) (api.Session, error) {
	d, err := readSession(rec)
	if err != nil {
		return api.Session{}, err
	}
	now := s.clock()
	return api.Session{
		Stats: api.SessionStats{DurationSeconds: d.duration(rec, now), ActiveSeconds: d.Totals.active(now)}, Usage: d.usage(now),
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
	d.Thread = s.ids.make("sthr_", now)
	rec := SessionRecord{
		ID: s.ids.make("sesn_", now), Workspace: caller.Workspace, Environment: req.EnvironmentID,
		Agent: agent.ID, AgentVersion: agent.Version, Status: api.SessionIdle, CreatedAt: now, UpdatedAt: now,
	}
	if err := d.set(&rec); err != nil {
		return api.Session{}, err
	}
	initial, err := s.initialEvents(req.InitialEvents.Value, now)
	if err != nil {
		return api.Session{}, err
	}
	switch err := s.store.CreateSession(ctx, rec, initial...); {
	case errors.Is(err, ErrStale):
		return api.Session{}, environmentArchived(req.EnvironmentID)
	case errors.Is(err, ErrLimit):
		return api.Session{}, &Fault{Kind: RateLimited, Code: "workspace_sessions_limit", Cause: err,
			Message: "This workspace has as many sessions as it may have. Archive or delete one first."}
	case err != nil:
		return api.Session{}, environmentFault(req.EnvironmentID, "", err)
	}
	if s.runtime != nil {
		s.runtime.SessionCreated(rec)
	}
	if len(initial) > 0 {
		// Whoever reads the session after this finds it running. If the change fails,
		// the loop makes it when it takes the first event.
		if running, _, err := s.turns.change(ctx, caller.Workspace, rec.ID, s.beginInitial); err == nil {
			rec = running
		}
		s.loop.Wake(rec)
	}
	return s.sessionReply(rec)
}

// beginInitial begins the turn of a new session's initial events.
func (s *Service) beginInitial(state LogState, _ time.Time) (change LogChange, err error) {
	change.Log, err = s.statusEvents(state.Session, api.EventSessionRunning, api.EventThreadRunning)
	return change, err
}

// initialEvents are the events that a session begins with, as they wait in its
// queue.
func (s *Service) initialEvents(params []api.InitialEventParams, now time.Time) (events []EventRecord, err error) {
	if len(params) > 0 && s.loop == nil {
		return nil, noLoop()
	}
	for _, p := range params {
		e := EventRecord{ID: s.turns.EventID(), Type: p.Type, CreatedAt: now}
		if e.Fields, err = p.Fields(); err != nil {
			return nil, fmt.Errorf("writing the fields of an event: %w", err)
		}
		events = append(events, e)
	}
	return events, nil
}

func checkSessionCreate(req api.SessionCreate) error {
	switch {
	case len(req.Resources.Value) > 0:
		return unsupported("resources")
	case len(req.VaultIDs.Value) > 0:
		return unsupported("vault_ids")
	case len(req.InitialEvents.Value) > api.MaxInitialEvents:
		return badField("initial_events", "List should have at most %d items", api.MaxInitialEvents)
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
	rec, err := s.agentVersion(ctx, caller, choice.ID, choice.Version)
	if err != nil {
		return api.SessionAgent{}, err
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
	return s.sessionReply(rec)
}

// sessionFault translates a Store's errors.
func sessionFault(id string, err error) error {
	if errors.Is(err, ErrNoRecord) {
		return &Fault{Kind: NotFound, Message: "Session " + printable(id) + " not found.", Cause: err}
	}
	return err
}
