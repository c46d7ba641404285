// Package toolset runs the tool calls of agents. The built-in tools bash, read,
// write, edit, glob and grep run inside the session's sandbox; web_fetch and
// web_search run in this process under the session's egress policy; the tools
// of MCP servers are called over streamable HTTP under the same guard.
//
// A [Toolset] is made once for the server. For each session that runs, the agent
// loop opens a [Session], asks it for [Session.Tools] before a model request,
// and hands each call that is permitted to [Session.Run]. The package decides
// nothing about permissions and writes no event: it says what tools there are,
// which policy each has, and what came of a call.
//
// What sandboxes, web servers and MCP servers answer is not trusted: every reply
// is capped in size and time, and what does not fit the wire's content blocks
// becomes an error result.
package toolset

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Call is one tool call of the model.
type Call struct {
	// ID is the id of the use event, "sevt_…": the same ID is the same call.
	ID string
	// Server is the name of the MCP server, or empty for a built-in tool.
	Server string
	// Name of the tool, as Tool.Name has it.
	Name string
	// Input is the JSON object that the model gave.
	Input json.RawMessage
	// Again says that an earlier server may have begun the call: the use event
	// was in the log when this server started. Built-in tools do not need it.
	// An MCP tool that does not call itself read-only or idempotent is then not
	// called; the result is an error that says that the outcome is unknown.
	Again bool
}

// Result is what the model is told.
type Result struct {
	// Content holds blocks of type text, image, document and search_result as
	// they stand on the wire. It is never empty: a tool that says nothing has
	// the text "(no output)".
	Content []json.RawMessage
	// IsError tells the model that the tool failed or did not run.
	IsError bool
	// Failed is set when an MCP server could not be reached for the call.
	// Content tells the model.
	Failed *ServerError
}

// Kind tells who runs a tool.
type Kind string

// The kinds of tools.
const (
	KindBuiltin Kind = "builtin" // Session.Run, agent.tool_use
	KindMCP     Kind = "mcp"     // Session.Run, agent.mcp_tool_use
	KindCustom  Kind = "custom"  // the API's client, agent.custom_tool_use
)

// Tool is one tool that is offered to the model.
type Tool struct {
	// Kind says who runs it.
	Kind Kind
	// ModelName is what the model calls it, unique in the session and fit for
	// the Messages API. Built-in and custom tools keep their names; a tool of an
	// MCP server is "mcp__SERVER__TOOL", shortened where that is needed.
	ModelName string
	// Name and Server are what events name.
	Name, Server string
	// Description tells the model what the tool does; it may be empty.
	Description string
	// InputSchema is a JSON schema of type object.
	InputSchema json.RawMessage
	// Permission is the policy that applies: always_allow, always_ask or auto.
	// Empty for custom tools.
	Permission string
}

// ServerError is an MCP server whose tools are not to be had.
type ServerError struct {
	Server string // its name on the agent
	// Auth: the server wants credentials (401 or 403). Otherwise it could not be
	// reached, was refused by the network policy or does not speak MCP.
	Auth bool
	Err  error // fit for the session's log: no secret and no address of the host
}

func (e *ServerError) Error() string {
	what := "connection"
	if e.Auth {
		what = "authentication"
	}
	return fmt.Sprintf("MCP server %q: %s failed: %v", e.Server, what, e.Err)
}

// Unwrap returns the cause.
func (e *ServerError) Unwrap() error { return e.Err }

// Box is one session's sandbox. Its methods wait until the sandbox is ready and
// wake one that sleeps. They are those of [sandbox.Tools], without the id.
type Box interface {
	RunTool(ctx context.Context, call sandbox.ToolCall) (sandbox.ToolResult, error)
	CancelTool(ctx context.Context, call string) error
}

// Dial connects to "host:port" on behalf of a session: under its policy,
// through the dial guard, and with a record of the decision.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Config is what all sessions share.
type Config struct {
	// Search is what web_search asks; nil means that the tool is not offered and
	// that a call of it is an error.
	Search *Search
	// Roots are the authorities that web_fetch and the connections to MCP servers
	// believe; nil means those of the host.
	Roots *x509.CertPool
	// FetchTime bounds one web_fetch; zero means a minute.
	FetchTime time.Duration
	// Logger receives what goes wrong outside of tools; nil discards.
	Logger *slog.Logger
}

// SessionConfig is what the tools of one session work with.
type SessionConfig struct {
	ID string // of the session
	// Box runs the tools of the sandbox and keeps results that are too long.
	// Required.
	Box Box
	// Tools and MCPServers of the session's agent. When they change, open
	// another Session.
	Tools []api.Tool
	// MCPServers are those of the session's agent.
	MCPServers []api.MCPServer
	// Web is the session's policy. web_fetch and web_search may reach what it
	// opens to [egress.SourceWebTool]: the environment's allowed_hosts alone under
	// limited. Nil means nothing.
	Web *egress.Policy
	// DialWeb and DialMCP make the connections; nil means that none is made.
	DialWeb, DialMCP Dial
	// RefuseWeb is told of "host:port" to which web_fetch was asked to go and did
	// not: the policy, or the tool's list of that name ("allowed_domains" or
	// "blocked_domains"; empty: the policy), is against it. It must not connect.
	// Nil means that nobody wants to know.
	RefuseWeb func(address, list string)
}
