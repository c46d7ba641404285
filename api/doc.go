// Package api names the wire: the types of requests and replies of the public
// API and of Atoll's own routes, and the strict reading of request bodies.
//
// It uses the standard library only and holds no rules beyond what a field is
// called, what kind of value it takes and which fields must be there; limits
// and meaning are internal/control's. Everything that [Decode] refuses is a
// [*FieldError] whose text may be shown to the caller.
package api
