package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Lengths beyond which a tool's input and output are cut on the screen.
const (
	maxShownInput  = 200
	maxShownOutput = 800
)

// show prints one event, and tells whether the turn is over or waits.
func (c *chat) show(f chatFrame) (idle bool, err error) {
	if f.err != nil {
		return false, fmt.Errorf("following the session: %w", f.err)
	}
	switch e := f.event; e.Type {
	case "event_delta":
		c.preview(e)
	case "agent.message":
		c.message(e)
	case "agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use":
		c.uses[e.ID] = e
		c.endLine()
		say(c.out, "· %s\n", callOf(e))
	case "agent.tool_result", "agent.mcp_tool_result":
		mark := "  "
		if e.IsError {
			mark = "! "
		}
		text := cut(printable(strings.TrimSpace(textOf(e.Content))), maxShownOutput)
		sayText(c.out, mark+strings.ReplaceAll(text, "\n", "\n"+mark)+"\n")
	case "session.error":
		c.endLine()
		say(c.err, "! %s\n", e.Error.Message)
	case "session.status_idle":
		c.endLine()
		return true, nil
	case "session.status_terminated", "session.deleted":
		return false, errors.New("the session has ended")
	}
	return false, nil
}

// preview prints a piece of a message that is being made.
func (c *chat) preview(e chatEvent) {
	text := e.Delta.Content.Text
	switch {
	case c.printed != e.EventID:
		c.endLine()
		c.printed, c.shown = e.EventID, ""
	case c.block != e.Delta.Index:
		text = "\n" + text
	}
	c.block = e.Delta.Index
	c.shown += text
	sayText(c.out, text)
}

// message prints what is not on the screen yet of a message that is whole: its
// previews may have been shed from some point on.
func (c *chat) message(e chatEvent) {
	text := textOf(e.Content)
	if c.printed == e.ID {
		rest, ok := strings.CutPrefix(text, c.shown)
		if text = rest; !ok {
			c.endLine()
			text = textOf(e.Content)
		}
	}
	c.printed = ""
	sayText(c.out, text+"\n")
}

// endLine ends a message that broke off.
func (c *chat) endLine() {
	if c.printed != "" {
		c.printed = ""
		sayText(c.out, "\n")
	}
}

// answer puts to the user what the agent waits for.
func (c *chat) answer(ctx context.Context, ids []string) error {
	var events []map[string]any
	for _, id := range ids {
		use, known := c.uses[id]
		if !known { // from before this program: it is asked about by its id
			use = chatEvent{Type: "agent.tool_use", Name: id}
		}
		custom := use.Type == "agent.custom_tool_use"
		if custom {
			say(c.err, "answer for %s: ", callOf(use))
		} else {
			say(c.err, "allow %s? [y/n] ", callOf(use))
		}
		var line string
		var ok bool
		select {
		case line, ok = <-c.lines:
		case <-c.interrupts:
		}
		if !ok {
			return c.sendEvents(ctx, map[string]any{"type": "user.interrupt"})
		}
		if line = strings.TrimSpace(line); custom && line == "" {
			line = "(no answer)"
		}
		events = append(events, answerTo(id, line, custom))
	}
	return c.sendEvents(ctx, events...)
}

// answerTo is the event that answers a use with a line that the user typed.
func answerTo(id, line string, custom bool) map[string]any {
	if custom {
		return map[string]any{"type": "user.custom_tool_result", "custom_tool_use_id": id,
			"content": []map[string]any{{"type": "text", "text": line}}}
	}
	e := map[string]any{"type": "user.tool_confirmation", "tool_use_id": id, "result": "deny"}
	switch strings.ToLower(line) {
	case "y", "yes":
		e["result"] = "allow"
	case "", "n", "no":
	default:
		e["deny_message"] = line
	}
	return e
}

func textOf(blocks []chatBlock) string {
	var all []string
	for _, b := range blocks {
		if b.Type == "text" {
			all = append(all, b.Text)
		} else {
			all = append(all, "["+b.Type+"]")
		}
	}
	return strings.Join(all, "\n")
}

// callOf is a tool call in one line.
func callOf(e chatEvent) string {
	name := e.Name
	if e.Server != "" {
		name = e.Server + "/" + name
	}
	var input map[string]json.RawMessage
	if json.Unmarshal(e.Input, &input) == nil && len(input) == 1 {
		for _, v := range input { // the only member says it all: bash's command
			var text string
			if json.Unmarshal(v, &text) == nil {
				return printable(name + ": " + cut(strings.ReplaceAll(text, "\n", "⏎"), maxShownInput))
			}
		}
	}
	var flat bytes.Buffer
	if json.Compact(&flat, e.Input) != nil || flat.Len() <= len("{}") {
		return printable(name)
	}
	return printable(name + " " + cut(flat.String(), maxShownInput))
}

func cut(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + " …"
	}
	return text
}
