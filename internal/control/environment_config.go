package control

import (
	"errors"
	"strings"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
)

// checkScope: every environment belongs to the organization.
func checkScope(scope api.Opt[api.Scope]) error {
	if scope.Given() && scope.Value != "organization" {
		return badField("scope", "Only 'organization' is supported")
	}
	return nil
}

// newConfig is the config of a create: what was given over the defaults.
func (s *Service) newConfig(params api.Opt[api.ConfigParams]) (api.Config, error) {
	if params.Given() && params.Value.Type == api.ConfigSelfHosted {
		return api.Config{}, nil
	}
	config := api.Config{Cloud: &api.CloudConfig{
		Type:       api.ConfigCloud,
		Networking: api.Networking{Type: api.NetworkUnrestricted},
		Packages: api.Packages{Type: "packages", Apt: []string{}, Cargo: []string{}, Gem: []string{},
			Go: []string{}, Npm: []string{}, Pip: []string{}},
	}}
	if !params.Given() {
		return config, nil
	}
	return config, s.patchConfig(&config, params.Value)
}

// patchConfig merges a request into a complete config: what is absent or null
// keeps its value.
func (s *Service) patchConfig(config *api.Config, params api.ConfigParams) error {
	if params.Type != config.Type() {
		return &Fault{Kind: Invalid, Code: "invalid_config_type_change",
			Message: "config.type: The type of an environment's config cannot be changed from '" + config.Type() + "' to '" + params.Type + "'"}
	}
	if config.Cloud == nil {
		return nil
	}
	if err := patchNetworking(&config.Cloud.Networking, params.Networking); err != nil {
		return err
	}
	if err := patchPackages(&config.Cloud.Packages, params.Packages); err != nil {
		return err
	}
	config.Cloud.AptRecommends = params.AptRecommends.Or(config.Cloud.AptRecommends)
	if !params.BaseTemplate.Given() {
		return nil
	}
	name := params.BaseTemplate.Value
	if s.templates == nil || !s.templates.Known(name) {
		var known []string
		if s.templates != nil {
			known = s.templates.Names()
		}
		return badField("config.base_template", "There is no template of this name. The templates are: %s", strings.Join(known, ", "))
	}
	config.Cloud.BaseTemplate = name
	return nil
}

// patchNetworking: a change of the type starts from the defaults of the new one.
func patchNetworking(n *api.Networking, params api.Opt[api.NetworkingParams]) error {
	if !params.Given() {
		return nil
	}
	p := params.Value
	if p.Type == api.NetworkUnrestricted {
		*n = api.Networking{Type: api.NetworkUnrestricted}
		return nil
	}
	if n.Type != api.NetworkLimited {
		*n = api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{}}
	}
	for _, entry := range p.AllowedHosts.Or(nil) {
		if _, err := egress.ParseEntry(entry); err != nil {
			return &Fault{Kind: Invalid, Message: err.Error(), Cause: err}
		}
	}
	n.AllowedHosts = p.AllowedHosts.Or(n.AllowedHosts)
	n.AllowMCPServers = p.AllowMCPServers.Or(n.AllowMCPServers)
	n.AllowPackageManagers = p.AllowPackageManagers.Or(n.AllowPackageManagers)
	return nil
}

// patchPackages: a list that is given replaces that manager's list.
func patchPackages(packages *api.Packages, params api.Opt[api.PackagesParams]) error {
	if !params.Given() {
		return nil
	}
	p := params.Value
	packages.Apt = p.Apt.Or(packages.Apt)
	packages.Cargo = p.Cargo.Or(packages.Cargo)
	packages.Gem = p.Gem.Or(packages.Gem)
	packages.Go = p.Go.Or(packages.Go)
	packages.Npm = p.Npm.Or(packages.Npm)
	packages.Pip = p.Pip.Or(packages.Pip)
	if err := image.CheckPackages(imagePackages(*packages)); err != nil {
		return &Fault{Kind: Invalid, Message: "config." + err.Error(), Cause: withoutEntry(err)}
	}
	return nil
}

// withoutEntry is a refusal of a package as the log has it: what a caller wrote
// into the list stays out, since it was refused for what it may be.
func withoutEntry(err error) error {
	if refused, ok := errors.AsType[*image.SpecError](err); ok {
		quiet := *refused
		quiet.Entry = ""
		return &quiet
	}
	return err
}

// imagePackages is an environment's packages as the image package takes them.
func imagePackages(p api.Packages) image.Packages {
	return image.Packages{Apt: p.Apt, Cargo: p.Cargo, Gem: p.Gem, Go: p.Go, Npm: p.Npm, Pip: p.Pip}
}
