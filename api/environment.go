package api

import "encoding/json"

// Environment is a container configuration that sessions refer to.
type Environment struct {
	// ID begins with "env_".
	ID   string `json:"id"`
	Type string `json:"type"` // "environment"
	// Name has 1 to 256 characters and is unique in the workspace among environments that are not
	// archived.
	Name string `json:"name"`
	// Description has at most 1024 characters; null when there is none.
	Description *string `json:"description"`
	// Config says what sandboxes are made from and what they may reach.
	Config Config `json:"config"`
	// Metadata are the caller's own pairs, bounded by the size of the whole environment; never null.
	Metadata map[string]string `json:"metadata"`
	// Scope is organization or account.
	Scope string `json:"scope"`
	// ArchivedAt is null while new sessions can be made.
	ArchivedAt *Time `json:"archived_at"`
	// CreatedAt is when the environment was made.
	CreatedAt Time `json:"created_at"`
	// UpdatedAt is when it was last changed or archived.
	UpdatedAt Time `json:"updated_at"`
}

// The types of a config and of networking.
const (
	ConfigCloud      = "cloud"
	ConfigSelfHosted = "self_hosted"

	NetworkUnrestricted = "unrestricted"
	NetworkLimited      = "limited"
)

// Config is an environment's config: cloud with all its members, or
// self-hosted with none. Exactly Cloud set means cloud; nil means self-hosted.
type Config struct {
	// Cloud is nil for a self-hosted environment.
	Cloud *CloudConfig
}

// Type is "cloud" or "self_hosted".
func (c Config) Type() string {
	if c.Cloud != nil {
		return ConfigCloud
	}
	return ConfigSelfHosted
}

// MarshalJSON writes the cloud config or {"type":"self_hosted"}.
func (c Config) MarshalJSON() ([]byte, error) {
	if c.Cloud != nil {
		return json.Marshal(c.Cloud)
	}
	return []byte(`{"type":"self_hosted"}`), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (c *Config) UnmarshalJSON(b []byte) error {
	var cloud CloudConfig
	if err := json.Unmarshal(b, &cloud); err != nil {
		return err
	}
	c.Cloud = nil
	if cloud.Type == ConfigCloud {
		c.Cloud = &cloud
	}
	return nil
}

// CloudConfig is a complete cloud config, as replies and the database hold it.
type CloudConfig struct {
	Type string `json:"type"` // "cloud"
	// Networking says what sandboxes may reach.
	Networking Networking `json:"networking"`
	// Packages are installed before a session's first command.
	Packages Packages `json:"packages"`
	// BaseTemplate is empty when the default template is used.
	BaseTemplate string `json:"base_template,omitempty"`
	// AptRecommends has apt install what the packages of its list recommend,
	// too. False is left out of replies.
	AptRecommends bool `json:"apt_recommends,omitempty"`
}

// Networking says what a sandbox may reach. The members beyond Type count only
// under "limited".
type Networking struct {
	// Type is unrestricted or limited.
	Type string `json:"type"`
	// AllowedHosts are host names, with "*." before them for all names below, and addresses; never
	// null under limited.
	AllowedHosts []string `json:"allowed_hosts"`
	// AllowMCPServers opens the hosts of the agent's MCP servers.
	AllowMCPServers bool `json:"allow_mcp_servers"`
	// AllowPackageManagers opens the template's registries.
	AllowPackageManagers bool `json:"allow_package_managers"`
}

// MarshalJSON writes all members under limited and the type alone otherwise.
func (n Networking) MarshalJSON() ([]byte, error) {
	if n.Type != NetworkLimited {
		return json.Marshal(struct {
			Type string `json:"type"`
		}{n.Type})
	}
	type plain Networking
	return json.Marshal(plain(n))
}

// Packages lists what each manager installs. In replies no list is nil.
type Packages struct {
	Type string `json:"type"` // "packages"
	// Apt are entries as apt-get install takes them.
	Apt []string `json:"apt"`
	// Cargo are entries as cargo install takes them.
	Cargo []string `json:"cargo"`
	// Gem are entries as gem install takes them.
	Gem []string `json:"gem"`
	// Go are entries as go install takes them.
	Go []string `json:"go"`
	// Npm are entries as npm install takes them.
	Npm []string `json:"npm"`
	// Pip are entries as pip install takes them.
	Pip []string `json:"pip"`
}

// EnvironmentCreate is the body of a create.
type EnvironmentCreate struct {
	// Name has 1 to 256 characters.
	Name string `json:"name" api:"required"`
	// Description has at most 1024 characters; absent or null means none.
	Description Opt[string] `json:"description,omitzero"`
	// Config is a cloud config with all defaults when absent.
	Config Opt[ConfigParams] `json:"config,omitzero"`
	// Metadata are pairs of strings; absent means none.
	Metadata Opt[map[string]string] `json:"metadata,omitzero"`
	// Scope is organization when absent.
	Scope Opt[Scope] `json:"scope,omitzero"`
}

// EnvironmentUpdate is the body of an update. Absent fields keep what is stored.
type EnvironmentUpdate struct {
	// Name replaces the name; null keeps it.
	Name Opt[string] `json:"name,omitzero"`
	// Description replaces the description; null clears it.
	Description Opt[string] `json:"description,omitzero"`
	// Config changes the members that it names. Sandboxes that run keep what they started with.
	Config Opt[ConfigParams] `json:"config,omitzero"`
	// Metadata is a patch: a string sets a key, null or "" deletes it, keys that are not named stay.
	Metadata Opt[map[string]Opt[string]] `json:"metadata,omitzero"`
	// Scope replaces the scope.
	Scope Opt[Scope] `json:"scope,omitzero"`
}

// Scope is "organization" or "account".
type Scope string

func (s *Scope) bind(path string, n *node) error {
	if n.kind != kindString {
		return fieldErrorf(path, "Input should be a valid string")
	}
	*s = Scope(n.text)
	return enum(path, n.text, "organization", "account")
}

// ConfigParams is a config in a request. A self-hosted one has a type alone.
type ConfigParams struct {
	// Type is cloud or self_hosted.
	Type string `json:"type" api:"required"`
	// Networking is unrestricted when absent.
	Networking Opt[NetworkingParams] `json:"networking,omitzero"`
	// Packages are none when absent.
	Packages Opt[PackagesParams] `json:"packages,omitzero"`
	// BaseTemplate is a template's name; absent or null means the server's default.
	BaseTemplate Opt[string] `json:"base_template,omitzero"`
	// AptRecommends is false when absent: apt does not install what packages
	// recommend.
	AptRecommends Opt[bool] `json:"apt_recommends,omitzero"`
}

func (c *ConfigParams) bind(path string, n *node) error {
	arm, err := bindArm(path, n, ConfigCloud, ConfigSelfHosted)
	if err != nil {
		return err
	}
	if arm == ConfigSelfHosted {
		c.Type = arm
		return bindObject(path, n, &typeOnly{})
	}
	return bindObject(path, n, c)
}

// NetworkingParams is networking in a request. Only Type is there when it is
// unrestricted.
type NetworkingParams struct {
	// Type is unrestricted or limited.
	Type string `json:"type" api:"required"`
	// AllowedHosts are none when absent.
	AllowedHosts Opt[[]string] `json:"allowed_hosts,omitzero"`
	// AllowMCPServers is false when absent.
	AllowMCPServers Opt[bool] `json:"allow_mcp_servers,omitzero"`
	// AllowPackageManagers is false when absent.
	AllowPackageManagers Opt[bool] `json:"allow_package_managers,omitzero"`
}

func (p *NetworkingParams) bind(path string, n *node) error {
	arm, err := bindArm(path, n, NetworkUnrestricted, NetworkLimited)
	if err != nil {
		return err
	}
	if arm == NetworkUnrestricted {
		p.Type = arm
		return bindObject(path, n, &typeOnly{})
	}
	return bindObject(path, n, p)
}

type typeOnly struct {
	Type string `json:"type" api:"required"`
}

// PackagesParams is packages in a request.
type PackagesParams struct {
	// Type is "packages" or absent.
	Type PackagesType `json:"type,omitempty"`
	// Apt are entries as apt-get install takes them; absent means none.
	Apt Opt[[]string] `json:"apt,omitzero"`
	// Cargo are entries as cargo install takes them; absent means none.
	Cargo Opt[[]string] `json:"cargo,omitzero"`
	// Gem are entries as gem install takes them; absent means none.
	Gem Opt[[]string] `json:"gem,omitzero"`
	// Go are entries as go install takes them; absent means none.
	Go Opt[[]string] `json:"go,omitzero"`
	// Npm are entries as npm install takes them; absent means none.
	Npm Opt[[]string] `json:"npm,omitzero"`
	// Pip are entries as pip install takes them; absent means none.
	Pip Opt[[]string] `json:"pip,omitzero"`
}

// PackagesType is "packages" or absent.
type PackagesType string

func (t *PackagesType) bind(path string, n *node) error {
	if n.kind != kindString || n.text != "packages" {
		return fieldErrorf(path, "Input should be 'packages'")
	}
	*t = "packages"
	return nil
}
