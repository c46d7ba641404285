package api

import "encoding/json"

// Thread is a line of work in a session. A session has one, its primary thread.
type Thread struct {
	Type string `json:"type"` // "session_thread"
	// ID begins with "sthr_".
	ID string `json:"id"`
	// SessionID is the session that it belongs to.
	SessionID     string  `json:"session_id"`
	WorkflowRunID *string `json:"workflow_run_id"` // null: there are no workflows
	// Status is the session's.
	Status string `json:"status"`
	// Agent is what the thread runs.
	Agent          ThreadAgent `json:"agent"`
	ParentThreadID *string     `json:"parent_thread_id"` // null: it is the primary thread
	// CreatedAt is when the thread was made.
	CreatedAt Time `json:"created_at"`
	// UpdatedAt is when its status or usage last changed.
	UpdatedAt Time `json:"updated_at"`
	// ArchivedAt is null while the session is not archived.
	ArchivedAt *Time         `json:"archived_at"`
	Usage      *SessionUsage `json:"usage"` // null until it is idle for the first time
	Stats      *ThreadStats  `json:"stats"` // null until its status changes for the first time
}

// ThreadStats counts a thread's time.
type ThreadStats struct {
	// DurationSeconds is the time from the thread's start to its end, or to now.
	DurationSeconds *float64 `json:"duration_seconds,omitempty"`
	// ActiveSeconds is the time in which its status was running.
	ActiveSeconds *float64 `json:"active_seconds,omitempty"`
	// StartupSeconds is the time before it ran for the first time.
	StartupSeconds *float64 `json:"startup_seconds,omitempty"`
}

// ThreadAgent is the agent that a thread runs: as a session shows it, without
// multiagent.
type ThreadAgent SessionAgent

// MarshalJSON leaves multiagent out.
func (a ThreadAgent) MarshalJSON() ([]byte, error) {
	type plain SessionAgent
	return json.Marshal(struct {
		plain
		Multiagent *struct{} `json:"multiagent,omitempty"` // hides the other
	}{plain: plain(a)})
}
