package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/atoll-run/atoll/api"
)

// agentDocument is what a version's record holds beside its columns.
type agentDocument struct {
	Description *string           `json:"description"`
	Model       api.Model         `json:"model"`
	System      *string           `json:"system"`
	Tools       []api.Tool        `json:"tools"`
	MCPServers  []api.MCPServer   `json:"mcp_servers"`
	Metadata    map[string]string `json:"metadata"`
}

func readAgent(rec AgentRecord) (agentDocument, error) {
	var d agentDocument
	if err := json.Unmarshal(rec.Document, &d); err != nil {
		return d, fmt.Errorf("reading the document of %s: %w", rec.ID, err)
	}
	return d, nil
}

// set checks what the parts of an agent must be together and writes them.
func (d agentDocument) set(rec *AgentRecord) error {
	if err := checkMetadata(d.Metadata); err != nil {
		return err
	}
	if err := checkToolReferences("", d.Tools, d.MCPServers); err != nil {
		return err
	}
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("writing an agent's document: %w", err)
	}
	rec.Document = text
	return nil
}

// serviceAccount is the only execution identity there is.
var serviceAccount = api.ExecutionIdentity{Type: "service_account"}

func agentReply(rec AgentRecord) (api.Agent, error) {
	d, err := readAgent(rec)
	if err != nil {
		return api.Agent{}, err
	}
	return api.Agent{
		Type: "agent", ID: rec.ID, Version: rec.Version, Name: rec.Name, Description: d.Description,
		Model: d.Model, System: d.System, Tools: d.Tools, MCPServers: d.MCPServers, Skills: []api.Skill{},
		Metadata: d.Metadata, ExecutionIdentity: serviceAccount,
		CreatedAt: api.Time{Time: rec.CreatedAt}, UpdatedAt: api.Time{Time: rec.UpdatedAt},
		ArchivedAt: api.NullTime(rec.ArchivedAt),
	}, nil
}

// CreateAgent makes version 1 of an agent.
func (s *Service) CreateAgent(ctx context.Context, caller Caller, req api.AgentCreate) (api.Agent, error) {
	err := errors.Join(
		checkLength("name", req.Name, 1, 256),
		checkOptional("description", req.Description, 0, 2048),
		checkOptional("system", req.System, 0, 100_000),
		checkUnsupported(req.Skills, req.Multiagent, req.ExecutionIdentity))
	if err != nil {
		return api.Agent{}, first(err)
	}
	d := agentDocument{Description: orNull(req.Description), System: orNull(req.System), Metadata: req.Metadata.Or(nil)}
	if d.Metadata == nil {
		d.Metadata = map[string]string{}
	}
	if d.Model, err = resolveModel("model", req.Model); err != nil {
		return api.Agent{}, err
	}
	if d.Tools, err = resolveTools("tools", req.Tools.Or(nil)); err != nil {
		return api.Agent{}, err
	}
	if d.MCPServers, err = resolveServers("mcp_servers", req.MCPServers.Or(nil)); err != nil {
		return api.Agent{}, err
	}
	now := s.clock()
	rec := AgentRecord{
		ID: s.ids.make("agent_", now), Workspace: caller.Workspace, Name: req.Name, Version: 1,
		CreatedAt: now, UpdatedAt: now,
	}
	if err := d.set(&rec); err != nil {
		return api.Agent{}, err
	}
	if err := s.store.CreateAgent(ctx, rec); err != nil {
		return api.Agent{}, err
	}
	return agentReply(rec)
}

// Agent returns a version of an agent, the newest when version is absent.
func (s *Service) Agent(ctx context.Context, caller Caller, id string, version api.Opt[int]) (api.Agent, error) {
	if err := checkVersion("version", version); err != nil {
		return api.Agent{}, err
	}
	rec, err := s.agentVersion(ctx, caller, id, version)
	if err != nil {
		return api.Agent{}, err
	}
	return agentReply(rec)
}

// agentVersion reads a version of an agent, the newest when version is absent.
func (s *Service) agentVersion(ctx context.Context, caller Caller, id string, version api.Opt[int]) (AgentRecord, error) {
	rec, err := s.store.Agent(ctx, caller.Workspace, id, version.Or(0))
	if errors.Is(err, ErrNoRecord) && version.Given() {
		// The agent may be there without that version.
		if _, newest := s.store.Agent(ctx, caller.Workspace, id, 0); newest == nil {
			return rec, &Fault{Kind: NotFound, Message: fmt.Sprintf("Agent %s has no version %d.", printable(id), version.Value), Cause: err}
		}
	}
	return rec, agentFault(id, err)
}

// UpdateAgent publishes a new version, unless the request changes nothing. A
// version in the request must be the newest one.
func (s *Service) UpdateAgent(ctx context.Context, caller Caller, id string, req api.AgentUpdate) (api.Agent, error) {
	if req.Name.Null {
		return api.Agent{}, badField("name", "Input should be a valid string")
	}
	if req.Model.Null {
		return api.Agent{}, badField("model", "Input should be a valid string or dictionary")
	}
	err := errors.Join(
		checkVersion("version", req.Version),
		checkOptional("name", req.Name, 1, 256),
		checkOptional("description", req.Description, 0, 2048),
		checkOptional("system", req.System, 0, 100_000),
		checkUnsupported(req.Skills, req.Multiagent, req.ExecutionIdentity))
	if err != nil {
		return api.Agent{}, first(err)
	}
	rec, err := s.store.UpdateAgent(ctx, caller.Workspace, id, func(rec *AgentRecord) (bool, error) {
		return s.patchAgent(rec, req)
	})
	if err != nil {
		return api.Agent{}, agentFault(id, err)
	}
	return agentReply(rec)
}

func (s *Service) patchAgent(rec *AgentRecord, req api.AgentUpdate) (altered bool, err error) {
	if !rec.ArchivedAt.IsZero() {
		return false, Faultf(Invalid, "Agent %s is archived.", rec.ID)
	}
	if req.Version.Set && req.Version.Value != rec.Version {
		return false, Faultf(Conflict, "Agent %s is at version %d, not %d.", rec.ID, rec.Version, req.Version.Value)
	}
	d, err := readAgent(*rec)
	if err != nil {
		return false, err
	}
	before, name := rec.Document, rec.Name
	rec.Name = req.Name.Or(rec.Name)
	clearable(&d.Description, req.Description)
	clearable(&d.System, req.System)
	if req.Metadata.Given() {
		d.Metadata = mergeMetadata(d.Metadata, req.Metadata.Value, false)
	}
	if req.Model.Given() {
		if d.Model, err = resolveModel("model", req.Model.Value); err != nil {
			return false, err
		}
	}
	if req.Tools.Set {
		if d.Tools, err = resolveTools("tools", req.Tools.Or(nil)); err != nil {
			return false, err
		}
	}
	if req.MCPServers.Set {
		if d.MCPServers, err = resolveServers("mcp_servers", req.MCPServers.Or(nil)); err != nil {
			return false, err
		}
	}
	if err := d.set(rec); err != nil {
		return false, err
	}
	if rec.Name == name && bytes.Equal(rec.Document, before) {
		return false, nil
	}
	rec.UpdatedAt = s.clock()
	return true, nil
}

// clearable sets a text that null and "" clear.
func clearable(stored **string, given api.Opt[string]) {
	if !given.Set {
		return
	}
	if *stored = orNull(given); *stored != nil && **stored == "" {
		*stored = nil
	}
}

// checkUnsupported refuses what this server has no machinery for.
func checkUnsupported(skills api.Opt[[]json.RawMessage], multiagent api.Opt[json.RawMessage], identity api.Opt[api.ExecutionIdentityParams]) error {
	switch {
	case len(skills.Value) > 0:
		return unsupported("skills")
	case multiagent.Given():
		return unsupported("multiagent")
	case identity.Given() && identity.Value.Type != serviceAccount.Type:
		return badField("execution_identity.type", "'%s' is not supported yet by this server; use 'service_account'", identity.Value.Type)
	}
	return nil
}

// ArchiveAgent makes an agent read-only: no new versions and sessions. Repeating
// it changes nothing.
func (s *Service) ArchiveAgent(ctx context.Context, caller Caller, id string) (api.Agent, error) {
	rec, err := s.store.ArchiveAgent(ctx, caller.Workspace, id, s.clock())
	if err != nil {
		return api.Agent{}, agentFault(id, err)
	}
	return agentReply(rec)
}

// AgentQuery asks for a page of agents.
type AgentQuery struct {
	Limit api.Opt[int] // 1–100, 20 when absent
	// Page is the cursor of an earlier page; empty for the first.
	Page string
	// CreatedGTE and CreatedLTE bound the agents' creation, inclusively; zero does not.
	CreatedGTE, CreatedLTE time.Time
	// IncludeArchived lists archived agents too.
	IncludeArchived bool
}

// ListAgents lists the newest versions of agents, newest agent first.
func (s *Service) ListAgents(ctx context.Context, caller Caller, q AgentQuery) (api.List[api.Agent], error) {
	list := api.List[api.Agent]{Data: []api.Agent{}}
	limit, err := pageLimit(q.Limit, 100)
	if err != nil {
		return list, err
	}
	filter := AgentFilter{CreatedGTE: q.CreatedGTE, CreatedLTE: q.CreatedLTE, IncludeArchived: q.IncludeArchived}
	scope := cursorScope("agents", caller, filter)
	from, err := readCursor(q.Page, scope)
	if err != nil {
		return list, err
	}
	recs, more, err := s.store.ListAgents(ctx, caller.Workspace, filter, from.page(limit, false))
	if err != nil {
		return list, err
	}
	if list.Data, err = agentReplies(recs); err != nil {
		return list, err
	}
	if more && len(recs) > 0 {
		last := recs[len(recs)-1]
		list.NextPage = at(scope, last.CreatedAt, last.ID, false)
	}
	return list, nil
}

// ListAgentVersions lists the versions of an agent, newest first.
func (s *Service) ListAgentVersions(ctx context.Context, caller Caller, id string, limit api.Opt[int], page string) (api.List[api.Agent], error) {
	list := api.List[api.Agent]{Data: []api.Agent{}}
	n, err := pageLimit(limit, 100)
	if err != nil {
		return list, err
	}
	scope := cursorScope("agent_versions", caller, id)
	from, err := readCursor(page, scope)
	if err != nil {
		return list, err
	}
	recs, more, err := s.store.ListAgentVersions(ctx, caller.Workspace, id, from.Version, n)
	if err != nil {
		return list, agentFault(id, err)
	}
	if list.Data, err = agentReplies(recs); err != nil {
		return list, err
	}
	if more && len(recs) > 0 {
		next := cursor{Scope: scope, Version: recs[len(recs)-1].Version}.String()
		list.NextPage = &next
	}
	return list, nil
}

func agentReplies(recs []AgentRecord) ([]api.Agent, error) {
	replies := []api.Agent{}
	for _, rec := range recs {
		reply, err := agentReply(rec)
		if err != nil {
			return nil, err
		}
		replies = append(replies, reply)
	}
	return replies, nil
}

// agentFault translates a Store's errors.
func agentFault(id string, err error) error {
	if errors.Is(err, ErrNoRecord) {
		return &Fault{Kind: NotFound, Message: "Agent " + printable(id) + " not found.", Cause: err}
	}
	return err
}
