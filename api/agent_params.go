package api

import "encoding/json"

// AgentCreate is the body of a create.
type AgentCreate struct {
	// Name has 1 to 256 characters.
	Name string `json:"name" api:"required"`
	// Model is what the agent's turns are asked of.
	Model ModelParams `json:"model" api:"required"`
	// Description has at most 2048 characters; absent or null means none.
	Description Opt[string] `json:"description,omitzero"`
	// System is the system prompt, at most 100,000 characters; absent or null means none.
	System Opt[string] `json:"system,omitzero"`
	// Tools are at most 256; absent means none.
	Tools Opt[[]ToolParams] `json:"tools,omitzero"`
	// MCPServers are at most 20, each used by one mcp_toolset of Tools; absent means none.
	MCPServers Opt[[]MCPServerParams] `json:"mcp_servers,omitzero"`
	// Skills must be absent or empty until skills are supported.
	Skills Opt[[]json.RawMessage] `json:"skills,omitzero"`
	// Metadata are at most 16 pairs; absent means none.
	Metadata Opt[map[string]string] `json:"metadata,omitzero"`
	// Multiagent must be absent or null until it is supported.
	Multiagent Opt[json.RawMessage] `json:"multiagent,omitzero"`
	// ExecutionIdentity is service_account when absent; aws_role is refused.
	ExecutionIdentity Opt[ExecutionIdentityParams] `json:"execution_identity,omitzero"`
}

// AgentUpdate is the body of an update. Absent fields keep what is stored.
type AgentUpdate struct {
	// Version, when given, must be the newest version, or the update is refused with a conflict.
	Version Opt[int] `json:"version,omitzero"`
	// Name replaces the name; null is refused.
	Name Opt[string] `json:"name,omitzero"`
	// Model replaces the model whole; null is refused.
	Model Opt[ModelParams] `json:"model,omitzero"`
	// Description replaces the description; null or "" clears it.
	Description Opt[string] `json:"description,omitzero"`
	// System replaces the system prompt; null or "" clears it.
	System Opt[string] `json:"system,omitzero"`
	// Tools replace all tools; null clears them.
	Tools Opt[[]ToolParams] `json:"tools,omitzero"`
	// MCPServers replace all servers; null clears them.
	MCPServers Opt[[]MCPServerParams] `json:"mcp_servers,omitzero"`
	// Skills must be absent, null or empty until skills are supported.
	Skills Opt[[]json.RawMessage] `json:"skills,omitzero"`
	// Metadata is a patch: a string sets a key, null deletes it, keys that are not named stay.
	Metadata Opt[map[string]Opt[string]] `json:"metadata,omitzero"`
	// Multiagent must be absent or null until it is supported.
	Multiagent Opt[json.RawMessage] `json:"multiagent,omitzero"`
	// ExecutionIdentity replaces the identity; aws_role is refused.
	ExecutionIdentity Opt[ExecutionIdentityParams] `json:"execution_identity,omitzero"`
}

// ModelParams is a model in a request: a string, which is the id, or an object.
type ModelParams struct {
	// ID is the model's name, 1 to 256 characters. Whether the endpoint has it is not checked.
	ID string `json:"id" api:"required"`
	// Speed is standard or fast; absent or null leaves it to the endpoint.
	Speed Opt[string] `json:"speed,omitzero"`
	// Effort is absent or null when the model's own default is wanted.
	Effort Opt[EffortParams] `json:"effort,omitzero"`
	// InferenceGeo has 1 to 64 characters; absent or null means none.
	InferenceGeo Opt[string] `json:"inference_geo,omitzero"`
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
	// Type is low, medium, high, xhigh or max.
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
	// Type is service_account or aws_role.
	Type string `json:"type" api:"required"`
	// RoleARN names the role of type aws_role.
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
	// Type is "url".
	Type string `json:"type" api:"required"`
	// Name is unique in the agent, 1 to 255 characters.
	Name string `json:"name" api:"required"`
	// URL is http or https, at most 2048 characters, without credentials.
	URL string `json:"url" api:"required"`
}

func (s *MCPServerParams) bind(path string, n *node) error {
	if _, err := bindArm(path, n, "url"); err != nil {
		return err
	}
	return bindObject(path, n, s)
}

// ToolParams is a tool in a request: exactly one member is set.
type ToolParams struct {
	// Agent is of type agent_toolset_20260401.
	Agent *AgentToolsetParams
	// MCP is of type mcp_toolset.
	MCP *MCPToolsetParams
	// Custom is of type custom.
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
	// Type is ToolsetAgent.
	Type string `json:"type" api:"required"`
	// DefaultConfig holds for tools that Configs does not name; absent means the defaults of its
	// fields.
	DefaultConfig Opt[ToolDefaultParams] `json:"default_config,omitzero"`
	// Configs are tools with settings of their own, each name once; absent means none.
	Configs Opt[[]BuiltinParams] `json:"configs,omitzero"`
}

// MCPToolsetParams turns the tools of an MCP server on.
type MCPToolsetParams struct {
	// Type is ToolsetMCP.
	Type string `json:"type" api:"required"`
	// MCPServerName is the name of one of the agent's MCP servers.
	MCPServerName string `json:"mcp_server_name" api:"required"`
	// DefaultConfig holds for tools that Configs does not name; absent means the defaults of its
	// fields.
	DefaultConfig Opt[ToolDefaultParams] `json:"default_config,omitzero"`
	// Configs are tools with settings of their own, each name once; absent means none.
	Configs Opt[[]MCPToolParams] `json:"configs,omitzero"`
}

// ToolDefaultParams holds for the tools of a set that no config names.
type ToolDefaultParams struct {
	// Enabled is true when absent.
	Enabled Opt[bool] `json:"enabled,omitzero"`
	// PermissionPolicy, when absent, is always_allow in the agent toolset and always_ask in an
	// mcp_toolset.
	PermissionPolicy Opt[PolicyParams] `json:"permission_policy,omitzero"`
}

// PolicyParams is a permission policy in a request.
type PolicyParams struct {
	// Type is always_allow, always_ask or auto.
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
	// Name is the tool's name at its server, 1 to 128 characters. Whether the server has it is not
	// checked.
	Name string `json:"name" api:"required"`
	// Enabled is the toolset's default when absent.
	Enabled Opt[bool] `json:"enabled,omitzero"`
	// PermissionPolicy is the toolset's default when absent.
	PermissionPolicy Opt[PolicyParams] `json:"permission_policy,omitzero"`
}

// BuiltinParams configures one built-in tool. The members after
// PermissionPolicy are accepted on the tools that have them only.
type BuiltinParams struct {
	// Type is the tool's name again, or absent.
	Type string `json:"type,omitempty"`
	// Name is one of BuiltinTools.
	Name string `json:"name" api:"required"`
	// Enabled is the toolset's default when absent.
	Enabled Opt[bool] `json:"enabled,omitzero"`
	// PermissionPolicy is the toolset's default when absent.
	PermissionPolicy Opt[PolicyParams] `json:"permission_policy,omitzero"`
	// AllowedDomains are 1 to 64 hosts, for web_search with a path behind; absent means all that the
	// environment allows. Null is refused.
	AllowedDomains Opt[[]string] `json:"allowed_domains,omitzero"`
	// BlockedDomains are 1 to 64 hosts, for web_search with a path behind; absent means none. Null is
	// refused.
	BlockedDomains Opt[[]string] `json:"blocked_domains,omitzero"`
	// MaxContentTokens bounds the text of one fetched page, at least 1 token; absent means unbounded.
	MaxContentTokens Opt[int] `json:"max_content_tokens,omitzero"`
	// URLSources must be absent or null: this server has no machinery for it.
	URLSources Opt[json.RawMessage] `json:"url_sources,omitzero"`
	// UserLocation is passed to the search endpoint; absent means unknown.
	UserLocation Opt[LocationParams] `json:"user_location,omitzero"`
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
	// Type is "approximate".
	Type string `json:"type" api:"required"`
	// City has 1 to 255 characters; absent means unknown.
	City Opt[string] `json:"city,omitzero"`
	// Region has 1 to 255 characters; absent means unknown.
	Region Opt[string] `json:"region,omitzero"`
	// Country is two capital letters, a code of ISO 3166-1; absent means unknown.
	Country Opt[string] `json:"country,omitzero"`
	// Timezone has 1 to 255 characters, a name of the IANA database; absent means unknown.
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
	// Type is "custom".
	Type string `json:"type" api:"required"`
	// Name is unique among the agent's tools; letters, digits, - and _.
	Name string `json:"name" api:"required"`
	// Description tells the model what the tool does; not empty.
	Description string `json:"description" api:"required"`
	// InputSchema is a JSON schema of type object. Beyond that it is not checked.
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
