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
	Type string `json:"type"` // "environment_build"
	// EnvironmentID is whose packages are built.
	EnvironmentID string `json:"environment_id"`
	// Status is one of the Build constants.
	Status string `json:"status"`
	// Template is the name of the template below the layers.
	Template string `json:"template"`
	// BaseDigest names the template's content; empty until the template is there.
	BaseDigest string `json:"base_digest"`
	// Layers stand in build order, one for each manager with packages; never null.
	Layers []BuildLayer `json:"layers"`
	// Error is null unless the status is failed.
	Error *BuildError `json:"error"`
	// StartedAt is null until the build begins.
	StartedAt *time.Time `json:"started_at"`
	// FinishedAt is null until the build has ended.
	FinishedAt *time.Time `json:"finished_at"`
	// DurationMS is the time from the start to the end, or to now, in milliseconds.
	DurationMS int64 `json:"duration_ms"`
	// CacheHits counts the layers that were there already.
	CacheHits int `json:"cache_hits"`
}

// BuildLayer is what one package manager installed.
type BuildLayer struct {
	// Manager is apt, cargo, gem, go, npm or pip.
	Manager string `json:"manager"`
	// State is queued, building, ready or failed.
	State string `json:"state"`
	// Hit: the layer was there already and nothing was installed.
	Hit bool `json:"hit"`
	// Key is the layer's name in the layer store; empty until the layers below are known.
	Key string `json:"key"`
	// SizeBytes is what the layer takes on the disk; 0 until it is ready.
	SizeBytes int64 `json:"size_bytes"`
	// DurationMS is how long the install took, in milliseconds; 0 for a hit.
	DurationMS int64 `json:"duration_ms"`
	// Packages are what the layer added, as its manager lists it; never null.
	Packages []BuildPackage `json:"packages"`
}

// BuildPackage is one installed package.
type BuildPackage struct {
	// Name is the manager's name for the package.
	Name string `json:"name"`
	// Version is what was installed, as the manager writes it; empty if it does not say.
	Version   string `json:"version"`
	Requested bool   `json:"requested"` // named by the environment, not a dependency
}

// BuildError says why a build failed, in the manager's words.
type BuildError struct {
	// Manager is whose install failed; empty when the template did.
	Manager string `json:"manager"`
	// Kind is a word to branch on, like package_not_found, conflict or timeout; docs/packages.md lists
	// them.
	Kind string `json:"kind"`
	// Package is the entry that failed, as the environment names it; empty if it is not known.
	Package string `json:"package"`
	Index   int    `json:"index"` // of the package in the manager's list; -1: unknown
	// ExitCode is the package manager's; 0 when it did not come to that.
	ExitCode int `json:"exit_code"`
	// Attempts is how often the install was tried.
	Attempts int `json:"attempts"`
	// Message is a sentence for people.
	Message string `json:"message"`
	Tail    string `json:"tail"` // the last lines of the log
}

// Template is a root filesystem that environments may choose.
type Template struct {
	// Name is what base_template takes.
	Name string `json:"name"`
	// Description is a sentence for people; empty if the template has none.
	Description string `json:"description"`
	// Status is declared (it is made at its first use) or built.
	Status string `json:"status"`
	// Digest names the content; empty until it is built.
	Digest string `json:"digest"`
	// SizeBytes is what it takes on the disk; 0 until it is built.
	SizeBytes int64 `json:"size_bytes"`
	// Registries are the hosts that its package managers download from, and
	// that allow_package_managers opens.
	Registries []TemplateRegistry `json:"registries"`
	Managers   map[string]string  `json:"managers"` // manager → version
	Runtimes   map[string]string  `json:"runtimes"` // name → version
}

// TemplateRegistry is one host that a package manager of a template uses.
type TemplateRegistry struct {
	// Manager is the package manager that uses the host.
	Manager string `json:"manager"`
	// Host is a host name or an address, in lower case.
	Host string `json:"host"`
	Port int    `json:"port"` // 0: 80 and 443
	How  string `json:"how"`  // asked, observed or operator
}

// DataPage is a part of a list, newest first. The rest, if there is more, comes
// with the id of the last element as "before".
type DataPage[T any] struct {
	// Data is the page, newest first; never null.
	Data []T `json:"data"`
	// HasMore tells whether there is more behind this page.
	HasMore bool `json:"has_more"`
}

// DataList is a list without pages.
type DataList[T any] struct {
	// Data is the whole list; never null.
	Data []T `json:"data"`
}

// Exec asks for a command in a session's sandbox: Command or Shell, not both.
type Exec struct {
	// Command is a program and its arguments, found on the sandbox's PATH.
	Command Opt[[]string] `json:"command,omitzero"`
	// Shell is run by /bin/sh -c.
	Shell Opt[string] `json:"shell,omitzero"`
	// Cwd is absolute or relative to /workspace; absent means /workspace.
	Cwd Opt[string] `json:"cwd,omitzero"`
	// Env is added to the sandbox's own environment variables.
	Env Opt[map[string]string] `json:"env,omitzero"`
	// Stdin is the whole standard input; absent means none.
	Stdin Opt[string] `json:"stdin,omitzero"`
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
	Data string `json:"data"`
	// Encoding is "base64" where the bytes are not UTF-8; empty otherwise.
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
	// Code is the exit status; 128 and the signal's number if a signal ended the command.
	Code int `json:"code"`
	// Signal is the name of the signal that ended the command, like "SIGKILL"; null if none did.
	Signal *string `json:"signal"`
	// TimedOut: the command was ended because its timeout had passed.
	TimedOut bool `json:"timed_out"`
	// DurationMS is how long the command ran, in milliseconds.
	DurationMS int64 `json:"duration_ms"`
}

// ExecResult is the reply to an exec that does not stream.
type ExecResult struct {
	// Stdout is what the command wrote to standard output.
	Stdout         string `json:"stdout"`
	StdoutEncoding string `json:"stdout_encoding,omitempty"` // "base64" where the bytes are not UTF-8
	// Stderr is what the command wrote to standard error.
	Stderr string `json:"stderr"`
	// StderrEncoding is as StdoutEncoding.
	StderrEncoding string `json:"stderr_encoding,omitempty"`
	// Truncated: the command wrote more than the reply holds.
	Truncated bool `json:"truncated"`
	ExecEnd
}

// ShellControl is a text frame of the shell's WebSocket. The client sends
// "resize" with Rows and Cols; the server sends "exit" or "error".
type ShellControl struct {
	// Type is resize, exit or error.
	Type string `json:"type"`
	// Rows is the terminal's height in characters, of resize.
	Rows uint16 `json:"rows,omitempty"`
	// Cols is the terminal's width in characters, of resize.
	Cols uint16 `json:"cols,omitempty"`
	// Code is the shell's exit status, of exit.
	Code *int `json:"code,omitempty"`
	// Signal is the name of the signal that ended the shell, of exit; nil if none did.
	Signal *string `json:"signal,omitempty"`
	// Message says why there is no shell, of error.
	Message string `json:"message,omitempty"`
}
