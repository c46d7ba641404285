package api

import "encoding/json"

// The states of a session.
const (
	SessionIdle         = "idle"
	SessionRunning      = "running"
	SessionRescheduling = "rescheduling"
	SessionTerminated   = "terminated"
)

// Session is a run of an agent in an environment.
type Session struct {
	Type string `json:"type"` // "session"
	// ID begins with "sesn_".
	ID string `json:"id"`
	// Status is one of the Session constants.
	Status string `json:"status"`
	// Agent is the agent as it was when the session was made, with the session's overrides.
	Agent SessionAgent `json:"agent"`
	// EnvironmentID is the environment that the sandbox is made from.
	EnvironmentID string `json:"environment_id"`
	// Title has at most 500 characters; null when there is none.
	Title *string `json:"title"`
	// Metadata are the caller's own pairs, as an agent's; never null.
	Metadata  map[string]string `json:"metadata"`
	Resources []struct{}        `json:"resources"` // always empty until resources are supported
	// VaultIDs is always empty until vaults are supported; never null.
	VaultIDs []string `json:"vault_ids"`
	// Stats counts the session's time.
	Stats SessionStats `json:"stats"`
	// Usage counts what its turns took.
	Usage SessionUsage `json:"usage"`
	// OutcomeEvaluations is always empty: there are no outcomes yet; never null.
	OutcomeEvaluations []struct{} `json:"outcome_evaluations"`
	// Budget is always null: there are no budgets yet.
	Budget *struct{} `json:"budget"`
	// ArchivedAt is null while the session can be used. An archived one has no sandbox.
	ArchivedAt *Time `json:"archived_at"`
	// CreatedAt is when the session was made.
	CreatedAt Time `json:"created_at"`
	// UpdatedAt is when the session, its status or its usage last changed.
	UpdatedAt Time `json:"updated_at"`
}

// SessionAgent is the agent as it was when the session was made, with the
// session's overrides.
type SessionAgent struct {
	Type string `json:"type"` // "agent"
	// ID is the agent's.
	ID string `json:"id"`
	// Version is the agent's version that the session pinned.
	Version int `json:"version"`
	// Name is the agent's.
	Name string `json:"name"`
	// Description is the agent's; null when there is none.
	Description *string `json:"description"`
	// Model is the agent's, or the session's override.
	Model Model `json:"model"`
	// System is the agent's, or the session's override; null when there is none.
	System *string `json:"system"`
	// Tools are the agent's, or the session's override; never null.
	Tools []Tool `json:"tools"`
	// MCPServers are the agent's, or the session's override; never null.
	MCPServers []MCPServer `json:"mcp_servers"`
	// Skills is always empty until skills are supported; never null.
	Skills []Skill `json:"skills"`
	// Multiagent is always null until there are several agents.
	Multiagent *struct{} `json:"multiagent"`
	// ExecutionIdentity is the agent's.
	ExecutionIdentity ExecutionIdentity `json:"execution_identity"`
}

// SessionStats counts a session's time.
type SessionStats struct {
	// DurationSeconds is the time from the session's start to its end, or to now.
	DurationSeconds *float64 `json:"duration_seconds,omitempty"`
	// ActiveSeconds is the time in which its status was running.
	ActiveSeconds *float64 `json:"active_seconds,omitempty"`
}

// SessionUsage counts a session's tokens, and what else it used.
type SessionUsage struct {
	// InputTokens counts what the model read beside the prompt cache; nil before the first request.
	InputTokens *int `json:"input_tokens,omitempty"`
	// OutputTokens counts what the model wrote; nil before the first request.
	OutputTokens *int `json:"output_tokens,omitempty"`
	// CacheReadInputTokens counts what the model read from the prompt cache; nil before the first
	// request.
	CacheReadInputTokens *int `json:"cache_read_input_tokens,omitempty"`
	// CacheCreation counts what was written to the prompt cache; nil before the first request.
	CacheCreation *CacheCreation `json:"cache_creation,omitempty"`
	// ServerToolUse counts calls of web_fetch and web_search; nil when there was none.
	ServerToolUse *ServerToolUsage `json:"server_tool_use,omitempty"`
	// ActiveSeconds is the time in which the session's status was running.
	ActiveSeconds *float64 `json:"active_seconds,omitempty"`
}

// ServerToolUsage counts the calls of tools that the server ran, whatever came
// of them.
type ServerToolUsage struct {
	// WebFetchRequests counts the calls of web_fetch.
	WebFetchRequests int `json:"web_fetch_requests"`
	// WebSearchRequests counts the calls of web_search.
	WebSearchRequests int `json:"web_search_requests"`
}

// CacheCreation counts the tokens written to the prompt cache, by how long
// they are kept there.
type CacheCreation struct {
	// Ephemeral1hInputTokens are kept for an hour.
	Ephemeral1hInputTokens *int `json:"ephemeral_1h_input_tokens,omitempty"`
	// Ephemeral5mInputTokens are kept for five minutes.
	Ephemeral5mInputTokens *int `json:"ephemeral_5m_input_tokens,omitempty"`
}

// SessionCreate is the body of a create.
type SessionCreate struct {
	// Agent is what the session runs.
	Agent AgentChoice `json:"agent" api:"required"`
	// EnvironmentID is an environment of the workspace that is not archived.
	EnvironmentID string `json:"environment_id" api:"required"`
	// Title has at most 500 characters; absent or null means none.
	Title Opt[string] `json:"title,omitzero"`
	// Metadata are at most 16 pairs; absent means none.
	Metadata Opt[map[string]string] `json:"metadata,omitzero"`
	// Resources must be absent or empty until resources are supported.
	Resources Opt[[]json.RawMessage] `json:"resources,omitzero"`
	// VaultIDs must be absent or empty until vaults are supported.
	VaultIDs Opt[[]string] `json:"vault_ids,omitzero"`
	// InitialEvents are at most MaxInitialEvents; the session begins to run with them.
	InitialEvents Opt[[]InitialEventParams] `json:"initial_events,omitzero"`
	// Budget must be absent or null until budgets are supported.
	Budget Opt[json.RawMessage] `json:"budget,omitzero"`
}

// AgentChoice says which agent a session runs: a string, which is the id, or
// an object of type agent or agent_with_overrides. Only the last has the
// members after Version.
type AgentChoice struct {
	// Type is ChoiceAgent or ChoiceOverrides.
	Type string `json:"type" api:"required"`
	// ID is the agent's.
	ID string `json:"id" api:"required"`
	// Version is the newest when absent.
	Version Opt[int] `json:"version,omitzero"`
	// Model overrides the agent's for this session.
	Model Opt[ModelParams] `json:"model,omitzero"`
	// System overrides the agent's for this session; null means none.
	System Opt[string] `json:"system,omitzero"`
	// Tools override all of the agent's for this session.
	Tools Opt[[]ToolParams] `json:"tools,omitzero"`
	// MCPServers override all of the agent's for this session.
	MCPServers Opt[[]MCPServerParams] `json:"mcp_servers,omitzero"`
	// Skills must be absent or empty until skills are supported.
	Skills Opt[[]json.RawMessage] `json:"skills,omitzero"`
}

// The types of an AgentChoice.
const (
	ChoiceAgent     = "agent"
	ChoiceOverrides = "agent_with_overrides"
)

func (a *AgentChoice) bind(path string, n *node) error {
	if n.kind == kindString {
		a.Type, a.ID = ChoiceAgent, n.text
		return nil
	}
	if n.kind != kindObject {
		return fieldErrorf(path, "Input should be a valid string or dictionary")
	}
	arm, err := bindArm(path, n, ChoiceAgent, ChoiceOverrides)
	if err != nil {
		return err
	}
	if arm == ChoiceOverrides {
		return bindObject(path, n, a)
	}
	var plain struct {
		Type    string   `json:"type" api:"required"`
		ID      string   `json:"id" api:"required"`
		Version Opt[int] `json:"version,omitzero"`
	}
	err = bindObject(path, n, &plain)
	a.Type, a.ID, a.Version = plain.Type, plain.ID, plain.Version
	return err
}

// SessionUpdate is the body of an update. Absent fields keep what is stored.
type SessionUpdate struct {
	// Title replaces the title with one of 1 to 500 characters; null clears it.
	Title Opt[string] `json:"title,omitzero"`
	// Metadata is a patch: a string sets a key, null deletes it, keys that are not named stay.
	Metadata Opt[map[string]Opt[string]] `json:"metadata,omitzero"`
	// Agent changes tools or MCP servers; turns that begin later see it.
	Agent Opt[SessionAgentUpdate] `json:"agent,omitzero"`
	// VaultIDs must be absent or null until vaults are supported.
	VaultIDs Opt[[]string] `json:"vault_ids,omitzero"`
	// Budget must be absent or null until budgets are supported.
	Budget Opt[json.RawMessage] `json:"budget,omitzero"`
}

// SessionAgentUpdate replaces a session's tools or MCP servers.
type SessionAgentUpdate struct {
	// Tools replace all of the session's tools.
	Tools Opt[[]ToolParams] `json:"tools,omitzero"`
	// MCPServers replace all of the session's MCP servers.
	MCPServers Opt[[]MCPServerParams] `json:"mcp_servers,omitzero"`
}
