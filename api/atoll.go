package api

import "time"

// The types below are Atoll's own, served under /atoll/v1.

// The states of a build.
const (
	BuildNone     = "none" // nothing was built for the environment yet
	BuildQueued   = "queued"
	BuildBuilding = "building"
	BuildReady    = "ready"
	BuildFailed   = "failed"
)

// Build is the newest build of an environment's packages.
type Build struct {
	Type          string       `json:"type"` // "environment_build"
	EnvironmentID string       `json:"environment_id"`
	Status        string       `json:"status"`
	Template      string       `json:"template"`
	BaseDigest    string       `json:"base_digest"`
	Layers        []BuildLayer `json:"layers"`
	Error         *BuildError  `json:"error"`
	StartedAt     *time.Time   `json:"started_at"`
	FinishedAt    *time.Time   `json:"finished_at"`
	DurationMS    int64        `json:"duration_ms"`
	CacheHits     int          `json:"cache_hits"`
}

// BuildLayer is what one package manager installed.
type BuildLayer struct {
	Manager string `json:"manager"`
	State   string `json:"state"`
	// Hit: the layer was there already and nothing was installed.
	Hit        bool           `json:"hit"`
	Key        string         `json:"key"`
	SizeBytes  int64          `json:"size_bytes"`
	DurationMS int64          `json:"duration_ms"`
	Packages   []BuildPackage `json:"packages"`
}

// BuildPackage is one installed package.
type BuildPackage struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	Requested bool   `json:"requested"` // named by the environment, not a dependency
}

// BuildError says why a build failed, in the manager's words.
type BuildError struct {
	Manager  string `json:"manager"`
	Kind     string `json:"kind"`
	Package  string `json:"package"`
	Index    int    `json:"index"` // of the package in the manager's list; -1: unknown
	ExitCode int    `json:"exit_code"`
	Attempts int    `json:"attempts"`
	Message  string `json:"message"`
	Tail     string `json:"tail"` // the last lines of the log
}

// Template is a root filesystem that environments may choose.
type Template struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Status      string `json:"status"`
	Digest      string `json:"digest"`
	SizeBytes   int64  `json:"size_bytes"`
	// Registries are the hosts that its package managers download from, and
	// that allow_package_managers opens.
	Registries []TemplateRegistry `json:"registries"`
	Managers   map[string]string  `json:"managers"` // manager → version
	Runtimes   map[string]string  `json:"runtimes"` // name → version
}

// TemplateRegistry is one host that a package manager of a template uses.
type TemplateRegistry struct {
	Manager string `json:"manager"`
	Host    string `json:"host"`
	Port    int    `json:"port"` // 0: 80 and 443
	How     string `json:"how"`  // asked, observed or operator
}

// DataPage is a part of a list, newest first. The rest, if there is more, comes
// with the id of the last element as "before".
type DataPage[T any] struct {
	Data    []T  `json:"data"`
	HasMore bool `json:"has_more"`
}

// DataList is a list without pages.
type DataList[T any] struct {
	Data []T `json:"data"`
}

// Exec asks for a command in a session's sandbox: Command or Shell, not both.
type Exec struct {
	Command Opt[[]string] `json:"command,omitzero"`
	// Shell is run by /bin/sh -c.
	Shell Opt[string] `json:"shell,omitzero"`
	// Cwd is absolute or relative to /workspace; absent means /workspace.
	Cwd   Opt[string]            `json:"cwd,omitzero"`
	Env   Opt[map[string]string] `json:"env,omitzero"`
	Stdin Opt[string]            `json:"stdin,omitzero"`
	// StdinEncoding is "utf-8" (the default) or "base64".
	StdinEncoding Opt[string] `json:"stdin_encoding,omitzero"`
	// TimeoutMS ends the whole process group when it has passed; absent means
	// that it may run as long as the client stays connected.
	TimeoutMS Opt[int64] `json:"timeout_ms,omitzero"`
}

// ExecEvent is one line of an exec stream: a piece of output.
type ExecEvent struct {
	Type string `json:"type"` // stdout or stderr
	// Data is output; base64 when Encoding says so.
	Data     string `json:"data"`
	Encoding string `json:"encoding,omitempty"`
}

// ExecInput, over a WebSocket, says that the command has taken a piece of
// standard input.
type ExecInput struct {
	Type string `json:"type"` // "stdin"
}

// ExecExit is the last line of an exec stream.
type ExecExit struct {
	Type string `json:"type"` // "exit"
	ExecEnd
}

// ExecEnd says how a command ended.
type ExecEnd struct {
	Code       int     `json:"code"`
	Signal     *string `json:"signal"`
	TimedOut   bool    `json:"timed_out"`
	DurationMS int64   `json:"duration_ms"`
}

// ExecResult is the reply to an exec that does not stream.
type ExecResult struct {
	Stdout         string `json:"stdout"`
	StdoutEncoding string `json:"stdout_encoding,omitempty"` // "base64" where the bytes are not UTF-8
	Stderr         string `json:"stderr"`
	StderrEncoding string `json:"stderr_encoding,omitempty"`
	// Truncated: the command wrote more than the reply holds.
	Truncated bool `json:"truncated"`
	ExecEnd
}

// ShellControl is a text frame of the shell's WebSocket. The client sends
// "resize" with Rows and Cols; the server sends "exit" or "error".
type ShellControl struct {
	Type    string  `json:"type"`
	Rows    uint16  `json:"rows,omitempty"`
	Cols    uint16  `json:"cols,omitempty"`
	Code    *int    `json:"code,omitempty"`
	Signal  *string `json:"signal,omitempty"`
	Message string  `json:"message,omitempty"`
}
