package httpapi

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// wireError is a kind of fault on the wire.
type wireError struct {
	status    int
	anthropic string
	sandbase  string
}

// internalError is what anything that is not a fault becomes.
var internalError = wireError{http.StatusInternalServerError, "api_error", "api_error"}

// errorTable is the only place that knows how a kind of fault looks.
var errorTable = map[control.Kind]wireError{
	control.Invalid:         {http.StatusBadRequest, "invalid_request_error", "invalid_request"},
	control.Unauthenticated: {http.StatusUnauthorized, "authentication_error", "authentication_error"},
	control.Forbidden:       {http.StatusForbidden, "permission_error", "permission_error"},
	control.NotFound:        {http.StatusNotFound, "not_found_error", "not_found"},
	control.Conflict:        {http.StatusConflict, "invalid_request_error", "conflict"},
	control.TooLarge:        {http.StatusRequestEntityTooLarge, "invalid_request_error", "invalid_request"},
	control.RateLimited:     {http.StatusTooManyRequests, "rate_limit_error", "rate_limit_error"},
	control.Unavailable:     {http.StatusServiceUnavailable, "overloaded_error", "overloaded_error"},
	control.Timeout:         {http.StatusGatewayTimeout, "timeout_error", "timeout_error"},
}

// statusClientGone is written in the log for a request whose client left.
const statusClientGone = 499

// writeError replies with an error. Nothing is written when the reply has begun.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	wire, fault := asFault(r, err)
	if fault.Kind == control.Conflict {
		// Clients retry a 409 unless told that it does not help.
		w.Header().Set("X-Should-Retry", "false")
	}
	if fault.Kind == control.RateLimited {
		w.Header().Set("Retry-After", "1")
	}
	writeFault(w, r, wire, fault)
}

// asFault is what an error looks like to the client. The request's note keeps
// the cause.
func asFault(r *http.Request, err error) (wireError, *control.Fault) {
	note := noteOf(r)
	fault, ok := control.AsFault(err)
	if !ok {
		var field *api.FieldError
		if errors.As(err, &field) {
			fault, ok = &control.Fault{Kind: control.Invalid, Message: field.Error()}, true
		}
	}
	if !ok {
		note.err = err
		wire := internalError
		if r.Context().Err() != nil {
			wire.status = statusClientGone
		}
		return wire, &control.Fault{Message: "Internal server error"}
	}
	note.err = fault
	if fault.Cause != nil {
		note.err = fault.Cause
	}
	wire, known := errorTable[fault.Kind]
	if !known {
		wire = internalError
	}
	return wire, fault
}

func (s *server) writeMethodNotAllowed(w http.ResponseWriter, r *http.Request, byMethod methods) {
	allowed := slices.Collect(maps.Keys(byMethod))
	if byMethod[http.MethodGet] != nil {
		allowed = append(allowed, http.MethodHead)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(slices.Compact(allowed), ", "))
	wire := wireError{http.StatusMethodNotAllowed, "invalid_request_error", "invalid_request"}
	writeFault(w, r, wire, &control.Fault{Message: "Method Not Allowed"})
}

// writeFault replies with an error. A body that was not read is not waited for.
func writeFault(w http.ResponseWriter, r *http.Request, wire wireError, fault *control.Fault) {
	answerUnread(w, r)
	writeJSON(w, wire.status, errorBody(noteOf(r), wire, fault))
}

func errorBody(note *note, wire wireError, fault *control.Fault) api.ErrorBody {
	body := api.ErrorBody{Type: "error", Error: api.Error{Type: wire.anthropic, Message: fault.Message}, RequestID: note.requestID}
	if note.dialect == control.DialectSandBase {
		body.Error.Type = wire.sandbase
	}
	if fault.Code != "" || len(fault.Details) > 0 {
		body.Error.Details = map[string]any{}
		maps.Copy(body.Error.Details, fault.Details)
		if fault.Code != "" {
			body.Error.Details["error_code"] = fault.Code
		}
	}
	return body
}
