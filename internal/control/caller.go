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
	Workspace string
	KeyID     string
	Kind      KeyKind
	Dialect   Dialect
}
