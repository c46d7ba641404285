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
	Type               string            `json:"type"` // "session"
	ID                 string            `json:"id"`
	Status             string            `json:"status"`
	Agent              SessionAgent      `json:"agent"`
	EnvironmentID      string            `json:"environment_id"`
	Title              *string           `json:"title"`
	Metadata           map[string]string `json:"metadata"`
	Resources          []struct{}        `json:"resources"` // always empty until resources are supported
	VaultIDs           []string          `json:"vault_ids"`
	Stats              SessionStats      `json:"stats"`
	Usage              SessionUsage      `json:"usage"`
	OutcomeEvaluations []struct{}        `json:"outcome_evaluations"`
	Budget             *struct{}         `json:"budget"`
	ArchivedAt         *Time             `json:"archived_at"`
	CreatedAt          Time              `json:"created_at"`
	UpdatedAt          Time              `json:"updated_at"`
}

// SessionAgent is the agent as it was when the session was made, with the
// session's overrides.
type SessionAgent struct {
	Type              string            `json:"type"` // "agent"
	ID                string            `json:"id"`
	Version           int               `json:"version"`
	Name              string            `json:"name"`
	Description       *string           `json:"description"`
	Model             Model             `json:"model"`
	System            *string           `json:"system"`
	Tools             []Tool            `json:"tools"`
	MCPServers        []MCPServer       `json:"mcp_servers"`
	Skills            []Skill           `json:"skills"`
	Multiagent        *struct{}         `json:"multiagent"`
	ExecutionIdentity ExecutionIdentity `json:"execution_identity"`
}

// SessionStats counts a session's time.
type SessionStats struct {
	DurationSeconds *float64 `json:"duration_seconds,omitempty"`
	ActiveSeconds   *float64 `json:"active_seconds,omitempty"`
}

// SessionUsage counts a session's tokens, and what else it used.
type SessionUsage struct {
	InputTokens          *int             `json:"input_tokens,omitempty"`
	OutputTokens         *int             `json:"output_tokens,omitempty"`
	CacheReadInputTokens *int             `json:"cache_read_input_tokens,omitempty"`
	CacheCreation        *CacheCreation   `json:"cache_creation,omitempty"`
	ServerToolUse        *ServerToolUsage `json:"server_tool_use,omitempty"`
	ActiveSeconds        *float64         `json:"active_seconds,omitempty"`
}

// ServerToolUsage counts the calls of tools that the server ran, whatever came
// of them.
type ServerToolUsage struct {
	WebFetchRequests  int `json:"web_fetch_requests"`
	WebSearchRequests int `json:"web_search_requests"`
}

// CacheCreation counts the tokens written to the prompt cache, by how long
// they are kept there.
type CacheCreation struct {
	Ephemeral1hInputTokens *int `json:"ephemeral_1h_input_tokens,omitempty"`
	Ephemeral5mInputTokens *int `json:"ephemeral_5m_input_tokens,omitempty"`
}

// SessionCreate is the body of a create.
type SessionCreate struct {
	Agent         AgentChoice               `json:"agent" api:"required"`
	EnvironmentID string                    `json:"environment_id" api:"required"`
	Title         Opt[string]               `json:"title,omitzero"`
	Metadata      Opt[map[string]string]    `json:"metadata,omitzero"`
	Resources     Opt[[]json.RawMessage]    `json:"resources,omitzero"`
	VaultIDs      Opt[[]string]             `json:"vault_ids,omitzero"`
	InitialEvents Opt[[]InitialEventParams] `json:"initial_events,omitzero"`
	Budget        Opt[json.RawMessage]      `json:"budget,omitzero"`
}

// AgentChoice says which agent a session runs: a string, which is the id, or
// an object of type agent or agent_with_overrides. Only the last has the
// members after Version.
type AgentChoice struct {
	Type       string                 `json:"type" api:"required"`
	ID         string                 `json:"id" api:"required"`
	Version    Opt[int]               `json:"version,omitzero"`
	Model      Opt[ModelParams]       `json:"model,omitzero"`
	System     Opt[string]            `json:"system,omitzero"`
	Tools      Opt[[]ToolParams]      `json:"tools,omitzero"`
	MCPServers Opt[[]MCPServerParams] `json:"mcp_servers,omitzero"`
	Skills     Opt[[]json.RawMessage] `json:"skills,omitzero"`
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
	Title    Opt[string]                 `json:"title,omitzero"`
	Metadata Opt[map[string]Opt[string]] `json:"metadata,omitzero"`
	Agent    Opt[SessionAgentUpdate]     `json:"agent,omitzero"`
	VaultIDs Opt[[]string]               `json:"vault_ids,omitzero"`
	Budget   Opt[json.RawMessage]        `json:"budget,omitzero"`
}

// SessionAgentUpdate replaces a session's tools or MCP servers.
type SessionAgentUpdate struct {
	Tools      Opt[[]ToolParams]      `json:"tools,omitzero"`
	MCPServers Opt[[]MCPServerParams] `json:"mcp_servers,omitzero"`
}
