package api

import "encoding/json"

// Opt is a request field that may be absent, null or a value. The zero Opt is
// absent. Fields of this type carry the tag option omitzero, so that an absent
// one stays absent when a request is written.
type Opt[T any] struct {
	Set  bool // the field was in the body, as null or as a value
	Null bool // the field was there and null
	// Value is the zero value unless the field was given.
	Value T
}

// Some is an Opt that holds a value.
func Some[T any](v T) Opt[T] { return Opt[T]{Set: true, Value: v} }

// Given reports whether there is a value: set and not null.
func (o Opt[T]) Given() bool { return o.Set && !o.Null }

// Or returns the value, or fallback when absent or null.
func (o Opt[T]) Or(fallback T) T {
	if o.Given() {
		return o.Value
	}
	return fallback
}

// IsZero reports whether the field is absent; encoding/json asks it.
func (o Opt[T]) IsZero() bool { return !o.Set }

// MarshalJSON writes null or the value.
func (o Opt[T]) MarshalJSON() ([]byte, error) {
	if !o.Given() {
		return []byte("null"), nil
	}
	return json.Marshal(o.Value)
}

// bind implements binder.
func (o *Opt[T]) bind(path string, n *node) error {
	o.Set = true
	if n.kind == kindNull {
		o.Null = true
		return nil
	}
	return bindValue(path, n, &o.Value)
}
