package control

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// Config of a Service.
type Config struct {
	// Store remembers everything. Required.
	Store Store
	// Logger is told of what goes wrong beside requests; nil discards.
	Logger *slog.Logger
	// Now tells the time; nil means time.Now.
	Now func() time.Time
	// Templates answers which base templates there are.
	Templates TemplateNames
	// Runtime gives sessions their sandboxes. Nil refuses what needs one
	// (for tests of the resources alone).
	Runtime Runtime
	// Turns are the sessions' logs; nil means that the Service has them to itself.
	Turns *Turns
	// Loop runs the agents of the sessions. Nil refuses events that would start
	// work, for then nobody would do it.
	Loop Loop
}

// TemplateNames is what the resource rules need to know of templates.
type TemplateNames interface {
	Known(name string) bool
	Names() []string
}

// Runtime is what the resource rules tell the part of control that owns
// sandboxes and builds. The calls come after the change is durable.
type Runtime interface {
	// EnvironmentChanged is called after a create, an update of the config and
	// an archive; it starts the build of the layers if they are wanted. It does
	// not wait.
	EnvironmentChanged(rec EnvironmentRecord)
	// EnvironmentDeleted is called after a delete; it ends the builds that
	// nobody else wants.
	EnvironmentDeleted(id string)
	// SessionCreated starts preparing the session's sandbox. It does not wait.
	SessionCreated(rec SessionRecord)
	// SessionEnded ends the session's sandbox and frees all it had. It is
	// called before and after the row of a deleted session goes, and after a
	// session was archived. Repeating it is harmless.
	SessionEnded(ctx context.Context, rec SessionRecord) error
}

// Service holds the rules of the resources. Its methods may be called at the
// same time.
type Service struct {
	store     Store
	log       *slog.Logger
	now       func() time.Time
	templates TemplateNames
	runtime   Runtime
	turns     *Turns
	loop      Loop
	ids       ids
	extra     atomic.Pointer[extraKey] // set by EnsureDefault
}

// New makes a Service.
func New(cfg Config) *Service {
	s := &Service{store: cfg.Store, log: cfg.Logger, now: cfg.Now, templates: cfg.Templates, runtime: cfg.Runtime, turns: cfg.Turns, loop: cfg.Loop}
	if s.now == nil {
		s.now = time.Now
	}
	if s.turns == nil {
		s.turns = NewTurns(cfg.Store, s.now)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}
