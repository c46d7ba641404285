package toolset

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/outbound"
)

// The limits of what an MCP server may say and how long it may take.
const (
	connectTime    = 30 * time.Second
	listTime       = 30 * time.Second
	callTime       = 2 * time.Minute
	maxServerTools = 256
	maxDescription = 16 << 10 // bytes
	maxSchema      = 128 << 10
	maxToolName    = 128
	maxReply       = 32 << 20 // bytes of one HTTP reply
	maxModelName   = 64
)

// server is an MCP server of the agent's, connected when it is first needed.
type server struct {
	log   *slog.Logger
	roots *x509.CertPool
	name  string
	url   string
	set   *api.Toolset
	dial  Dial

	mu     sync.Mutex // one connects, the others wait
	conn   *mcp.ClientSession
	wire   *wire
	listed []*mcp.Tool // of conn
}

func newServer(t *Toolset, m api.MCPServer, set *api.Toolset, dial Dial) *server {
	return &server{log: t.log, roots: t.roots, name: m.Name, url: m.URL, set: set, dial: dial}
}

// tools lists the server's tools that the agent has enabled.
func (m *server) tools(ctx context.Context) ([]Tool, *ServerError) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.connect(ctx); err != nil {
		return nil, err
	}
	var tools []Tool
	for _, t := range m.listed {
		config := configOf(m.set, t.Name)
		if !config.Enabled {
			continue
		}
		schema, err := json.Marshal(t.InputSchema)
		if err == nil {
			schema, err = offered(schema)
		}
		if err != nil || len(schema) > maxSchema || len(t.Name) > maxToolName || t.Name == "" {
			m.log.WarnContext(ctx, "an MCP server's tool is left out: its name or schema cannot be offered",
				"server", m.name, "tool", oneLine(t.Name, maxToolName), "error", err)
			continue
		}
		description := t.Description
		if description == "" {
			description = t.Title
		}
		tools = append(tools, Tool{Kind: KindMCP, Name: t.Name, Server: m.name, InputSchema: schema,
			Description: clip(description, maxDescription), Permission: config.PermissionPolicy.Type})
	}
	return tools, nil
}

// connect makes the connection and lists the tools, unless that is done. The
// caller holds mu.
func (m *server) connect(ctx context.Context) *ServerError {
	if m.conn != nil {
		return nil
	}
	if m.dial == nil {
		return &ServerError{Server: m.name, Err: errors.New("this server makes no MCP connections")}
	}
	m.wire = &wire{transport: transport(m.dial, m.roots)}
	client := mcp.NewClient(&mcp.Implementation{Name: "atoll", Version: "1"}, nil)
	within, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := client.Connect(within, &mcp.StreamableClientTransport{
		Endpoint: m.url, HTTPClient: m.wire.client(), MaxRetries: -1, DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return m.failure(ctx, m.wire, "connecting", err)
	}
	m.listed, err = list(within, conn)
	if err != nil {
		go conn.Close()
		return m.failure(ctx, m.wire, "listing its tools", err)
	}
	m.conn = conn
	return nil
}

// list reads all pages of a server's tools.
func list(ctx context.Context, conn *mcp.ClientSession) ([]*mcp.Tool, error) {
	var tools []*mcp.Tool
	for t, err := range conn.Tools(ctx, nil) {
		if err != nil {
			return nil, err
		}
		if t == nil {
			continue
		}
		if tools = append(tools, t); len(tools) == maxServerTools {
			break
		}
	}
	return tools, nil
}

// failure words why there is no connection. Errors of the network may hold
// addresses, those of a server anything: only our own words and the HTTP status
// are told, the rest is logged.
func (m *server) failure(ctx context.Context, w *wire, doing string, err error) *ServerError {
	m.log.WarnContext(ctx, "an MCP server is not to be had", "server", m.name, "doing", doing, "error", err)
	e := &ServerError{Server: m.name}
	status, dialled := w.state()
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		e.Auth, e.Err = true, fmt.Errorf("%s: the server answered %d", doing, status)
	case outbound.Refused(err) != nil:
		e.Err = fmt.Errorf("%s: %w", doing, outbound.Refused(err))
	case dialled != nil:
		e.Err = fmt.Errorf("%s: the connection was not made (%s)", doing, dialled.Reason)
	case status != 0 && status != http.StatusOK && status != http.StatusAccepted:
		e.Err = fmt.Errorf("%s: the server answered %d", doing, status)
	case errors.Is(err, context.DeadlineExceeded):
		e.Err = fmt.Errorf("%s: no answer within %s", doing, connectTime)
	default:
		e.Err = fmt.Errorf("%s: the connection failed or the server does not speak MCP over streamable HTTP", doing)
	}
	return e
}

// drop forgets a connection that failed, if it is still the current one.
func (m *server) drop(conn *mcp.ClientSession) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn == conn && conn != nil {
		m.conn, m.listed = nil, nil
		go conn.Close() // it says goodbye to a server that may not answer
	}
}

// close ends the connection.
func (m *server) close() {
	m.mu.Lock()
	conn := m.conn
	m.mu.Unlock()
	m.drop(conn)
}

// callMCP runs a call on an MCP server.
func (s *Session) callMCP(ctx context.Context, call Call) (Result, error) {
	for _, m := range s.servers {
		if m.name == call.Server {
			return s.callOn(ctx, m, call)
		}
	}
	return textResult(true, "%s: there is no MCP server %q", oneLine(call.Name, 100), oneLine(call.Server, 100)), nil
}

func (s *Session) callOn(ctx context.Context, m *server, call Call) (Result, error) {
	name := oneLine(call.Name, 100)
	if !configOf(m.set, call.Name).Enabled {
		return textResult(true, "%s: this tool is not enabled", name), nil
	}
	var arguments map[string]json.RawMessage
	if err := decode(call.Input, &arguments); err != nil {
		return textResult(true, "invalid %s input: not an object", name), nil
	}
	for again := false; ; again = true {
		m.mu.Lock()
		failed := m.connect(ctx)
		conn, w, tool := m.conn, m.wire, m.find(call.Name)
		m.mu.Unlock()
		switch {
		case failed != nil:
			r := textResult(true, "%v", failed)
			r.Failed = failed
			return r, nil
		case tool == nil:
			return textResult(true, "%s: MCP server %q has no such tool", name, m.name), nil
		case call.Again && !repeatable(tool):
			return textResult(true, "%s: the server was restarted while this call may have run; what came of it is unknown, and it was not made again", name), nil
		}
		within, cancel := context.WithTimeout(ctx, callTime)
		reply, err := conn.CallTool(within, &mcp.CallToolParams{Name: call.Name, Arguments: arguments})
		cancel()
		if err == nil {
			return s.mcpResult(ctx, call, reply), nil
		}
		// A session that the server has forgotten: it has not run the call.
		if errors.Is(err, mcp.ErrSessionMissing) && !again {
			m.drop(conn)
			continue
		}
		return m.callFailure(ctx, within, conn, w, name, err), nil
	}
}

// find is a tool of the connected server, or nil. The caller holds mu.
func (m *server) find(name string) *mcp.Tool {
	for _, t := range m.listed {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// repeatable tells whether a tool says that another call does no harm.
func repeatable(t *mcp.Tool) bool {
	return t.Annotations != nil && (t.Annotations.ReadOnlyHint || t.Annotations.IdempotentHint)
}

// callFailure is the result of a call to which there was no answer. What the
// server itself says of a refused request is told; it is as trusted as a result.
func (m *server) callFailure(ctx, within context.Context, conn *mcp.ClientSession, w *wire, name string, err error) Result {
	if refused, ok := errors.AsType[*jsonrpcError](err); ok {
		return textResult(true, "%s: %s", name, oneLine(refused.Message, 2000))
	}
	m.drop(conn)
	switch {
	case errors.Is(context.Cause(ctx), ErrCancelled):
		return textResult(true, "%s: interrupted; what came of the call is unknown", name)
	case within.Err() != nil:
		return textResult(true, "tool %q timed out after %s; what came of the call is unknown", name, callTime)
	}
	failed := m.failure(ctx, w, "calling "+name, err)
	r := textResult(true, "%v; what came of the call is unknown", failed)
	r.Failed = failed
	return r
}

// modelName is a name for a server's tool that the Messages API takes and that
// no other tool has. A name that had to be changed ends in a mark of the whole.
func modelName(server, tool string, taken map[string]bool) string {
	whole := "mcp__" + server + "__" + tool
	name := strings.Map(func(c rune) rune {
		if c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			return c
		}
		return '_'
	}, whole)
	if name != whole || len(name) > maxModelName || taken[name] {
		sum := sha256.Sum256([]byte(server + "\x00" + tool))
		mark := "_" + hex.EncodeToString(sum[:4])
		name = name[:min(len(name), maxModelName-len(mark))] + mark
	}
	taken[name] = true
	return name
}

// wire is the HTTP of one connection: guarded, bounded, and remembering what
// went wrong, which the protocol's library tells in text only.
type wire struct {
	transport *http.Transport

	mu     sync.Mutex
	status int               // of the last reply
	failed *egress.DialError // of the last connection, if it failed
}

func (w *wire) client() *http.Client {
	return outbound.New(outbound.Config{Transport: w, Redirects: outbound.SameOrigin})
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.transport.RoundTrip(req)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.status = 0
		w.failed, _ = errors.AsType[*egress.DialError](err)
		return nil, err
	}
	w.status, w.failed = resp.StatusCode, nil
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxReply}
	return resp, nil
}

func (w *wire) state() (int, *egress.DialError) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, w.failed
}

// boundedBody is a reply that ends with an error when it is too long.
type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("reply of more than %d bytes", maxReply)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
