package control

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
)

// SessionEnvironment is what a session's sandbox is made from.
type SessionEnvironment struct {
	// CloudConfig is the environment's, as it was when the session was created.
	api.CloudConfig
	// Policy is what the session's network may reach: the environment's allowed
	// hosts and, if it allows them, the agent's MCP servers. The registries of the
	// template come on top where the network is made. It is not nil.
	Policy *egress.Policy
}

// SessionConfig reads a stored session's environment. It is the one place where
// the stored hosts are parsed.
func SessionConfig(rec SessionRecord) (SessionEnvironment, error) {
	d, err := readSession(rec)
	if err != nil {
		return SessionEnvironment{}, err
	}
	policy, err := sessionPolicy(d.Environment.Networking, d.Agent.MCPServers)
	if err != nil {
		return SessionEnvironment{}, fmt.Errorf("compiling the network policy of %s: %w", rec.ID, err)
	}
	return SessionEnvironment{CloudConfig: d.Environment, Policy: policy}, nil
}

// sessionPolicy is what a network may reach, the template's registries aside. An
// MCP server that is not at a host name (an IP address) is left out.
func sessionPolicy(n api.Networking, servers []api.MCPServer) (*egress.Policy, error) {
	if n.Type == api.NetworkUnrestricted {
		return egress.Compile(egress.Spec{Mode: egress.ModeUnrestricted})
	}
	spec := egress.Spec{Mode: egress.ModeLimited, AllowedHosts: n.AllowedHosts}
	for _, server := range servers {
		if host, port, ok := serverAddress(server); ok && n.AllowMCPServers {
			spec.Endpoints = append(spec.Endpoints, egress.Endpoint{Host: host, Port: port, Rule: "mcp:" + server.Name})
		}
	}
	return egress.Compile(spec)
}

// SessionAgent reads a stored session's agent, with its overrides.
func SessionAgent(rec SessionRecord) (api.SessionAgent, error) {
	d, err := readSession(rec)
	return d.Agent, err
}

// serverAddress is the host and port of an MCP server; not ok when its host is
// not a host name.
func serverAddress(server api.MCPServer) (host egress.Host, port int, ok bool) {
	u, err := url.Parse(server.URL)
	if err != nil {
		return host, 0, false
	}
	if host, err = egress.Canonical(u.Hostname()); err != nil {
		return host, 0, false
	}
	port = 443
	if u.Scheme == "http" {
		port = 80
	}
	if text := u.Port(); text != "" {
		if port, err = strconv.Atoi(text); err != nil || port < 1 || port > 65535 {
			return host, 0, false
		}
	}
	return host, port, true
}

// checkServersReachable refuses MCP servers that the environment's network
// would not let the agent reach.
func checkServersReachable(environment string, n api.Networking, servers []api.MCPServer) error {
	if n.Type != api.NetworkLimited {
		return nil
	}
	policy, err := sessionPolicy(n, servers)
	if err != nil {
		return fmt.Errorf("compiling the network policy of %s: %w", environment, err)
	}
	for _, server := range servers {
		host, port, ok := serverAddress(server)
		if ok {
			_, ok = policy.Allows(egress.SourceMCP, host, port)
		}
		if !ok {
			return Faultf(Invalid, "Environment %s does not allow the MCP server %q: its host is not in `allowed_hosts` and `allow_mcp_servers` is %t.",
				environment, server.Name, n.AllowMCPServers)
		}
	}
	return nil
}
