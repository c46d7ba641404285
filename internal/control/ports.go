package control

import (
	"context"
	"errors"
	"time"
)

// Errors of a Store, for this package to translate into faults.
var (
	ErrNoRecord  = errors.New("no such record")
	ErrDuplicate = errors.New("duplicate name")
	ErrInUse     = errors.New("record is in use")
	ErrStale     = errors.New("record changed meanwhile")
	ErrLimit     = errors.New("the workspace has as many as it may have")
)

// The records below hold in columns what is queried and in Document, as JSON
// that only this package reads and writes, everything else. Times are UTC with
// microseconds. A zero ArchivedAt means not archived.

// Workspace separates tenants: nothing of one is visible in another.
type Workspace struct {
	// ID begins with "wrkspc_"; Name is unique and has 1 to 256 characters.
	ID, Name string
	// CreatedAt is when it was made.
	CreatedAt time.Time
	// ArchivedAt is when its keys ceased to open it; zero: they do.
	ArchivedAt time.Time
	// MaxSessions is how many sessions that are not archived it may have; 0: as
	// many as the server admits.
	MaxSessions int
}

// Key is an API key. The secret is kept as its SHA-256 only.
type Key struct {
	// ID is not the secret; Workspace is the id of the key's workspace; Name is for people.
	ID, Workspace, Name string
	// Kind says what the key is for.
	Kind  KeyKind
	Scope string // environment or session id for the narrower kinds, else empty
	// Hash is the SHA-256 of the secret.
	Hash [32]byte
	Hint string // the last four characters, for people
	// CreatedAt is when it was made.
	CreatedAt time.Time
	RevokedAt time.Time // zero: valid
}

// EnvironmentRecord is a stored environment.
type EnvironmentRecord struct {
	// Workspace is the id of the environment's workspace. Name is unique there among environments that
	// are not archived.
	ID, Workspace, Name string
	// Document holds everything else, as JSON that only this package reads.
	Document []byte
	// A zero ArchivedAt means not archived.
	CreatedAt, UpdatedAt, ArchivedAt time.Time
}

// AgentRecord is one version of an agent: the newest one, unless a version was
// asked for. Name, CreatedAt and ArchivedAt are the agent's.
type AgentRecord struct {
	// Workspace is the id of the agent's workspace. Name need not be unique.
	ID, Workspace, Name string
	// Version counts from 1.
	Version int
	// Document holds everything else, as JSON that only this package reads.
	Document []byte
	// UpdatedAt is of this version; a zero ArchivedAt means not archived.
	CreatedAt, UpdatedAt, ArchivedAt time.Time
}

// SessionRecord is a stored session.
type SessionRecord struct {
	// Workspace, Environment and Agent are ids.
	ID, Workspace, Environment, Agent string
	// AgentVersion is the version that the session pinned.
	AgentVersion int
	Status       string // the wire's words: idle, running, rescheduling, terminated
	// Document holds everything else, as JSON that only this package reads.
	Document []byte
	// A zero ArchivedAt means not archived.
	CreatedAt, UpdatedAt, ArchivedAt time.Time
}

// BuildRecord remembers the newest build of an environment: which base and
// layers its sandboxes get.
type BuildRecord struct {
	// Environment is the environment's id.
	Environment string
	// Wanted is a hash of what the environment asks for (template and
	// packages); a record whose Wanted differs from the environment's is stale.
	Wanted string
	Status string // queued, building, ready, failed
	// BaseDigest names the template version below the layers; empty until it is known.
	BaseDigest string
	Layers     []string // keys, lowest first
	Document   []byte   // the status shown to people
	Log        []byte   // compressed; not read back with the rest
	// UpdatedAt is when the record was written.
	UpdatedAt time.Time
}

// Page asks for one page of a list, newest first unless Ascending. After names
// the last row of the previous page (its creation time and id); with Before set
// instead the page that precedes that row is returned, in list order. The row
// itself need not be there any more; it is left out of the page unless Inclusive.
type Page struct {
	Limit     int   // rows at most; zero gives none
	After     *Mark // the last row of the page before; nil begins the list
	Before    *Mark // the first row of the page behind; nil goes forward
	Ascending bool  // oldest first; false is newest first
	Inclusive bool  // with the row of After or Before, if it is still there
}

// Mark is a place in a list ordered by creation time and id.
type Mark struct {
	CreatedAt time.Time // of the row, to the microsecond
	ID        string    // of the row, which decides between rows of one time
}

// AgentFilter selects agents. Zero times do not filter.
type AgentFilter struct {
	// Both bounds are inclusive.
	CreatedGTE, CreatedLTE time.Time
	// IncludeArchived takes archived agents too.
	IncludeArchived bool
}

// SessionFilter selects sessions. Zero values do not filter.
type SessionFilter struct {
	// Agent is an agent's id.
	Agent string
	// AgentVersion is a version of Agent.
	AgentVersion int
	// Statuses are the only ones to take; nil takes all.
	Statuses []string
	// The bounds hold for the session's creation.
	CreatedGT, CreatedGTE, CreatedLT, CreatedLTE time.Time
	// IncludeArchived takes archived sessions too.
	IncludeArchived bool
}

// EnvironmentStore keeps environments. Every method answers ErrNoRecord for an
// id of another workspace. What a method acknowledged is durable. List methods
// return at most page.Limit rows and whether there are more in that direction.
type EnvironmentStore interface {
	// CreateEnvironment answers ErrDuplicate when a not archived environment
	// of the workspace has the name.
	CreateEnvironment(ctx context.Context, rec EnvironmentRecord) error
	Environment(ctx context.Context, workspace, id string) (EnvironmentRecord, error)
	// UpdateEnvironment reads the record, lets change alter it and writes it
	// back in one transaction. When change reports no alteration nothing is
	// written. ErrDuplicate as for create. change's own error is returned as it is.
	UpdateEnvironment(ctx context.Context, workspace, id string, change func(*EnvironmentRecord) (altered bool, err error)) (EnvironmentRecord, error)
	ListEnvironments(ctx context.Context, workspace string, includeArchived bool, page Page) ([]EnvironmentRecord, bool, error)
	// DeleteEnvironment answers ErrInUse while a session (archived or not) refers to it.
	DeleteEnvironment(ctx context.Context, workspace, id string) error
}

// AgentStore keeps agents and all their versions.
type AgentStore interface {
	CreateAgent(ctx context.Context, rec AgentRecord) error
	// Agent answers the version asked for; 0 means the newest.
	Agent(ctx context.Context, workspace, id string, version int) (AgentRecord, error)
	// UpdateAgent lets change alter the newest version; an altered one is
	// stored as the next version (Version+1, set by the store before writing)
	// and returned. archive-only changes use ArchiveAgent.
	UpdateAgent(ctx context.Context, workspace, id string, change func(*AgentRecord) (altered bool, err error)) (AgentRecord, error)
	// ArchiveAgent sets ArchivedAt and UpdatedAt once; a second call changes nothing.
	ArchiveAgent(ctx context.Context, workspace, id string, at time.Time) (AgentRecord, error)
	ListAgents(ctx context.Context, workspace string, filter AgentFilter, page Page) ([]AgentRecord, bool, error)
	// ListAgentVersions lists newest version first; after is the last version
	// of the previous page, 0 for the first.
	ListAgentVersions(ctx context.Context, workspace, id string, after, limit int) ([]AgentRecord, bool, error)
}

// SessionStore keeps sessions.
type SessionStore interface {
	// CreateSession answers ErrNoRecord when the environment is gone, or its
	// workspace is archived, ErrStale when the environment is archived, and
	// ErrLimit when the workspace has its MaxSessions, checked in the same
	// transaction, in which initial becomes the session's queue.
	CreateSession(ctx context.Context, rec SessionRecord, initial ...EventRecord) error
	Session(ctx context.Context, workspace, id string) (SessionRecord, error)
	UpdateSession(ctx context.Context, workspace, id string, change func(*SessionRecord) (altered bool, err error)) (SessionRecord, error)
	ListSessions(ctx context.Context, workspace string, filter SessionFilter, page Page) ([]SessionRecord, bool, error)
	// DeleteSession removes a session with its events, if check agrees to what
	// it is in the same transaction; check's error is returned as it is.
	DeleteSession(ctx context.Context, workspace, id string, check func(SessionRecord) error) error
	// LiveSessions calls each for every session of every workspace that is not
	// archived, in no order, for reconciliation.
	LiveSessions(ctx context.Context, each func(SessionRecord) error) error
}

// KeyStore keeps workspaces and keys.
type KeyStore interface {
	CreateWorkspace(ctx context.Context, ws Workspace) error
	// ListWorkspaces lists all, archived ones included, oldest first.
	ListWorkspaces(ctx context.Context) ([]Workspace, error)
	// LimitWorkspace sets MaxSessions; ErrNoRecord if there is no such workspace.
	LimitWorkspace(ctx context.Context, id string, maxSessions int) error
	// ArchiveWorkspace sets ArchivedAt once; a second call changes nothing. It is
	// ErrInUse while the workspace has a session that is not archived, checked in
	// the same transaction, and ErrNoRecord if there is no such workspace.
	ArchiveWorkspace(ctx context.Context, id string, at time.Time) error
	// CreateKey answers ErrNoRecord when the workspace is gone, and ErrStale when
	// it is archived.
	CreateKey(ctx context.Context, key Key) error
	// KeyByHash finds a key that is not revoked, of a workspace that is not
	// archived.
	KeyByHash(ctx context.Context, hash [32]byte) (Key, error)
	ListKeys(ctx context.Context, workspace string) ([]Key, error)
	RevokeKey(ctx context.Context, workspace, id string, at time.Time) error
}

// BuildStore keeps what the environments' builds came to.
type BuildStore interface {
	// PutBuild replaces the record of an environment's build, unless still says
	// no to the environment as it is in the same transaction: that is ErrStale.
	// An environment that is gone is ErrNoRecord.
	PutBuild(ctx context.Context, rec BuildRecord, still func(EnvironmentRecord) bool) error
	// Build reads the record without its Log; ErrNoRecord if there is none.
	Build(ctx context.Context, environment string) (BuildRecord, error)
	// BuildLog reads the Log of the record; nil if it has none.
	BuildLog(ctx context.Context, environment string) ([]byte, error)
	// UnfinishedBuilds calls each with every environment that is not archived
	// and whose build was queued or building when it was last recorded, was
	// never recorded, or was last recorded before the environment changed.
	UnfinishedBuilds(ctx context.Context, each func(EnvironmentRecord) error) error
	// ReferencedLayers calls each with the base digest and layer keys of every
	// environment that is not archived or has a live session.
	ReferencedLayers(ctx context.Context, each func(environment, baseDigest string, layers []string) error) error
	// LayerEpoch reads the epoch of a workspace's package layers, 0 at first;
	// ErrNoRecord if there is no such workspace.
	LayerEpoch(ctx context.Context, workspace string) (int64, error)
	// RaiseLayerEpoch makes it the greater of atLeast and one more than it was,
	// and answers that.
	RaiseLayerEpoch(ctx context.Context, workspace string, atLeast int64) (int64, error)
	// EnvironmentWorkspace tells whose an environment is; ErrNoRecord if it is gone.
	EnvironmentWorkspace(ctx context.Context, environment string) (string, error)
}

// Store is everything that control needs remembered.
type Store interface {
	EnvironmentStore
	AgentStore
	SessionStore
	KeyStore
	BuildStore
	EventStore
}
