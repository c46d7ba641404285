package toolset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Toolset opens Sessions. Its methods may be called at the same time.
type Toolset struct {
	log *slog.Logger
}

// New makes a Toolset.
func New(cfg Config) (*Toolset, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Toolset{log: cfg.Logger}, nil
}

// Session runs the tools of one session. Its methods may be called at the same
// time; calls whose order matters are run one after the other by the caller.
type Session struct {
	toolset *Toolset
	cfg     SessionConfig

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc // call id → ends a call that runs in this process
}

// Open makes the Session of one session. Close it when its agent changes or it
// is not needed for a while; nothing is lost by that.
func (t *Toolset) Open(cfg SessionConfig) *Session {
	return &Session{toolset: t, cfg: cfg, running: map[string]context.CancelCauseFunc{}}
}

// Close ends the connections to MCP servers. Calls that run in the sandbox go
// on there.
func (s *Session) Close() error { return nil }

// Tools lists what is offered to the model, in a stable order: built-in tools,
// tools of MCP servers, custom tools. Disabled and unavailable ones are left
// out. MCP servers are connected if they are not; one that cannot be is
// reported and its tools are missing, and the next Tools tries it again.
func (s *Session) Tools(ctx context.Context) ([]Tool, []*ServerError) {
	var tools []Tool
	for _, t := range s.cfg.Tools {
		switch {
		case t.Custom != nil:
			tools = append(tools, Tool{Kind: KindCustom, ModelName: t.Custom.Name, Name: t.Custom.Name,
				Description: t.Custom.Description, InputSchema: t.Custom.InputSchema})
		case t.Toolset.Type == api.ToolsetAgent:
			tools = append(tools, s.builtins(t.Toolset)...)
		}
	}
	slices.SortStableFunc(tools, func(a, b Tool) int { return strings.Compare(order[a.Kind], order[b.Kind]) })
	return tools, nil
}

var order = map[Kind]string{KindBuiltin: "1", KindMCP: "2", KindCustom: "3"}

// builtins are the enabled tools of the agent toolset that can be used here.
func (s *Session) builtins(set *api.Toolset) []Tool {
	var tools []Tool
	for _, b := range builtins {
		config := configOf(set, b.name)
		if !config.Enabled {
			continue
		}
		tools = append(tools, Tool{Kind: KindBuiltin, ModelName: b.name, Name: b.name,
			Description: b.description, InputSchema: json.RawMessage(b.schema), Permission: config.PermissionPolicy.Type})
	}
	return tools
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

// ErrCancelled is the cause with which a call is ended by Cancel.
var ErrCancelled = errors.New("the call was interrupted")

// Run runs one call to its end. What a tool does wrong is a Result with IsError;
// an error means that the sandbox or the server failed and that nothing is
// known to have come of the call, so that Run may be called again with the same
// Call. When ctx ends, Run returns its error: a call in the sandbox goes on and
// the next Run of the same ID, also of another server, gets its result; a call
// of an MCP server or of the web is broken off.
func (s *Session) Run(ctx context.Context, call Call) (Result, error) {
	if call.Server == "" && slices.Contains(inSandbox, call.Name) {
		return s.runInSandbox(ctx, call)
	}
	return textResult(true, "%s: there is no such tool", call.Name), nil
}

// Cancel ends a call that runs or may run: it is killed, and its Run gives a
// result that says that it was interrupted. A call that has not begun never
// will; one that has ended keeps its result. The error is the sandbox's.
func (s *Session) Cancel(ctx context.Context, call Call) error {
	if call.Server == "" && slices.Contains(inSandbox, call.Name) {
		return s.cfg.Box.CancelTool(ctx, call.ID)
	}
	s.mu.Lock()
	cancel := s.running[call.ID]
	s.mu.Unlock()
	if cancel != nil {
		cancel(ErrCancelled)
	}
	return nil
}

// runInSandbox hands the call to the daemon in the sandbox.
func (s *Session) runInSandbox(ctx context.Context, call Call) (Result, error) {
	if len(call.Input) > sandbox.MaxToolInput {
		return textResult(true, "%s: the input is longer than %d bytes", call.Name, sandbox.MaxToolInput), nil
	}
	r, err := s.cfg.Box.RunTool(ctx, sandbox.ToolCall{
		ID: call.ID, Name: call.Name, Input: call.Input, Roots: fileRoots, Spill: spillDir,
	})
	if err != nil {
		return Result{}, fmt.Errorf("running %s in the sandbox: %w", call.Name, err)
	}
	return textResult(r.IsError, "%s", r.Text), nil
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

func textBlock(text string) json.RawMessage {
	block, err := json.Marshal(api.TextBlock{Type: "text", Text: text})
	if err != nil {
		panic("toolset: a text block: " + err.Error()) // strings only
	}
	return block
}
