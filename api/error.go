package api

// ErrorBody is the body of every reply that is not a success.
type ErrorBody struct {
	Type string `json:"type"` // "error"
	// Error is what went wrong.
	Error     Error  `json:"error"`
	RequestID string `json:"request_id"` // equal to the header request-id
}

// Error is what went wrong. Clients branch on details.error_code, never on the message.
type Error struct {
	// Type is one of the API's error types, like invalid_request_error; it follows from the status.
	Type string `json:"type"`
	// Message is a sentence for people; it may change.
	Message string `json:"message"`
	// Details hold at least error_code where there are any; absent otherwise.
	Details map[string]any `json:"details,omitempty"`
}

// List is a page of a list that goes forward only.
type List[T any] struct {
	// Data is the page; never null.
	Data []T `json:"data"`
	// NextPage is the cursor of the next page; null on the last one.
	NextPage *string `json:"next_page"`
}

// PagedList is a page of a list that goes both ways.
type PagedList[T any] struct {
	// Data is the page; never null.
	Data []T `json:"data"`
	// NextPage is the cursor of the next page; null on the last one.
	NextPage *string `json:"next_page"`
	// PrevPage is the cursor of the page before; null on the first one.
	PrevPage *string `json:"prev_page"`
}

// Deleted is the reply to a delete.
type Deleted struct {
	// ID is what was deleted.
	ID string `json:"id"`
	// Type is the kind of the resource and "_deleted", like session_deleted.
	Type string `json:"type"`
}
