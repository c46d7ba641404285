package api

import "encoding/json"

// The types of events that Atoll stores in a session's log.
const (
	EventUserMessage          = "user.message"
	EventUserInterrupt        = "user.interrupt"
	EventUserToolConfirmation = "user.tool_confirmation"
	EventUserCustomToolResult = "user.custom_tool_result"
	EventSystemMessage        = "system.message"

	EventAgentMessage       = "agent.message"
	EventAgentThinking      = "agent.thinking"
	EventAgentToolUse       = "agent.tool_use"
	EventAgentToolResult    = "agent.tool_result"
	EventAgentMCPToolUse    = "agent.mcp_tool_use"
	EventAgentMCPToolResult = "agent.mcp_tool_result"
	EventAgentCustomToolUse = "agent.custom_tool_use"
	EventContextCompacted   = "agent.thread_context_compacted"

	EventSessionRunning     = "session.status_running"
	EventSessionIdle        = "session.status_idle"
	EventSessionRescheduled = "session.status_rescheduled"
	EventSessionTerminated  = "session.status_terminated"
	EventSessionError       = "session.error"
	EventSessionUpdated     = "session.updated"
	EventSessionUsage       = "session.usage"
	EventThreadCreated      = "session.thread_created"
	EventThreadRunning      = "session.thread_status_running"
	EventThreadIdle         = "session.thread_status_idle"
	EventThreadRescheduled  = "session.thread_status_rescheduled"
	EventThreadTerminated   = "session.thread_status_terminated"

	EventModelRequestStart = "span.model_request_start"
	EventModelRequestEnd   = "span.model_request_end"
)

// The types of events that are only streamed, never stored.
const (
	EventSessionDeleted = "session.deleted"
	EventStart          = "event_start"
	EventDelta          = "event_delta"
)

// The structs below hold what an event of a type has beside its type, id and
// processed_at. Content blocks are kept as they came: objects of type text,
// image, document, search_result.

// MessageFields belong to user.message, system.message and agent.message.
type MessageFields struct {
	// Content are blocks as they came, 1 to MaxContentBlocks.
	Content []json.RawMessage `json:"content"`
}

// InterruptFields belong to user.interrupt.
type InterruptFields struct {
	// SessionThreadID is the thread to interrupt; nil means the primary one.
	SessionThreadID *string `json:"session_thread_id,omitempty"`
}

// ConfirmationFields belong to user.tool_confirmation. Result is allow or deny.
type ConfirmationFields struct {
	// ToolUseID is the id of the event agent.tool_use or agent.mcp_tool_use that waits.
	ToolUseID string `json:"tool_use_id"`
	// Result is allow or deny.
	Result string `json:"result"`
	// DenyMessage, with deny only, tells the model why; at most 10,000 characters; nil when no reason
	// is given.
	DenyMessage *string `json:"deny_message,omitempty"`
}

// CustomToolResultFields belong to user.custom_tool_result.
type CustomToolResultFields struct {
	// CustomToolUseID is the id of the event agent.custom_tool_use that waits.
	CustomToolUseID string `json:"custom_tool_use_id"`
	// Content are blocks as they came; nil when the tool gave nothing.
	Content []json.RawMessage `json:"content,omitempty"`
	// IsError tells the model that the tool failed; nil means that it did not.
	IsError *bool `json:"is_error,omitempty"`
}

// ToolUseFields belong to agent.tool_use, agent.mcp_tool_use (with the server's
// name) and agent.custom_tool_use (without an evaluation). EvaluatedPermission
// is allow, ask or deny.
type ToolUseFields struct {
	// Name is the tool's name within its toolset.
	Name string `json:"name"`
	// MCPServerName is whose tool it is, of agent.mcp_tool_use.
	MCPServerName string          `json:"mcp_server_name,omitempty"`
	Input         json.RawMessage `json:"input"` // an object
	// EvaluatedPermission is allow, ask or deny; empty for a custom tool.
	EvaluatedPermission string `json:"evaluated_permission,omitempty"`
	// Evaluation says which policy came to that; nil for a custom tool.
	Evaluation *ToolEvaluation `json:"evaluation,omitempty"`
}

// ToolEvaluation says which permission policy decided. EvaluatedPermission is
// there with the type auto only.
type ToolEvaluation struct {
	Type string `json:"type"` // always_allow, always_ask, auto
	// EvaluatedPermission is there with the type auto only.
	EvaluatedPermission *AutoPermission `json:"evaluated_permission,omitempty"`
}

// AutoPermission is what the policy auto came to: allow, or ask or deny with a
// reason.
type AutoPermission struct {
	// Type is allow, ask or deny.
	Type string `json:"type"`
	// ReasonCode is a word of the API's list; empty with allow.
	ReasonCode string `json:"reason_code,omitempty"`
}

// ToolResultFields belong to agent.tool_result and agent.mcp_tool_result; one of
// the two ids is set.
type ToolResultFields struct {
	// ToolUseID is the id of the call, of agent.tool_result.
	ToolUseID string `json:"tool_use_id,omitempty"`
	// MCPToolUseID is the id of the call, of agent.mcp_tool_result.
	MCPToolUseID string `json:"mcp_tool_use_id,omitempty"`
	// Content are blocks in the order in which the tool gave them; nil when it gave none.
	Content []json.RawMessage `json:"content,omitempty"`
	// IsError: the tool failed, or the call did not run; nil for neither.
	IsError *bool `json:"is_error,omitempty"`
}

// IdleFields belong to session.status_idle.
type IdleFields struct {
	// StopReason is why the session waits.
	StopReason StopReason `json:"stop_reason"`
	// StopDetails is null unless the reason is refusal.
	StopDetails *StopDetails `json:"stop_details"`
}

// StopReason is end_turn, requires_action (with the ids of the uses that wait),
// retries_exhausted or refusal.
type StopReason struct {
	// Type is one of the Stop constants.
	Type string `json:"type"`
	// EventIDs are the calls that wait for the client, of requires_action.
	EventIDs []string `json:"event_ids,omitempty"`
}

// The types of StopReason.
const (
	StopEndTurn          = "end_turn"
	StopRequiresAction   = "requires_action"
	StopRetriesExhausted = "retries_exhausted"
	StopRefusal          = "refusal"
)

// StopDetails explains a refusal.
type StopDetails struct {
	Type string `json:"type"` // "refusal"
	// Category is the endpoint's word; null if it gave none.
	Category *string `json:"category"`
	// Explanation is the endpoint's sentence; null if it gave none.
	Explanation *string `json:"explanation"`
}

// ThreadFields belong to the session.thread_status_* events; the last two
// members to session.thread_status_idle only (see ThreadIdleFields).
type ThreadFields struct {
	// SessionThreadID is the thread whose status it is.
	SessionThreadID string `json:"session_thread_id"`
	// AgentName is the name of the thread's agent.
	AgentName string `json:"agent_name"`
}

// ThreadIdleFields belong to session.thread_status_idle.
type ThreadIdleFields struct {
	ThreadFields
	IdleFields
}

// ThreadCreatedFields belong to session.thread_created.
type ThreadCreatedFields struct {
	ThreadFields
	// WorkflowRunID is null: there are no workflows.
	WorkflowRunID *string `json:"workflow_run_id"`
}

// ErrorFields belong to session.error.
type ErrorFields struct {
	// Error is what went wrong.
	Error SessionError `json:"error"`
}

// SessionError is what went wrong in a session. MCPServerName is there with the
// two types of MCP errors only.
type SessionError struct {
	// Type is one of the Error constants.
	Type string `json:"type"`
	// Message is a sentence for people; it holds no address of the server's network and no secret.
	Message string `json:"message"`
	// RetryStatus says whether the server tries again.
	RetryStatus RetryStatus `json:"retry_status"`
	// MCPServerName is the server that failed, with the two types of MCP errors.
	MCPServerName string `json:"mcp_server_name,omitempty"`
}

// The types of SessionError that Atoll emits.
const (
	ErrorUnknown           = "unknown_error"
	ErrorModelOverloaded   = "model_overloaded_error"
	ErrorModelRateLimited  = "model_rate_limited_error"
	ErrorModelRequest      = "model_request_failed_error"
	ErrorMCPConnection     = "mcp_connection_failed_error"
	ErrorMCPAuthentication = "mcp_authentication_failed_error"
	ErrorBilling           = "billing_error"
	ErrorToolUseLimit      = "tool_use_limit_reached_error"
	ErrorCompactionLimit   = "compaction_limit_reached_error"
)

// RetryStatus is retrying (more may come), exhausted (the turn is over) or
// terminal (the session is).
type RetryStatus struct {
	// Type is one of the Retry constants.
	Type string `json:"type"`
}

// The types of RetryStatus.
const (
	RetryRetrying  = "retrying"
	RetryExhausted = "exhausted"
	RetryTerminal  = "terminal"
)

// UpdatedFields belong to session.updated: what changed, whole. Metadata that
// were cleared are absent.
type UpdatedFields struct {
	// Title is absent when it did not change.
	Title Opt[string] `json:"title,omitzero"`
	// Metadata are all pairs after the change; nil when they did not change or
	// none is left.
	Metadata map[string]string `json:"metadata,omitempty"`
	// Agent is the whole agent after the change; nil when it did not change.
	Agent *SessionAgent `json:"agent,omitempty"`
}

// UsageFields belong to session.usage.
type UsageFields struct {
	// Usage is the session's sum so far.
	Usage SessionUsage `json:"usage"`
}

// ModelRequestEndFields belong to span.model_request_end.
type ModelRequestEndFields struct {
	// IsError: the request brought no reply that could be used; null while that is not known.
	IsError *bool `json:"is_error"`
	// ModelRequestStartID is the id of the event span.model_request_start.
	ModelRequestStartID string `json:"model_request_start_id"`
	// ModelUsage counts what the endpoint said it used; a broken reply counts too.
	ModelUsage ModelUsage `json:"model_usage"`
}

// ModelUsage counts the tokens of one model request.
type ModelUsage struct {
	// InputTokens counts what was read beside the prompt cache.
	InputTokens int `json:"input_tokens"`
	// OutputTokens counts what was written, thinking included.
	OutputTokens int `json:"output_tokens"`
	// CacheCreationInputTokens counts what was written to the prompt cache.
	CacheCreationInputTokens int `json:"cache_creation_input_tokens"`
	// CacheReadInputTokens counts what was read from the prompt cache.
	CacheReadInputTokens int `json:"cache_read_input_tokens"`
	// Speed is the endpoint's word for how the request ran; empty if it gave none.
	Speed string `json:"speed,omitempty"`
}

// EventStartFrame is the streamed event_start: an event is being made.
type EventStartFrame struct {
	Type string `json:"type"` // "event_start"
	// Event is what will be stored under the same id, if it comes to its end.
	Event EventPreview `json:"event"`
}

// EventPreview names an event that is being made.
type EventPreview struct {
	Type string `json:"type"` // agent.message or agent.thinking
	// ID is the id of the event to come.
	ID string `json:"id"`
}

// EventDeltaFrame is the streamed event_delta: more text of an agent.message.
type EventDeltaFrame struct {
	Type string `json:"type"` // "event_delta"
	// EventID is the id of the event to come.
	EventID string `json:"event_id"`
	// Delta is the next piece.
	Delta ContentDelta `json:"delta"`
}

// ContentDelta is a piece of a text block.
type ContentDelta struct {
	Type string `json:"type"` // "content_delta"
	// Index is the place of the block in the event's content, from 0.
	Index int `json:"index"`
	// Content holds the piece of text.
	Content TextBlock `json:"content"`
}

// TextBlock is a content block of type text.
type TextBlock struct {
	Type string `json:"type"` // "text"
	// Text is UTF-8.
	Text string `json:"text"`
}
