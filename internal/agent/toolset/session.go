package toolset

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/outbound"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Toolset opens Sessions. Its methods may be called at the same time.
type Toolset struct {
	log          *slog.Logger
	roots        *x509.CertPool // nil: the host's
	fetchTime    time.Duration
	search       *Search // nil: there is none
	searchClient *http.Client
}

// New makes a Toolset. The error says what is wrong with the search endpoint.
func New(cfg Config) (*Toolset, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Toolset{log: cfg.Logger, roots: cfg.Roots, fetchTime: cfg.FetchTime}
	if t.fetchTime == 0 {
		t.fetchTime = time.Minute
	}
	if cfg.Search != nil {
		if err := cfg.Search.Validate(); err != nil {
			return nil, fmt.Errorf("search endpoint: %w", err)
		}
		search := cfg.Search.withDefaults()
		t.search = &search
		// A redirect would carry the operator's headers elsewhere.
		t.searchClient = outbound.New(outbound.Config{})
	}
	return t, nil
}

// Session runs the tools of one session. Its methods may be called at the same
// time; calls whose order matters are run one after the other by the caller.
type Session struct {
	toolset *Toolset
	cfg     SessionConfig
	servers []*server // MCP servers with a toolset, in the order of the agent's tools

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc // call id → ends a call that runs in this process
	ended   map[string]bool                    // calls that were cancelled before they ran
}

// Open makes the Session of one session. Close it when its agent changes or it
// is not needed for a while; nothing is lost by that.
func (t *Toolset) Open(cfg SessionConfig) *Session {
	s := &Session{toolset: t, cfg: cfg, running: map[string]context.CancelCauseFunc{}, ended: map[string]bool{}}
	for _, tool := range cfg.Tools {
		if tool.Toolset == nil || tool.Toolset.Type != api.ToolsetMCP {
			continue
		}
		for _, m := range cfg.MCPServers {
			if m.Name == tool.Toolset.MCPServerName {
				s.servers = append(s.servers, newServer(t, m, tool.Toolset, cfg.DialMCP))
			}
		}
	}
	return s
}

// Close ends the connections to MCP servers. Calls that run in the sandbox go
// on there.
func (s *Session) Close() error {
	for _, m := range s.servers {
		m.close()
	}
	return nil
}

// Tools lists what is offered to the model, in a stable order: built-in tools,
// tools of MCP servers, custom tools. Disabled and unavailable ones are left
// out. MCP servers are connected if they are not; one that cannot be is
// reported and its tools are missing, and the next Tools tries it again.
func (s *Session) Tools(ctx context.Context) ([]Tool, []*ServerError) {
	var builtin, custom []Tool
	for _, t := range s.cfg.Tools {
		switch {
		case t.Custom != nil:
			schema, err := offered(t.Custom.InputSchema)
			if err != nil { // the model's endpoint says what is wrong with it
				schema = t.Custom.InputSchema
			}
			custom = append(custom, Tool{Kind: KindCustom, ModelName: t.Custom.Name, Name: t.Custom.Name,
				Description: t.Custom.Description, InputSchema: schema})
		case t.Toolset.Type == api.ToolsetAgent:
			builtin = append(builtin, s.builtins(t.Toolset)...)
		}
	}
	taken := map[string]bool{}
	for _, t := range slices.Concat(builtin, custom) {
		taken[t.ModelName] = true
	}
	offered := make([][]Tool, len(s.servers))
	failed := make([]*ServerError, len(s.servers))
	var all sync.WaitGroup
	for i, m := range s.servers {
		all.Go(func() { offered[i], failed[i] = m.tools(ctx) })
	}
	all.Wait()
	remote := slices.Concat(offered...)
	for i := range remote {
		remote[i].ModelName = modelName(remote[i].Server, remote[i].Name, taken)
	}
	return slices.Concat(builtin, remote, custom), slices.DeleteFunc(failed, func(e *ServerError) bool { return e == nil })
}

// builtins are the enabled tools of the agent toolset that can be used here.
func (s *Session) builtins(set *api.Toolset) []Tool {
	var tools []Tool
	for _, b := range builtins {
		config := configOf(set, b.name)
		if !config.Enabled || b.name == api.ToolWebSearch && s.toolset.search == nil {
			continue
		}
		tools = append(tools, Tool{Kind: KindBuiltin, ModelName: b.name, Name: b.name,
			Description: b.description + whereabouts(config.UserLocation), InputSchema: json.RawMessage(b.schema), Permission: config.PermissionPolicy.Type})
	}
	return tools
}

// whereabouts tells the model where the user is, whatever the search endpoint
// makes of it.
func whereabouts(at *api.UserLocation) string {
	if at == nil {
		return ""
	}
	places := slices.DeleteFunc([]string{at.City, at.Region, at.Country, at.Timezone}, func(v string) bool { return v == "" })
	if len(places) == 0 {
		return ""
	}
	return " The user is near: " + oneLine(strings.Join(places, ", "), 500) + "."
}

// configOf is what holds for one tool of a set.
func configOf(set *api.Toolset, name string) api.ToolConfig {
	for _, c := range set.Configs {
		if c.Name == name {
			return c
		}
	}
	return api.ToolConfig{Name: name, Enabled: set.DefaultConfig.Enabled, PermissionPolicy: set.DefaultConfig.PermissionPolicy}
}

// builtinConfig is what the agent says of a built-in tool; not enabled when it
// has no agent toolset.
func (s *Session) builtinConfig(name string) api.ToolConfig {
	for _, t := range s.cfg.Tools {
		if t.Toolset != nil && t.Toolset.Type == api.ToolsetAgent {
			return configOf(t.Toolset, name)
		}
	}
	return api.ToolConfig{}
}

// ErrCancelled is the cause with which a call is ended by Cancel.
var ErrCancelled = errors.New("the call was interrupted")

// Run runs one call to its end. What a tool does wrong is a Result with IsError;
// an error means that the sandbox or the server failed and that nothing is
// known to have come of the call, so that Run may be called again with the same
// Call. When ctx ends, Run returns its error: a call in the sandbox goes on and
// the next Run of the same ID, also of another server, gets its result; a call
// of an MCP server or of the web is broken off.
func (s *Session) Run(ctx context.Context, call Call) (Result, error) {
	if call.Server != "" {
		return s.onServer(ctx, call, s.callMCP)
	}
	config := s.builtinConfig(call.Name)
	switch {
	case !slices.ContainsFunc(builtins, func(b builtin) bool { return b.name == call.Name }):
		return textResult(true, "%s: there is no such tool", oneLine(call.Name, 100)), nil
	case !config.Enabled:
		return textResult(true, "%s: this tool is not enabled", call.Name), nil
	case call.Name == api.ToolWebFetch:
		return s.onServer(ctx, call, func(ctx context.Context, call Call) (Result, error) { return s.fetch(ctx, call, config) })
	case call.Name == api.ToolWebSearch:
		return s.onServer(ctx, call, func(ctx context.Context, call Call) (Result, error) { return s.search(ctx, call, config) })
	}
	return s.inSandbox(ctx, call)
}

// onServer runs a call of this process, so that Cancel finds it.
func (s *Session) onServer(ctx context.Context, call Call, run func(context.Context, Call) (Result, error)) (Result, error) {
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	if s.ended[call.ID] {
		s.mu.Unlock()
		return textResult(true, "%s: interrupted before it ran", call.Name), nil
	}
	s.running[call.ID] = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.running, call.ID)
		s.mu.Unlock()
	}()
	result, err := run(within, call)
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	return result, err
}

// Cancel ends a call that runs or may run: it is killed, and its Run gives a
// result that says that it was interrupted. A call that has not begun never
// will; one that has ended keeps its result. The error is the sandbox's.
func (s *Session) Cancel(ctx context.Context, call Call) error {
	if call.Server == "" && slices.Contains(sandboxTools, call.Name) {
		return s.cfg.Box.CancelTool(ctx, call.ID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.running[call.ID]; cancel != nil {
		cancel(ErrCancelled)
	} else {
		s.ended[call.ID] = true
	}
	return nil
}

// answerGrace is how much longer than its own limit a call in a sandbox may
// take before its daemon is taken for dead: starting one, and killing what ran.
const answerGrace = 2 * time.Minute

// inSandbox hands the call to the daemon in the sandbox.
func (s *Session) inSandbox(ctx context.Context, call Call) (Result, error) {
	if len(call.Input) > sandbox.MaxToolInput {
		return textResult(true, "%s: the input is longer than %d bytes", call.Name, sandbox.MaxToolInput), nil
	}
	if !json.Valid(call.Input) {
		return textResult(true, "invalid %s input: not JSON", call.Name), nil
	}
	r, err := s.cfg.Box.RunTool(ctx, sandbox.ToolCall{
		ID: call.ID, Name: call.Name, Input: call.Input, Roots: fileRoots, Spill: spillDir, Patience: timeLimit(call) + answerGrace,
	})
	switch {
	case err == nil:
		return textResult(r.IsError, "%s", r.Text), nil
	case ctx.Err() != nil:
		return Result{}, ctx.Err()
	case errors.Is(err, sandbox.ErrBadReply):
		// Something in the sandbox has stopped or broken the daemon.
		s.toolset.log.WarnContext(ctx, "the tool daemon does not answer", "session_id", s.cfg.ID, "tool", call.Name, "error", err)
		return textResult(true, "%s: the sandbox did not answer; what came of the call is unknown", call.Name), nil
	}
	return Result{}, fmt.Errorf("running %s in the sandbox: %w", call.Name, err)
}

// timeLimit is the time that a call has by its own words.
func timeLimit(call Call) time.Duration {
	var in struct {
		TimeoutMS int64 `json:"timeout_ms"`
	}
	limit := 2 * time.Minute
	if call.Name == sandbox.ToolBash && json.Unmarshal(call.Input, &in) == nil && in.TimeoutMS > 0 {
		limit = time.Duration(min(in.TimeoutMS, (24*time.Hour).Milliseconds())) * time.Millisecond
	}
	return limit
}

// decode reads a tool's input.
func decode(input json.RawMessage, v any) error {
	if len(bytes.TrimSpace(input)) == 0 {
		return nil
	}
	return json.Unmarshal(input, v)
}

// textResult is a result of one text block.
func textResult(isError bool, format string, args ...any) Result {
	text := fmt.Sprintf(format, args...)
	if text == "" {
		text = noOutput
	}
	return Result{Content: []json.RawMessage{textBlock(text)}, IsError: isError}
}

const noOutput = "(no output)"

func textBlock(text string) json.RawMessage { return block(api.TextBlock{Type: "text", Text: text}) }
