package api

import "encoding/json"

// AgentCreate is the body of a create.
type AgentCreate struct {
	Name              string                       `json:"name" api:"required"`
	Model             ModelParams                  `json:"model" api:"required"`
	Description       Opt[string]                  `json:"description,omitzero"`
	System            Opt[string]                  `json:"system,omitzero"`
	Tools             Opt[[]ToolParams]            `json:"tools,omitzero"`
	MCPServers        Opt[[]MCPServerParams]       `json:"mcp_servers,omitzero"`
	Skills            Opt[[]json.RawMessage]       `json:"skills,omitzero"`
	Metadata          Opt[map[string]string]       `json:"metadata,omitzero"`
	Multiagent        Opt[json.RawMessage]         `json:"multiagent,omitzero"`
	ExecutionIdentity Opt[ExecutionIdentityParams] `json:"execution_identity,omitzero"`
}

// AgentUpdate is the body of an update. Absent fields keep what is stored.
type AgentUpdate struct {
	Version           Opt[int]                     `json:"version,omitzero"`
	Name              Opt[string]                  `json:"name,omitzero"`
	Model             Opt[ModelParams]             `json:"model,omitzero"`
	Description       Opt[string]                  `json:"description,omitzero"`
	System            Opt[string]                  `json:"system,omitzero"`
	Tools             Opt[[]ToolParams]            `json:"tools,omitzero"`
	MCPServers        Opt[[]MCPServerParams]       `json:"mcp_servers,omitzero"`
	Skills            Opt[[]json.RawMessage]       `json:"skills,omitzero"`
	Metadata          Opt[map[string]Opt[string]]  `json:"metadata,omitzero"`
	Multiagent        Opt[json.RawMessage]         `json:"multiagent,omitzero"`
	ExecutionIdentity Opt[ExecutionIdentityParams] `json:"execution_identity,omitzero"`
}

// ModelParams is a model in a request: a string, which is the id, or an object.
type ModelParams struct {
	ID           string            `json:"id" api:"required"`
	Speed        Opt[string]       `json:"speed,omitzero"`
	Effort       Opt[EffortParams] `json:"effort,omitzero"`
	InferenceGeo Opt[string]       `json:"inference_geo,omitzero"`
}

func (m *ModelParams) bind(path string, n *node) error {
	switch n.kind {
	case kindString:
		m.ID = n.text
		return nil
	case kindObject:
		if err := bindObject(path, n, m); err != nil {
			return err
		}
		if m.Speed.Given() {
			return enum(join(path, "speed"), m.Speed.Value, "standard", "fast")
		}
		return nil
	}
	return fieldErrorf(path, "Input should be a valid string or dictionary")
}

// EffortParams is an effort in a request: a string or {"type":…}.
type EffortParams struct {
	Type string `json:"type"`
}

func (e *EffortParams) bind(path string, n *node) error {
	levels := []string{"low", "medium", "high", "xhigh", "max"}
	if n.kind == kindString {
		e.Type = n.text
		return enum(path, e.Type, levels...)
	}
	if _, err := bindArm(path, n, levels...); err != nil {
		return err
	}
	return bindObject(path, n, e)
}

// ExecutionIdentityParams is an execution identity in a request. RoleARN is
// there with the type aws_role.
type ExecutionIdentityParams struct {
	Type    string      `json:"type" api:"required"`
	RoleARN Opt[string] `json:"role_arn,omitzero"`
}

func (e *ExecutionIdentityParams) bind(path string, n *node) error {
	arm, err := bindArm(path, n, "service_account", "aws_role")
	if err != nil {
		return err
	}
	if arm == "service_account" {
		e.Type = arm
		return bindObject(path, n, &typeOnly{})
	}
	return bindObject(path, n, e)
}

// MCPServerParams is an MCP server in a request.
type MCPServerParams struct {
	Type string `json:"type" api:"required"`
	Name string `json:"name" api:"required"`
	URL  string `json:"url" api:"required"`
}

func (s *MCPServerParams) bind(path string, n *node) error {
	if _, err := bindArm(path, n, "url"); err != nil {
		return err
	}
	return bindObject(path, n, s)
}

// ToolParams is a tool in a request: exactly one member is set.
type ToolParams struct {
	Agent  *AgentToolsetParams
	MCP    *MCPToolsetParams
	Custom *CustomToolParams
}

// MarshalJSON writes the member that is set.
func (t ToolParams) MarshalJSON() ([]byte, error) {
	switch {
	case t.Agent != nil:
		return json.Marshal(t.Agent)
	case t.MCP != nil:
		return json.Marshal(t.MCP)
	}
	return json.Marshal(t.Custom)
}

func (t *ToolParams) bind(path string, n *node) error {
	arm, err := bindArm(path, n, ToolsetAgent, ToolsetMCP, ToolCustom)
	if err != nil {
		return err
	}
	switch arm {
	case ToolsetAgent:
		t.Agent = &AgentToolsetParams{}
		return bindObject(path, n, t.Agent)
	case ToolsetMCP:
		t.MCP = &MCPToolsetParams{}
		return bindObject(path, n, t.MCP)
	}
	t.Custom = &CustomToolParams{}
	if err := bindObject(path, n, t.Custom); err != nil {
		return err
	}
	return checkInputSchema(join(path, "input_schema"), n.field("input_schema"))
}

// AgentToolsetParams turns the built-in tools on.
type AgentToolsetParams struct {
	Type          string                 `json:"type" api:"required"`
	DefaultConfig Opt[ToolDefaultParams] `json:"default_config,omitzero"`
	Configs       Opt[[]BuiltinParams]   `json:"configs,omitzero"`
}

// MCPToolsetParams turns the tools of an MCP server on.
type MCPToolsetParams struct {
	Type          string                 `json:"type" api:"required"`
	MCPServerName string                 `json:"mcp_server_name" api:"required"`
	DefaultConfig Opt[ToolDefaultParams] `json:"default_config,omitzero"`
	Configs       Opt[[]MCPToolParams]   `json:"configs,omitzero"`
}

// ToolDefaultParams holds for the tools of a set that no config names.
type ToolDefaultParams struct {
	Enabled          Opt[bool]         `json:"enabled,omitzero"`
	PermissionPolicy Opt[PolicyParams] `json:"permission_policy,omitzero"`
}

// PolicyParams is a permission policy in a request.
type PolicyParams struct {
	Type string `json:"type" api:"required"`
}

func (p *PolicyParams) bind(path string, n *node) error {
	if _, err := bindArm(path, n, "always_allow", "always_ask", "auto"); err != nil {
		return err
	}
	return bindObject(path, n, p)
}

// MCPToolParams configures one tool of an MCP server.
type MCPToolParams struct {
	Name             string            `json:"name" api:"required"`
	Enabled          Opt[bool]         `json:"enabled,omitzero"`
	PermissionPolicy Opt[PolicyParams] `json:"permission_policy,omitzero"`
}

// BuiltinParams configures one built-in tool. The members after
// PermissionPolicy are accepted on the tools that have them only.
type BuiltinParams struct {
	Type             string               `json:"type,omitempty"`
	Name             string               `json:"name" api:"required"`
	Enabled          Opt[bool]            `json:"enabled,omitzero"`
	PermissionPolicy Opt[PolicyParams]    `json:"permission_policy,omitzero"`
	AllowedDomains   Opt[[]string]        `json:"allowed_domains,omitzero"`
	BlockedDomains   Opt[[]string]        `json:"blocked_domains,omitzero"`
	MaxContentTokens Opt[int]             `json:"max_content_tokens,omitzero"`
	URLSources       Opt[json.RawMessage] `json:"url_sources,omitzero"`
	UserLocation     Opt[LocationParams]  `json:"user_location,omitzero"`
}

func (p *BuiltinParams) bind(path string, n *node) error {
	if n.kind != kindObject {
		return fieldErrorf(path, "Input should be a valid dictionary")
	}
	if err := bindObject(path, n, p); err != nil {
		return err
	}
	if err := enum(join(path, "name"), p.Name, BuiltinTools[:]...); err != nil {
		return err
	}
	if n.field("type") != nil {
		if err := enum(join(path, "type"), p.Type, p.Name); err != nil {
			return err
		}
	}
	foreign := map[string]bool{
		"allowed_domains":    p.Name != ToolWebFetch && p.Name != ToolWebSearch,
		"blocked_domains":    p.Name != ToolWebFetch && p.Name != ToolWebSearch,
		"max_content_tokens": p.Name != ToolWebFetch,
		"url_sources":        p.Name != ToolWebFetch,
		"user_location":      p.Name != ToolWebSearch,
	}
	for _, f := range n.fields {
		if foreign[f.name] {
			return fieldErrorf(join(path, f.name), "Extra inputs are not permitted")
		}
	}
	return nil
}

// LocationParams is a user's location in a request.
type LocationParams struct {
	Type     string      `json:"type" api:"required"`
	City     Opt[string] `json:"city,omitzero"`
	Region   Opt[string] `json:"region,omitzero"`
	Country  Opt[string] `json:"country,omitzero"`
	Timezone Opt[string] `json:"timezone,omitzero"`
}

func (l *LocationParams) bind(path string, n *node) error {
	if _, err := bindArm(path, n, "approximate"); err != nil {
		return err
	}
	return bindObject(path, n, l)
}

// CustomToolParams is a custom tool in a request.
type CustomToolParams struct {
	Type        string          `json:"type" api:"required"`
	Name        string          `json:"name" api:"required"`
	Description string          `json:"description" api:"required"`
	InputSchema json.RawMessage `json:"input_schema" api:"required"`
}

// checkInputSchema holds what the API says of a tool's schema; the rest of it
// is between the tool's author and the model.
func checkInputSchema(path string, schema *node) error {
	if _, err := bindArm(path, schema, "object"); err != nil {
		return err
	}
	if p := schema.field("properties"); p != nil && p.kind != kindNull && p.kind != kindObject {
		return fieldErrorf(join(path, "properties"), "Input should be a valid dictionary")
	}
	if r := schema.field("required"); r != nil && r.kind != kindNull {
		var names []string
		return bindValue(join(path, "required"), r, &names)
	}
	return nil
}
