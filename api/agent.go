package api

import "encoding/json"

// Agent is one version of an agent.
type Agent struct {
	Type string `json:"type"` // "agent"
	// ID begins with "agent_" and is the same for all versions.
	ID string `json:"id"`
	// Version counts from 1; each update that changes something makes the next one.
	Version int `json:"version"`
	// Name has 1 to 256 characters. It need not be unique.
	Name string `json:"name"`
	// Description has at most 2048 characters; null when there is none.
	Description *string `json:"description"`
	// Model is what the agent's turns are asked of.
	Model Model `json:"model"`
	// System is the system prompt, at most 100,000 characters; null when there is none.
	System *string `json:"system"`
	// Tools are what the model may call; never null.
	Tools []Tool `json:"tools"`
	// MCPServers are the servers that entries of Tools refer to by name; never null.
	MCPServers []MCPServer `json:"mcp_servers"`
	// Skills is always empty until skills are supported; never null.
	Skills []Skill `json:"skills"`
	// Metadata are the caller's own pairs: at most 16, keys of 1 to 64 characters, values of at most
	// 512; never null.
	Metadata   map[string]string `json:"metadata"`
	Multiagent *struct{}         `json:"multiagent"` // always null until there are several
	// ExecutionIdentity is who the agent's runs act as.
	ExecutionIdentity ExecutionIdentity `json:"execution_identity"`
	// CreatedAt is when the first version was made.
	CreatedAt Time `json:"created_at"`
	// UpdatedAt is when this version was made, or the agent was archived.
	UpdatedAt Time `json:"updated_at"`
	// ArchivedAt is null while the agent can be used by new sessions.
	ArchivedAt *Time `json:"archived_at"`
}

// Model is a model and how it is to be run.
type Model struct {
	// ID is the model's name as the endpoint, or the server's map of names, knows it; 1 to 256
	// characters.
	ID    string `json:"id"`
	Speed string `json:"speed,omitempty"` // standard or fast
	// Effort is nil when the model's own default holds.
	Effort *Effort `json:"effort,omitempty"`
	// InferenceGeo is passed to the endpoint as it is, 1 to 64 characters; empty when none was given.
	InferenceGeo string `json:"inference_geo,omitempty"`
}

// Effort is low, medium, high, xhigh or max.
type Effort struct {
	// Type is low, medium, high, xhigh or max.
	Type string `json:"type"`
}

// ExecutionIdentity is who an agent's runs act as.
type ExecutionIdentity struct {
	Type string `json:"type"` // "service_account"
}

// MCPServer is a server of tools that an agent may use.
type MCPServer struct {
	Type string `json:"type"` // "url"
	// Name is unique in the agent, 1 to 255 characters; a toolset of type mcp_toolset refers to it.
	Name string `json:"name"`
	// URL is where the server answers, http or https, at most 2048 characters.
	URL string `json:"url"`
}

// Skill refers to a skill. No agent has one until skills are supported.
type Skill struct {
	// Type is the kind of the skill.
	Type string `json:"type"`
	// SkillID names the skill.
	SkillID string `json:"skill_id"`
	// Version names the skill's version.
	Version string `json:"version"`
}

// The types of tools.
const (
	ToolsetAgent = "agent_toolset_20260401"
	ToolsetMCP   = "mcp_toolset"
	ToolCustom   = "custom"
)

// The tools of the agent toolset that the server runs itself; the others run in
// the session's sandbox.
const (
	ToolWebFetch  = "web_fetch"
	ToolWebSearch = "web_search"
)

// BuiltinTools are the names in the agent toolset.
var BuiltinTools = [...]string{"bash", "edit", "read", "write", "glob", "grep", ToolWebFetch, ToolWebSearch}

// Tool is an entry of an agent's tools: exactly one member is set.
type Tool struct {
	Toolset *Toolset // of type agent_toolset_20260401 or mcp_toolset
	// Custom is of type custom: the API's client runs it.
	Custom *CustomTool
}

// MarshalJSON writes the member that is set.
func (t Tool) MarshalJSON() ([]byte, error) {
	if t.Custom != nil {
		return json.Marshal(t.Custom)
	}
	return json.Marshal(t.Toolset)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Tool) UnmarshalJSON(b []byte) error {
	var head struct{ Type string }
	if err := json.Unmarshal(b, &head); err != nil {
		return err
	}
	*t = Tool{}
	if head.Type == ToolCustom {
		t.Custom = &CustomTool{}
		return json.Unmarshal(b, t.Custom)
	}
	t.Toolset = &Toolset{}
	return json.Unmarshal(b, t.Toolset)
}

// Toolset is a set of tools with its settings resolved.
type Toolset struct {
	// Type is ToolsetAgent or ToolsetMCP.
	Type          string `json:"type"`
	MCPServerName string `json:"mcp_server_name,omitempty"` // of an mcp_toolset
	// DefaultConfig holds for the tools that Configs does not name.
	DefaultConfig ToolDefault `json:"default_config"`
	// Configs are the tools with settings of their own, each name once; never null.
	Configs []ToolConfig `json:"configs"`
}

// ToolDefault holds for the tools that no config names.
type ToolDefault struct {
	// Enabled tells whether the model is offered the tools.
	Enabled bool `json:"enabled"`
	// PermissionPolicy decides whether a call runs at once or waits for a confirmation.
	PermissionPolicy PermissionPolicy `json:"permission_policy"`
}

// PermissionPolicy is always_allow, always_ask or auto.
type PermissionPolicy struct {
	// Type is always_allow, always_ask or auto.
	Type string `json:"type"`
}

// ToolConfig holds for one tool. Type is empty in an mcp_toolset; the members
// after PermissionPolicy belong to web_fetch and web_search.
type ToolConfig struct {
	// Type is the tool's name again in the agent toolset; empty in an mcp_toolset.
	Type string `json:"type,omitempty"`
	// Name is the tool's name within its toolset.
	Name string `json:"name"`
	// Enabled tells whether the model is offered the tool.
	Enabled bool `json:"enabled"`
	// PermissionPolicy decides whether a call runs at once or waits for a confirmation.
	PermissionPolicy PermissionPolicy `json:"permission_policy"`
	// AllowedDomains are the only hosts that the tool may use, 1 to 64; nil when all that the
	// environment allows.
	AllowedDomains []string `json:"allowed_domains,omitempty"`
	// BlockedDomains are hosts that the tool may not use, 1 to 64; nil when none. Never together with
	// AllowedDomains.
	BlockedDomains []string `json:"blocked_domains,omitempty"`
	// MaxContentTokens bounds the text of one fetched page, in tokens as the server estimates them;
	// nil when unbounded.
	MaxContentTokens *int `json:"max_content_tokens,omitempty"`
	// UserLocation is passed to the search endpoint; nil when unknown.
	UserLocation *UserLocation `json:"user_location,omitempty"`
}

// MarshalJSON adds the null url_sources that web_fetch has in replies.
func (c ToolConfig) MarshalJSON() ([]byte, error) {
	type plain ToolConfig
	if c.Type != ToolWebFetch {
		return json.Marshal(plain(c))
	}
	return json.Marshal(struct {
		plain
		URLSources *struct{} `json:"url_sources"`
	}{plain: plain(c)})
}

// UserLocation is about where the user is, for web_search.
type UserLocation struct {
	Type string `json:"type"` // "approximate"
	// City is a name of at most 255 characters; empty when unknown.
	City string `json:"city,omitempty"`
	// Region is a name of at most 255 characters; empty when unknown.
	Region string `json:"region,omitempty"`
	// Country is a code of ISO 3166-1 alpha-2; empty when unknown.
	Country string `json:"country,omitempty"`
	// Timezone is a name of the IANA database; empty when unknown.
	Timezone string `json:"timezone,omitempty"`
}

// CustomTool is a tool that the API's client runs.
type CustomTool struct {
	Type string `json:"type"` // "custom"
	// Name is unique among the agent's custom tools and no built-in tool's.
	Name string `json:"name"`
	// Description tells the model what the tool does; not empty.
	Description string `json:"description"`
	// InputSchema is a JSON schema of type object, as it came.
	InputSchema json.RawMessage `json:"input_schema"`
}
