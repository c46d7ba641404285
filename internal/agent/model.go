package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/outbound"
)

// ModelConfig says where models are and how they are asked.
type ModelConfig struct {
	// BaseURL of an endpoint that speaks the Messages API. Required.
	BaseURL string
	// Key is shown as a bearer token, or in x-api-key with KeyHeader. It goes
	// nowhere else.
	Key string
	// KeyHeader sends the key in the header x-api-key.
	KeyHeader bool
	// Headers are added to each request; they replace the client's own.
	Headers map[string]string
	// Names maps the model ids of agents to those of the endpoint. An id that is
	// not in it is sent as it is.
	Names map[string]string
	// MaxTokens of one reply. Zero means 32,000.
	MaxTokens int
	// ContextWindow of the models in tokens. Zero means 200,000.
	ContextWindow int
	// Timeout of one request, its whole reply included. Zero means 10 minutes.
	Timeout time.Duration
	// Silence is how long a reply may pause. Zero means 2 minutes.
	Silence time.Duration
	// Thinking asks for adaptive thinking. Without it the model's default holds.
	Thinking bool
}

// Client makes model requests. It may be used by many sessions at the same time.
type Client struct {
	config ModelConfig
	client anthropic.Client
	// noSystem has the ids of the models that have refused a system message in a
	// conversation: string → true.
	noSystem sync.Map
	models   modelList
}

// NewClient makes a Client. Nothing of the process's environment is read.
func NewClient(c ModelConfig) (*Client, error) {
	if c.BaseURL == "" {
		return nil, errors.New("model: no base URL given")
	}
	c.MaxTokens = orDefault(c.MaxTokens, 32_000)
	c.ContextWindow = orDefault(c.ContextWindow, 200_000)
	c.Timeout = orDefault(c.Timeout, 10*time.Minute)
	c.Silence = orDefault(c.Silence, 2*time.Minute)
	if c.MaxTokens >= c.ContextWindow {
		return nil, fmt.Errorf("model: max_tokens (%d) must be less than context_window (%d)", c.MaxTokens, c.ContextWindow)
	}
	transport := outbound.Transport()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost, transport.ResponseHeaderTimeout = 0, 64, c.Silence
	options := []option.RequestOption{
		option.WithoutEnvironmentDefaults(), option.WithoutOpenTelemetry(), option.WithBaseURL(c.BaseURL),
		// The loop tries again by itself, so that clients see it.
		option.WithMaxRetries(0),
		// The key and the whole conversation go to this endpoint, and nowhere that
		// it may point to.
		option.WithHTTPClient(outbound.New(outbound.Config{Transport: bounded{transport}})),
	}
	switch {
	case c.Key != "" && c.KeyHeader:
		options = append(options, option.WithHeader("x-api-key", c.Key))
	case c.Key != "":
		options = append(options, option.WithAuthToken(c.Key))
	}
	for name, value := range c.Headers {
		options = append(options, option.WithHeader(name, value))
	}
	return &Client{config: c, client: anthropic.NewClient(options...), models: modelList{turn: make(chan struct{}, 1)}}, nil
}

// maxResponseBytes bounds the body of one response of the model's endpoint, an
// error's too: some times the largest reply, because a stream frames each word.
const maxResponseBytes = 256 << 20

// bounded is a transport whose responses end with an error when they are too long.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	most := int64(maxResponseBytes)
	if resp.StatusCode != http.StatusOK {
		most = 1 << 20 // an error is read whole
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, most)
	return resp, nil
}

func orDefault[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// request is one model request.
type request struct {
	model    api.Model
	system   string
	more     []json.RawMessage // text blocks behind the system prompt
	messages []message
	tools    []toolset.Tool
	noTools  bool // the tools are named, because the conversation uses them, but none may be used
}

// piece is a part of a reply that is being streamed: block i begins, or has more
// text.
type piece struct {
	index int
	kind  string
	begin bool
	text  string
}

// errCut says that the stream ended before the reply did.
var errCut = errors.New("the model's reply broke off")

// errSilent says that the reply paused for too long.
var errSilent = errors.New("the model was silent for too long")

// stream makes a request and gives each piece of the reply to show as it comes.
//
// Models differ in what they take, and what is in the log comes with every further
// request; so a request that is refused as it is is made again in a form that more
// of them take. The text of system messages goes behind the system prompt; when
// that helps, it is done so at once from then on. Images and documents give way to
// a note; the reply tells of it.
func (c *Client) stream(ctx context.Context, req request, show func(piece)) (reply, error) {
	system := hasSystem(req.messages)
	if _, refuses := c.noSystem.Load(req.model.ID); system && refuses {
		req, system = liftSystem(req), false
	}
	rep, err := c.try(ctx, req, show)
	if system && isRefused(err) {
		req = liftSystem(req)
		if rep, err = c.try(ctx, req, show); err == nil {
			c.noSystem.Store(req.model.ID, true)
		}
	}
	if !isRefused(err) {
		return rep, err
	}
	plain, n, last := withoutMedia(req.messages)
	if n == 0 {
		return rep, err
	}
	why := err
	req.messages = plain
	if rep, err = c.try(ctx, req, show); err == nil && last {
		rep.leftOut = classify(why).message
	}
	return rep, err
}

// isRefused tells whether the endpoint did not take a request, for another reason
// than its length.
func isRefused(err error) bool {
	var answered *anthropic.Error
	return errors.As(err, &answered) && answered.StatusCode == http.StatusBadRequest && !classifyAnswer(answered).tooLong
}

// try makes one request. The reply of a request that failed says how many tokens
// the endpoint has counted for it.
func (c *Client) try(ctx context.Context, req request, show func(piece)) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	ctx, quiet := context.WithCancelCause(ctx)
	watch := time.AfterFunc(c.config.Silence, func() { quiet(errSilent) })
	defer watch.Stop()
	defer quiet(nil)
	events := c.client.Messages.NewStreaming(ctx, c.params(req))
	defer events.Close()
	var whole collector
	for events.Next() {
		watch.Reset(c.config.Silence)
		if err := whole.take(events.Current(), show); err != nil {
			return reply{usage: whole.usage}, err
		}
	}
	failed := reply{usage: whole.usage}
	switch {
	case context.Cause(ctx) == errSilent:
		return failed, errSilent
	case errors.Is(events.Err(), io.ErrUnexpectedEOF):
		return failed, fmt.Errorf("%w: %w", errCut, events.Err())
	case events.Err() != nil:
		return failed, events.Err()
	case !whole.ended:
		return failed, errCut
	}
	return whole.reply(), nil
}

// params is a request as the client takes it.
func (c *Client) params(req request) anthropic.MessageNewParams {
	name := req.model.ID
	if mapped, ok := c.config.Names[name]; ok {
		name = mapped
	}
	p := anthropic.MessageNewParams{Model: name, MaxTokens: int64(c.config.MaxTokens), Speed: anthropic.MessageNewParamsSpeed(req.model.Speed)}
	if req.model.Speed == "standard" {
		p.Speed = "" // what endpoints do by themselves; older ones refuse the field
	}
	if req.model.InferenceGeo != "" {
		p.InferenceGeo = anthropic.String(req.model.InferenceGeo)
	}
	if req.model.Effort != nil {
		p.OutputConfig.Effort = anthropic.OutputConfigEffort(req.model.Effort.Type)
	}
	if c.config.Thinking {
		p.Thinking = anthropic.ThinkingConfigParamUnion{OfAdaptive: &anthropic.ThinkingConfigAdaptiveParam{}}
	}
	mark := anthropic.CacheControlEphemeralParam{}
	if req.system != "" {
		p.System = []anthropic.TextBlockParam{{Text: req.system, CacheControl: mark}}
	}
	for _, t := range req.tools {
		p.Tools = append(p.Tools, anthropic.ToolUnionParam{OfTool: &anthropic.ToolParam{
			Name: t.ModelName, Description: anthropic.String(t.Description),
			InputSchema: param.Override[anthropic.ToolInputSchemaParam](t.InputSchema),
		}})
	}
	for _, b := range req.more {
		p.System = append(p.System, param.Override[anthropic.TextBlockParam](b))
	}
	if n := len(p.Tools); n > 0 {
		p.Tools[n-1].OfTool.CacheControl = mark
		if req.noTools {
			p.ToolChoice = anthropic.ToolChoiceUnionParam{OfNone: &anthropic.ToolChoiceNoneParam{}}
		}
	}
	for _, m := range markLast(req.messages) {
		p.Messages = append(p.Messages, param.Override[anthropic.MessageParam](m))
	}
	return p
}
