package control

// Dialect is the family of error names a caller's key speaks.
type Dialect string

// The dialects. A key that begins with "sk-sb-" speaks SandBase's.
const (
	DialectAnthropic Dialect = "anthropic"
	DialectSandBase  Dialect = "sandbase"
)

// KeyKind says what a key is for.
type KeyKind string

// The kinds of keys.
const (
	KeyAPI         KeyKind = "api"         // everything in its workspace
	KeyEnvironment KeyKind = "environment" // self-hosted workers of one environment; none is made yet
	KeySession     KeyKind = "session"     // one session; none is made yet
)

// Caller is who asks: made once at the door from a verified key, and passed to
// every method. Everything is scoped by its workspace.
type Caller struct {
	// Workspace is the id of the workspace that all the caller does is scoped by.
	Workspace string
	// KeyID is the key's id, for logs.
	KeyID string
	// Kind says what the key is for.
	Kind KeyKind
	// Dialect chooses the names of errors in replies.
	Dialect Dialect
}
