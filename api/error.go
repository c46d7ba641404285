package api

// ErrorBody is the body of every reply that is not a success.
type ErrorBody struct {
	Type      string `json:"type"` // "error"
	Error     Error  `json:"error"`
	RequestID string `json:"request_id"` // equal to the header request-id
}

// Error is what went wrong. Clients branch on details.error_code, never on the message.
type Error struct {
	Type    string         `json:"type"`
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
}

// List is a page of a list that goes forward only.
type List[T any] struct {
	Data     []T     `json:"data"`
	NextPage *string `json:"next_page"`
}

// PagedList is a page of a list that goes both ways.
type PagedList[T any] struct {
	Data     []T     `json:"data"`
	NextPage *string `json:"next_page"`
	PrevPage *string `json:"prev_page"`
}

// Deleted is the reply to a delete.
type Deleted struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}
