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
	fmt.Fprintf(io.err, "session %s\n", session)
	talk := &chat{client: client, path: "/v1/sessions/" + url.PathEscape(session), out: io.out, err: io.err,
		tty: isTerminal(io.in) && isTerminal(io.out), interrupts: interrupts, lines: readLines(ctx, io.in), uses: map[string]chatEvent{}}
	if talk.frames, err = talk.follow(ctx); err != nil {
		return err
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

// readLines gives the lines of the input, and is closed at its end. A read of a
// terminal cannot be interrupted; the goroutine ends with the program.
func readLines(ctx context.Context, in io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scan := bufio.NewScanner(in); scan.Scan(); {
			select {
			case lines <- scan.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return lines
}

// chat is one conversation on the terminal.
type chat struct {
	client     *client
	path       string // of the session
	out, err   io.Writer
	tty        bool
	interrupts <-chan os.Signal
	lines      <-chan string
	frames     <-chan chatFrame

	uses    map[string]chatEvent // id → a tool use of this turn
	printed string               // id of the message whose beginning is on the screen
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
	Delta   struct{ Content chatBlock }
	Error   struct{ Message string }
	Stop    struct {
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
				return nil
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
			if _, err := c.show(f); err != nil {
				return err
			}
		}
	}
}

func (c *chat) prompt(text string) {
	if c.tty {
		fmt.Fprint(c.err, text)
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
	for {
		select {
		case f := <-c.frames:
			idle, err := c.show(f)
			switch {
			case err != nil:
				return err
			case idle && f.event.Stop.Type == "requires_action":
				if err := c.answer(ctx, f.event.Stop.EventIDs); err != nil {
					return err
				}
			case idle:
				return nil
			}
		case <-c.interrupts:
			if err := c.sendEvents(ctx, map[string]any{"type": "user.interrupt"}); err != nil {
				return err
			}
		}
	}
}
