package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// summaryPrompt asks for what takes the place of a conversation that has become
// too long.
const summaryPrompt = `Summarize the conversation so far, because it is about to be replaced by your summary. Write down everything that is needed to go on: ` +
	`what the user asked for and any constraints, in their words where these matter; what was done and found, with exact names, paths, values and errors; ` +
	`what is under way; what is left to do. Do not use tools. Answer with the summary alone.`

// needsCompaction tells whether the next request may not fit the model's window:
// what the last one had, and room for a reply.
func (c *conversation) needsCompaction(m *Client) bool {
	return !c.reduced && c.tokens > 0 && c.tokens+m.config.MaxTokens > m.config.ContextWindow
}

// tooLong handles a request that did not fit: the conversation is compacted,
// unless that was just done. used are the tokens of the request.
func (r *run) tooLong(used api.ModelUsage) error {
	end := r.requestEnd(used, true, nil)
	switch {
	case r.conv.reduced:
		return r.giveUp([]control.EventRecord{end}, api.ErrorCompactionLimit,
			"The conversation does not fit the model's context window, and compacting it did not help.")
	case len(r.conv.messages) < 2:
		return r.giveUp([]control.EventRecord{end}, api.ErrorCompactionLimit,
			"The conversation does not fit the model's context window, and it is one message alone, which cannot be compacted.")
	}
	if err := r.record(end); err != nil {
		return err
	}
	return r.compact(nil, nil)
}

// compact replaces the conversation by the model's summary of it. The input, what
// the user said last and the system messages, which hold for all that follows,
// stay as they are. first are events that come before; among them are those that
// tell of missing.
func (r *run) compact(first []control.EventRecord, missing []*toolset.ServerError) error {
	if err := r.commit(append(first, r.event(api.EventModelRequestStart, nil))...); err != nil {
		return err
	}
	r.markTold(missing)
	whole := r.conv.messages
	old, kept := splitForSummary(whole)
	req := r.modelRequest()
	req.messages, req.noTools = addUser(old, textBlock("%s", summaryPrompt)), true
	rep, _, err := r.request(req, false)
	if err != nil {
		if classify(err).tooLong && !errors.Is(err, errInterrupted) {
			end := r.requestEnd(rep.usage, true, nil)
			return r.giveUp([]control.EventRecord{end}, api.ErrorCompactionLimit,
				"The conversation does not fit the model's context window, not even to be summarized.")
		}
		return r.requestFailed(err, rep.usage)
	}
	var summary string
	for _, b := range rep.blocks {
		if b.kind == "text" && rep.stop != stopRefusal {
			summary += b.text
		}
	}
	if strings.TrimSpace(summary) == "" {
		return r.requestFailed(errNoSummary, rep.usage)
	}
	begin := textBlock("%s", fmt.Sprintf("The conversation before this was replaced by this summary of it:\n\n%s", summary))
	next := []message{{"user", append([]json.RawMessage{begin}, kept...)}}
	next = addSystem(next, systemBlocks(whole)...)
	done := r.event(api.EventContextCompacted, nil)
	done.Private = mustJSON(compactedPrivate{next})
	return r.record(r.requestEnd(rep.usage, false, nil), done)
}

// errNoSummary says that the model answered the question for a summary without one.
var errNoSummary = errors.New("the model gave no summary of the conversation, which has to be compacted")

// splitForSummary parts the conversation into what is summarized and the blocks
// that are kept: what the user said since the model's last reply, without the
// results of tools, which belong to that reply.
func splitForSummary(messages []message) (old []message, kept []json.RawMessage) {
	last := len(messages) - 1
	for last >= 0 && messages[last].Role != "user" {
		last--
	}
	if last <= 0 {
		return messages, nil
	}
	var results []json.RawMessage
	for _, b := range messages[last].Content {
		var head struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(b, &head) == nil && head.Type == "tool_result" {
			results = append(results, b)
		} else {
			kept = append(kept, b)
		}
	}
	old = append(old, messages[:last]...)
	if len(results) > 0 {
		old = append(old, message{"user", results})
	}
	return old, kept
}
