package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/anthropics/anthropic-sdk-go/v2/packages/ssestream"
)

type chatCmd struct {
	clientFlags
	Environment string `help:"Environment id. Default: an environment named atoll-chat, which is made if there is none." placeholder:"ID"`
	Session     string `help:"Go on with this session instead of making one." placeholder:"ID"`

	Agent string `arg:"" optional:"" help:"Agent id; not needed with --session."`
}

func (chatCmd) Help() string {
	return `Each line that you type is a message; an empty line is nothing. Tool calls are shown as they happen, and those whose
permission policy asks are put to you: y allows, n denies, any other words deny and are told to the agent. Ctrl-C interrupts
the agent; at the prompt it leaves, as the end of input does. The session stays, with its files: its id is printed first.
When input is not a terminal, each of its lines is a message, and answers come whole.`
}

// chatEnvironment is the name of the environment that chat makes for itself.
const chatEnvironment = "atoll-chat"

// Run converses until the input ends.
func (c chatCmd) Run(ctx context.Context, io *streams) error {
	client, err := c.client(io)
	if err != nil {
		return err
	}
	// Ctrl-C is for the agent, not for this program.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	session, err := c.session(ctx, client)
	if err != nil {
		return err
	}
	say(io.err, "session %s\n", session)
	talk := &chat{client: client, path: "/v1/sessions/" + url.PathEscape(session), out: io.out, err: io.err,
		tty: isTerminal(io.in) && isTerminal(io.out), interrupts: interrupts, uses: map[string]chatEvent{}}
	talk.lines, talk.unread = readLines(ctx, io.in)
	if talk.frames, err = talk.follow(ctx); err != nil {
		return err
	}
	if c.Session != "" {
		if err := talk.takeUp(ctx); err != nil {
			return err
		}
	}
	return talk.run(ctx)
}

// session answers the session to talk in.
func (c chatCmd) session(ctx context.Context, client *client) (string, error) {
	switch {
	case c.Session != "":
		return c.Session, nil
	case c.Agent == "":
		return "", &exitError{code: 2, err: errors.New("an agent or --session is needed; see atoll chat --help")}
	}
	environment := c.Environment
	if environment == "" {
		var err error
		if environment, err = client.chatEnvironment(ctx); err != nil {
			return "", err
		}
	}
	var made struct{ ID string }
	err := client.post(ctx, "/v1/sessions", map[string]any{"agent": c.Agent, "environment_id": environment, "title": "atoll chat"}, &made)
	return made.ID, err
}

// chatEnvironment finds the environment of chats, or makes it.
func (c *client) chatEnvironment(ctx context.Context) (string, error) {
	query := url.Values{"limit": {"1000"}}
	for {
		var list struct {
			Data     []struct{ ID, Name string }
			NextPage string `json:"next_page"`
		}
		if err := c.get(ctx, "/v1/environments", query, &list); err != nil {
			return "", err
		}
		for _, e := range list.Data {
			if e.Name == chatEnvironment {
				return e.ID, nil
			}
		}
		if list.NextPage == "" {
			break
		}
		query.Set("page", list.NextPage)
	}
	var made struct{ ID string }
	err := c.post(ctx, "/v1/environments", map[string]any{"name": chatEnvironment, "config": map[string]any{"type": "cloud"}}, &made)
	return made.ID, err
}

// maxLine is the longest line that is taken as a message, in bytes.
const maxLine = 8 << 20

// readLines gives the lines of the input, and is closed at its end; then unread
// has the error if it could not be read to its end. A read of a terminal cannot
// be interrupted; the goroutine ends with the program.
func readLines(ctx context.Context, in io.Reader) (lines <-chan string, unread <-chan error) {
	out, failed := make(chan string), make(chan error, 1)
	go func() {
		defer close(out)
		scan := bufio.NewScanner(in)
		scan.Buffer(nil, maxLine)
		for scan.Scan() {
			select {
			case out <- scan.Text():
			case <-ctx.Done():
				return
			}
		}
		switch err := scan.Err(); {
		case errors.Is(err, bufio.ErrTooLong):
			failed <- fmt.Errorf("a line of more than %d bytes cannot be a message", maxLine)
		case err != nil:
			failed <- fmt.Errorf("reading the input: %w", err)
		}
	}()
	return out, failed
}

// chat is one conversation on the terminal.
type chat struct {
	client     *client
	path       string // of the session
	out, err   io.Writer
	tty        bool
	interrupts <-chan os.Signal
	lines      <-chan string
	unread     <-chan error // why lines has ended, if not with the input
	frames     <-chan chatFrame

	uses    map[string]chatEvent // id → a tool use of this turn
	printed string               // id of the message whose beginning is on the screen
	shown   string               // that beginning
	block   int                  // index of the block that it ends in
}

// chatFrame is an event of the stream, or its end.
type chatFrame struct {
	event chatEvent
	err   error
}

// chatEvent is an event as far as it is shown.
type chatEvent struct {
	Type    string
	ID      string
	EventID string `json:"event_id"`
	Name    string
	Server  string `json:"mcp_server_name"`
	Input   json.RawMessage
	Content []chatBlock
	IsError bool `json:"is_error"`
	Delta   struct {
		Content chatBlock
		Index   int
	}
	Error struct{ Message string }
	Stop  struct {
		Type     string
		EventIDs []string `json:"event_ids"`
	} `json:"stop_reason"`
}

type chatBlock struct{ Type, Text string }

// follow opens the session's stream.
func (c *chat) follow(ctx context.Context) (<-chan chatFrame, error) {
	query := url.Values{}
	if c.tty {
		query.Set("event_deltas[]", "agent.message")
	}
	res, err := c.client.send(ctx, http.MethodGet, c.path+"/events/stream", query, nil)
	if err != nil {
		return nil, err
	}
	frames := make(chan chatFrame)
	go func() {
		defer close(frames)
		defer res.Body.Close()
		give := func(f chatFrame) bool {
			select {
			case frames <- f:
				return true
			case <-ctx.Done():
				return false
			}
		}
		decoder := ssestream.NewDecoder(res)
		for decoder.Next() {
			var e chatEvent
			data := decoder.Event().Data
			if decoder.Event().Type == "ping" || len(strings.TrimSpace(string(data))) == 0 {
				continue
			}
			err := json.Unmarshal(data, &e)
			if !give(chatFrame{e, err}) || err != nil {
				return
			}
		}
		err := decoder.Err()
		if err == nil {
			err = errors.New("the server ended the stream")
		}
		give(chatFrame{err: err})
	}()
	return frames, nil
}

// run takes messages and shows what comes of them, until the input ends.
func (c *chat) run(ctx context.Context) error {
	for {
		c.prompt("> ")
		select {
		case line, ok := <-c.lines:
			if !ok {
				c.prompt("\n")
				select {
				case err := <-c.unread:
					return err
				default:
					return nil
				}
			}
			if strings.TrimSpace(line) == "" {
				continue
			}
			if err := c.say(ctx, line); err != nil {
				return err
			}
		case <-c.interrupts:
			c.prompt("\n")
			return nil
		case f := <-c.frames: // something happens without a message
			if _, err := c.handle(ctx, f); err != nil {
				return err
			}
		}
	}
}

func (c *chat) prompt(text string) {
	if c.tty {
		sayText(c.err, text)
	}
}

// sendEvents sends events of the user.
func (c *chat) sendEvents(ctx context.Context, events ...map[string]any) error {
	var stored struct{}
	return c.client.post(ctx, c.path+"/events", map[string]any{"events": events}, &stored)
}

// say sends a message and follows the turn to its end.
func (c *chat) say(ctx context.Context, text string) error {
	err := c.sendEvents(ctx, map[string]any{"type": "user.message", "content": []map[string]any{{"type": "text", "text": text}}})
	if err != nil {
		return err
	}
	return c.turn(ctx)
}

// turn follows the session until a turn has ended.
func (c *chat) turn(ctx context.Context) error {
	for {
		select {
		case f := <-c.frames:
			if over, err := c.handle(ctx, f); err != nil || over {
				return err
			}
		case <-c.interrupts:
			if err := c.sendEvents(ctx, map[string]any{"type": "user.interrupt"}); err != nil {
				return err
			}
		}
	}
}

// handle shows an event and answers what it asks; it tells whether the turn is
// over.
func (c *chat) handle(ctx context.Context, f chatFrame) (over bool, err error) {
	idle, err := c.show(f)
	if err == nil && idle && f.event.Stop.Type == "requires_action" {
		return false, c.answer(ctx, f.event.Stop.EventIDs)
	}
	return idle, err
}

// takeUp goes on where a session is: a turn that runs is followed, and what it
// waits for is asked. Its stream is open already.
func (c *chat) takeUp(ctx context.Context) error {
	var session struct{ Status string }
	if err := c.client.get(ctx, c.path, nil, &session); err != nil {
		return err
	}
	switch session.Status {
	case "running", "rescheduling":
		return c.turn(ctx)
	case "terminated":
		return errors.New("the session has ended")
	}
	last, err := c.newest(ctx, 1, "session.status_idle")
	if err != nil || len(last) == 0 || last[0].Stop.Type != "requires_action" {
		return err
	}
	uses, err := c.newest(ctx, 1000, "agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use")
	if err != nil {
		return err
	}
	for _, use := range uses {
		c.uses[use.ID] = use
	}
	if err := c.answer(ctx, last[0].Stop.EventIDs); err != nil {
		return err
	}
	return c.turn(ctx)
}

// newest lists the newest events of some types, newest first.
func (c *chat) newest(ctx context.Context, most int, types ...string) ([]chatEvent, error) {
	var list struct{ Data []chatEvent }
	query := url.Values{"order": {"desc"}, "limit": {strconv.Itoa(most)}, "types[]": types}
	err := c.client.get(ctx, c.path+"/events", query, &list)
	return list.Data, err
}
