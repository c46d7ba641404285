package api

import "encoding/json"

// The stages of a model's life.
const (
	ModelActive     = "active"     // open to all
	ModelDeprecated = "deprecated" // usable, and going to be retired
	ModelRetired    = "retired"    // not usable any more
)

// ModelInfo is a model that agents may name.
type ModelInfo struct {
	// ID is the name that agents send.
	ID string `json:"id"`
	// Type is "model".
	Type string `json:"type"`
	// DisplayName is for people; the id where the endpoint has no other.
	DisplayName string `json:"display_name"`
	// CreatedAt is when the model was released; the Unix epoch when that is not known.
	CreatedAt Time `json:"created_at"`
	// Lifecycle is active, deprecated or retired; active where the endpoint does not say.
	Lifecycle string `json:"lifecycle"`
	// Line is the family of the model, such as opus; null when the endpoint does not say.
	Line *string `json:"line"`
	// DeprecatedAt is when the model was last deprecated, null when it was not.
	DeprecatedAt *Time `json:"deprecated_at"`
	// RetiresAt is when the model is going to be retired, null when that is not planned.
	RetiresAt *Time `json:"retires_at"`
	// MaxInputTokens is the size of the model's context in tokens, null when not known.
	MaxInputTokens *int64 `json:"max_input_tokens"`
	// MaxTokens is how long a reply may be, in tokens, null when not known.
	MaxTokens *int64 `json:"max_tokens"`
	// Capabilities is the endpoint's object of capabilities, null when it gives none.
	Capabilities json.RawMessage `json:"capabilities"`
	// AllowedFallbackModels is null: it is of requests that Atoll does not make.
	AllowedFallbackModels []string `json:"allowed_fallback_models"`
}

// ModelList is one page of models.
type ModelList struct {
	// Data are the models, newest first as the endpoint lists them.
	Data []ModelInfo `json:"data"`
	// HasMore tells whether there are more in the direction that was asked for.
	HasMore bool `json:"has_more"`
	// FirstID is the before_id of the previous page, null when Data is empty.
	FirstID *string `json:"first_id"`
	// LastID is the after_id of the next page, null when Data is empty.
	LastID *string `json:"last_id"`
}
