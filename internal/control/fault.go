package control

import (
	"errors"
	"fmt"
)

// Kind is what went wrong, from a closed list. Each kind has one HTTP status
// and one wire type per dialect (internal/httpapi holds the table and walks
// Kinds in a test).
type Kind string

// The kinds of faults.
const (
	Invalid         Kind = "invalid"         // the request can never succeed as it is: 400
	Unauthenticated Kind = "unauthenticated" // no key or a bad one: 401
	Forbidden       Kind = "forbidden"       // the key may not do this: 403
	NotFound        Kind = "not_found"       // no such thing in the caller's workspace: 404
	Conflict        Kind = "conflict"        // the state of things forbids it; a retry does not help: 409
	TooLarge        Kind = "too_large"       // the body exceeds the limit: 413
	RateLimited     Kind = "rate_limited"    // too many requests: 429
	Unavailable     Kind = "unavailable"     // no capacity or shutting down; a retry may help: 503
	Timeout         Kind = "timeout"         // the server gave up waiting: 504
)

// CodeBuildFailed is the Code of the fault that a session gets whose packages
// could not be installed.
const CodeBuildFailed = "environment_build_failed"

// Kinds lists every kind, for tests that walk the list.
var Kinds = []Kind{Invalid, Unauthenticated, Forbidden, NotFound, Conflict, TooLarge, RateLimited, Unavailable, Timeout}

// Fault is an error that a caller may see. Message is for the caller, Cause is
// for the log and never leaves the server.
type Fault struct {
	// Kind chooses the status and the error type.
	Kind Kind
	// Message is a sentence for the caller, without secrets and without the server's paths.
	Message string
	// Code becomes error.details.error_code when set.
	Code string
	// Details are further members of error.details.
	Details map[string]any
	// Cause is for the log and never leaves the server; nil when there is none.
	Cause error
}

// Error returns the caller's message.
func (f *Fault) Error() string { return f.Message }

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Cause }

// Faultf makes a fault; %w in the format sets the cause without its text being
// anything but what the format says.
func Faultf(kind Kind, format string, args ...any) *Fault {
	err := fmt.Errorf(format, args...)
	return &Fault{Kind: kind, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// AsFault finds the fault in err, if there is one.
func AsFault(err error) (*Fault, bool) {
	var f *Fault
	ok := errors.As(err, &f)
	return f, ok
}
