package api

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// The limits of what is sent to a session.
const (
	// MaxSendEvents is how many events a request may send.
	MaxSendEvents = 100
	// MaxInitialEvents is how many events a session may begin with.
	MaxInitialEvents = 50
	// MaxContentBlocks is how many blocks the content of an event may have.
	MaxContentBlocks = 1000
	maxDenyMessage   = 10_000
	maxUseID         = 128
)

// EventsSend is the body of a send.
type EventsSend struct {
	// Events are 1 to MaxSendEvents, taken all or none.
	Events []EventParams `json:"events" api:"required"`
}

// EventsSent answers a send: the events as they are stored, in the order in
// which they were sent.
type EventsSent struct {
	// Data are whole events, with ids; never null.
	Data []json.RawMessage `json:"data"`
}

// EventParams is an event in a request: Type says which of the members is set.
// user.message and system.message have Message.
type EventParams struct {
	// Type is one of the types of events that a client may send.
	Type string
	// Message belongs to user.message and system.message.
	Message *MessageFields
	// Interrupt belongs to user.interrupt.
	Interrupt *InterruptFields
	// Confirmation belongs to user.tool_confirmation.
	Confirmation *ConfirmationFields
	// ToolResult belongs to user.custom_tool_result.
	ToolResult *CustomToolResultFields
}

// Fields is what the event has beside its head, as it is stored.
func (p EventParams) Fields() ([]byte, error) {
	switch {
	case p.Message != nil:
		return json.Marshal(p.Message)
	case p.Interrupt != nil:
		return json.Marshal(p.Interrupt)
	case p.Confirmation != nil:
		return json.Marshal(p.Confirmation)
	}
	return json.Marshal(p.ToolResult)
}

// MarshalJSON writes the event as a client would send it.
func (p EventParams) MarshalJSON() ([]byte, error) {
	fields, err := p.Fields()
	if err != nil {
		return nil, err
	}
	head, err := json.Marshal(p.Type)
	if err != nil {
		return nil, err
	}
	text := append([]byte(`{"type":`), head...)
	if len(fields) > len("{}") {
		text = append(text, ',')
	}
	return append(text, fields[1:]...), nil
}

// sendable are the types of events that the API takes; those in refused are
// for what this server does not have.
var (
	sendable = []string{EventUserMessage, EventUserInterrupt, EventUserToolConfirmation, EventUserCustomToolResult,
		"user.define_outcome", "user.tool_result", EventSystemMessage}
	refused = map[string]string{
		"user.define_outcome": "'user.define_outcome' is not supported yet by this server: it has no outcomes",
		"user.tool_result":    "'user.tool_result' is for sessions on self-hosted environments, which this server does not have yet",
	}
)

func (p *EventParams) bind(path string, n *node) (err error) {
	if p.Type, err = bindArm(path, n, sendable...); err != nil {
		return err
	}
	if reason := refused[p.Type]; reason != "" {
		return fieldErrorf(join(path, "type"), "%s", reason)
	}
	switch p.Type {
	case EventUserInterrupt:
		var in struct {
			Type   string      `json:"type"`
			Thread Opt[string] `json:"session_thread_id"`
		}
		err = bindObject(path, n, &in)
		p.Interrupt = &InterruptFields{}
		if in.Thread.Given() {
			p.Interrupt.SessionThreadID = &in.Thread.Value
		}
	case EventUserToolConfirmation:
		p.Confirmation, err = bindConfirmation(path, n)
	case EventUserCustomToolResult:
		p.ToolResult, err = bindToolResult(path, n)
	default:
		p.Message, err = bindMessage(path, n, p.Type)
	}
	return err
}

func bindMessage(path string, n *node, kind string) (*MessageFields, error) {
	var in struct {
		Type    string     `json:"type"`
		Content rawContent `json:"content" api:"required"`
	}
	if err := bindObject(path, n, &in); err != nil {
		return nil, err
	}
	at := join(path, "content")
	allowed := []string{"text", "image", "document"}
	if kind == EventSystemMessage {
		allowed = allowed[:1]
	}
	blocks, err := in.Content.blocks(at, allowed)
	switch {
	case err != nil:
	case len(blocks) == 0:
		err = fieldErrorf(at, "List should have at least 1 item")
	case in.Content.blank():
		err = fieldErrorf(at, "At least one block must hold more than white space")
	}
	return &MessageFields{Content: blocks}, err
}

func bindConfirmation(path string, n *node) (*ConfirmationFields, error) {
	var in struct {
		Type        string      `json:"type"`
		ToolUseID   string      `json:"tool_use_id" api:"required"`
		Result      string      `json:"result" api:"required"`
		DenyMessage Opt[string] `json:"deny_message"`
	}
	if err := bindObject(path, n, &in); err != nil {
		return nil, err
	}
	if err := checkUseID(join(path, "tool_use_id"), in.ToolUseID); err != nil {
		return nil, err
	}
	if err := enum(join(path, "result"), in.Result, "allow", "deny"); err != nil {
		return nil, err
	}
	out := &ConfirmationFields{ToolUseID: in.ToolUseID, Result: in.Result}
	if in.DenyMessage.Given() {
		at := join(path, "deny_message")
		switch {
		case in.Result != "deny":
			return nil, fieldErrorf(at, "Only allowed when result is 'deny'")
		case longerThan(in.DenyMessage.Value, maxDenyMessage):
			return nil, fieldErrorf(at, "String should have at most %d characters", maxDenyMessage)
		}
		out.DenyMessage = &in.DenyMessage.Value
	}
	return out, nil
}

func bindToolResult(path string, n *node) (*CustomToolResultFields, error) {
	var in struct {
		Type    string     `json:"type"`
		UseID   string     `json:"custom_tool_use_id" api:"required"`
		Content rawContent `json:"content"`
		IsError Opt[bool]  `json:"is_error"`
	}
	if err := bindObject(path, n, &in); err != nil {
		return nil, err
	}
	if err := checkUseID(join(path, "custom_tool_use_id"), in.UseID); err != nil {
		return nil, err
	}
	blocks, err := in.Content.blocks(join(path, "content"), resultBlocks)
	out := &CustomToolResultFields{CustomToolUseID: in.UseID, Content: blocks}
	if in.IsError.Given() {
		out.IsError = &in.IsError.Value
	}
	return out, err
}

func checkUseID(path, id string) error {
	switch {
	case id == "":
		return fieldErrorf(path, "String should have at least 1 character")
	case longerThan(id, maxUseID):
		return fieldErrorf(path, "String should have at most %d characters", maxUseID)
	}
	return nil
}

// longerThan tells whether s has more than so many characters.
func longerThan(s string, most int) bool {
	if len(s) <= most {
		return false
	}
	count := 0
	for range s {
		count++
	}
	return count > most
}

// rawContent is the content of an event before it is known which blocks it may
// have.
type rawContent struct{ list *node }

func (c *rawContent) bind(path string, n *node) error {
	if n.kind != kindList {
		return fieldErrorf(path, "Input should be a valid list")
	}
	c.list = n
	return nil
}

// blocks checks the content and answers it block by block as it came.
func (c rawContent) blocks(path string, allowed []string) ([]json.RawMessage, error) {
	if c.list == nil {
		return nil, nil
	}
	if len(c.list.items) > MaxContentBlocks {
		return nil, fieldErrorf(path, "List should have at most %d items", MaxContentBlocks)
	}
	blocks := make([]json.RawMessage, 0, len(c.list.items))
	for i, item := range c.list.items {
		if err := checkBlock(index(path, i), item, allowed); err != nil {
			return nil, err
		}
		blocks = append(blocks, item.raw())
	}
	return blocks, nil
}

// blank tells whether there is nothing but white space; the blocks are checked.
func (c rawContent) blank() bool {
	return !slices.ContainsFunc(c.list.items, func(item *node) bool {
		text := item.field("text")
		return text == nil || strings.TrimSpace(text.text) != ""
	})
}

func checkBlock(path string, n *node, allowed []string) error {
	if t := n.field("type"); n.kind == kindObject && t != nil && t.text == "redacted" && len(allowed) > 1 {
		return fieldErrorf(join(path, "type"), "A block of type 'redacted' cannot be sent")
	}
	arm, err := bindArm(path, n, allowed...)
	if err != nil {
		return err
	}
	switch arm {
	case "text":
		return checkText(path, n)
	case "image":
		var in struct {
			Type   string    `json:"type"`
			Source rawObject `json:"source" api:"required"`
		}
		if err := bindObject(path, n, &in); err != nil {
			return err
		}
		return checkSource(join(path, "source"), in.Source.node, "base64", "url", "file")
	case "document":
		var in struct {
			Type    string      `json:"type"`
			Source  rawObject   `json:"source" api:"required"`
			Title   Opt[string] `json:"title"`
			Context Opt[string] `json:"context"`
		}
		if err := bindObject(path, n, &in); err != nil {
			return err
		}
		return checkSource(join(path, "source"), in.Source.node, "base64", "text", "url", "file")
	}
	return checkSearchResult(path, n)
}

func checkText(path string, n *node) error {
	var in struct {
		Type string `json:"type"`
		Text string `json:"text" api:"required"`
	}
	if err := bindObject(path, n, &in); err != nil {
		return err
	}
	return checkFilled(join(path, "text"), in.Text)
}

func checkFilled(path, s string) error {
	if s == "" {
		return fieldErrorf(path, "String should have at least 1 character")
	}
	return nil
}

// rawObject is a value that is read later.
type rawObject struct{ node *node }

func (o *rawObject) bind(_ string, n *node) error {
	o.node = n
	return nil
}

// checkSource checks where an image or a document comes from; arms has "text"
// for documents only.
func checkSource(path string, n *node, arms ...string) error {
	arm, err := bindArm(path, n, arms...)
	if err != nil {
		return err
	}
	switch arm {
	case "file":
		return fieldErrorf(join(path, "type"), "'file' is not supported yet by this server: it has no files API")
	case "url":
		var in struct {
			Type string `json:"type"`
			URL  string `json:"url" api:"required"`
		}
		if err := bindObject(path, n, &in); err != nil {
			return err
		}
		u, err := url.Parse(in.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return fieldErrorf(join(path, "url"), "Input should be an http or https URL")
		}
		return nil
	}
	var in struct {
		Type      string `json:"type"`
		MediaType string `json:"media_type" api:"required"`
		Data      string `json:"data" api:"required"`
	}
	if err := bindObject(path, n, &in); err != nil {
		return err
	}
	types := ImageTypes[:]
	switch {
	case arm == "text":
		types = []string{"text/plain"}
	case slices.Contains(arms, "text"):
		types = []string{TypePDF}
	}
	if err := enum(join(path, "media_type"), in.MediaType, types...); err != nil {
		return err
	}
	if err := checkFilled(join(path, "data"), in.Data); err != nil || arm == "text" {
		return err
	}
	data, err := base64.StdEncoding.Strict().DecodeString(in.Data)
	if err != nil {
		return fieldErrorf(join(path, "data"), "Input should be valid base64")
	}
	if got := MediaTypeOf(data); got != in.MediaType {
		return fieldErrorf(join(path, "data"), "The data is not of type '%s'", in.MediaType)
	}
	return nil
}

func checkSearchResult(path string, n *node) error {
	var in struct {
		Type      string      `json:"type"`
		Source    string      `json:"source" api:"required"`
		Title     string      `json:"title" api:"required"`
		Content   []rawObject `json:"content" api:"required"`
		Citations struct {
			Enabled bool `json:"enabled" api:"required"`
		} `json:"citations" api:"required"`
	}
	if err := bindObject(path, n, &in); err != nil {
		return err
	}
	if err := checkFilled(join(path, "source"), in.Source); err != nil {
		return err
	}
	if err := checkFilled(join(path, "title"), in.Title); err != nil {
		return err
	}
	for i, item := range in.Content {
		at := index(join(path, "content"), i)
		if _, err := bindArm(at, item.node, "text"); err != nil {
			return err
		}
		if err := checkText(at, item.node); err != nil {
			return err
		}
	}
	return nil
}

// InitialEventParams is an event that a session begins with.
type InitialEventParams struct{ EventParams }

func (p *InitialEventParams) bind(path string, n *node) error {
	if _, err := bindArm(path, n, EventUserMessage, "user.define_outcome"); err != nil {
		return err
	}
	return p.EventParams.bind(path, n)
}
