package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

const (
	// modelsAge is how long a list of models is used before the endpoint is asked
	// again, and modelsFailureAge how long a failure is repeated instead.
	modelsAge        = time.Minute
	modelsFailureAge = 5 * time.Second
	// modelsWait is how long the endpoint may take to list its models.
	modelsWait = 20 * time.Second
	// maxModels is how many models of an endpoint are listed at most, and
	// modelsPage how many are asked for at a time.
	maxModels  = 10_000
	modelsPage = 1000
)

// modelList is the list of models as it was when the endpoint was last asked. Who
// has a place in turn owns the rest.
type modelList struct {
	turn   chan struct{} // has room for one
	until  time.Time     // when the endpoint is asked again
	models []api.ModelInfo
	err    error
}

// Models lists the models that agents may name: those of the endpoint, and those
// of the map of names in the place of what they stand for. The list may be a
// minute old. An endpoint that lists none is no error as long as there are names.
// Errors are a [control.Fault].
func (c *Client) Models(ctx context.Context) ([]api.ModelInfo, error) {
	l := &c.models
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if time.Now().Before(l.until) {
		return l.models, l.err
	}
	// Others wait for the same answer, so that it does not end with this request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), modelsWait)
	defer cancel()
	found, err := c.fetchModels(ctx)
	if err == nil || lacksModels(err) && len(c.config.Names) > 0 {
		l.models, l.err, l.until = nameModels(found, c.config.Names), nil, time.Now().Add(modelsAge)
	} else {
		l.models, l.err, l.until = nil, modelsFault(err), time.Now().Add(modelsFailureAge)
	}
	return l.models, l.err
}

// Model returns one of Models, or one that the endpoint knows by another name
// and does not list, such as an alias.
func (c *Client) Model(ctx context.Context, id string) (api.ModelInfo, error) {
	all, err := c.Models(ctx)
	if err != nil && !isNotFound(err) {
		return api.ModelInfo{}, err
	}
	for _, m := range all {
		if m.ID == id {
			return m, nil
		}
	}
	missing := control.Faultf(control.NotFound, "Model %.256q not found.", id)
	if id == "." || id == ".." || len(id) > maxModelID {
		return api.ModelInfo{}, missing // which no path can have
	}
	ctx, cancel := context.WithTimeout(ctx, modelsWait)
	defer cancel()
	var raw json.RawMessage
	switch err := c.ask(ctx, "v1/models/"+url.PathEscape(id), &raw); {
	case lacksModels(err):
		return api.ModelInfo{}, missing
	case err != nil:
		return api.ModelInfo{}, modelsFault(err)
	}
	m, ok := readModel(raw)
	if !ok {
		return api.ModelInfo{}, modelsFault(errors.New("what the endpoint answers is no model"))
	}
	return m, nil
}

// fetchModels asks the endpoint for its whole list, page by page.
func (c *Client) fetchModels(ctx context.Context) (models []api.ModelInfo, err error) {
	stages := []option.RequestOption{
		option.WithQueryAdd("lifecycle[]", api.ModelActive), option.WithQueryAdd("lifecycle[]", api.ModelDeprecated), option.WithQueryAdd("lifecycle[]", api.ModelRetired),
	}
	for after := ""; len(models) < maxModels; {
		options := []option.RequestOption{option.WithQuery("limit", fmt.Sprint(modelsPage))}
		if after != "" {
			options = append(options, option.WithQuery("after_id", after))
		}
		var page struct {
			Data    []json.RawMessage `json:"data"`
			HasMore bool              `json:"has_more"`
			LastID  string            `json:"last_id"`
		}
		err := c.askPage(ctx, &page, append(options, stages...))
		if len(stages) > 0 && statusOf(err) == http.StatusBadRequest {
			stages = nil // an endpoint that does not know them lists what can be used
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, raw := range page.Data {
			if m, ok := readModel(raw); ok {
				models = append(models, m)
			}
		}
		if !page.HasMore || page.LastID == "" || page.LastID == after {
			return models, nil
		}
		after = page.LastID
	}
	return models[:maxModels], nil
}

func (c *Client) askPage(ctx context.Context, into any, options []option.RequestOption) error {
	var raw json.RawMessage
	if err := c.ask(ctx, "v1/models", &raw, options...); err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// ask makes one GET request of the endpoint, for JSON.
func (c *Client) ask(ctx context.Context, path string, into *json.RawMessage, options ...option.RequestOption) error {
	var resp *http.Response
	err := c.client.Get(ctx, path, nil, &resp, options...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxModelsBytes)).Decode(into)
}

// maxModelsBytes is how long one reply about models may be.
const maxModelsBytes = 16 << 20

// statusOf is the HTTP status with which the endpoint refused a request, or zero.
func statusOf(err error) int {
	var answered *anthropic.Error
	if errors.As(err, &answered) {
		return answered.StatusCode
	}
	return 0
}

// lacksModels tells whether the endpoint says that it does not have what was asked for.
func lacksModels(err error) bool {
	switch statusOf(err) {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone, http.StatusNotImplemented:
		return true
	}
	return false
}

func isNotFound(err error) bool {
	fault, ok := control.AsFault(err)
	return ok && fault.Kind == control.NotFound
}

// modelsFault is an error of the endpoint as a client of this server sees it. A
// key that the endpoint refuses is the server's and not the client's, so that it
// is no 401.
func modelsFault(err error) error {
	kind, message := control.Unavailable, "The model endpoint of this server cannot be asked for its models"
	switch status := statusOf(err); {
	case lacksModels(err):
		kind, message = control.NotFound, "The model endpoint of this server does not list its models"
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		message = "The model endpoint of this server refuses the server's key"
	case status == http.StatusTooManyRequests:
		kind, message = control.RateLimited, "The model endpoint of this server is asked too often"
	case status != 0:
		message = fmt.Sprintf("The model endpoint of this server answers with the HTTP status %d", status)
	case errors.Is(err, context.DeadlineExceeded):
		kind, message = control.Timeout, "The model endpoint of this server does not answer in time"
	}
	return &control.Fault{Kind: kind, Message: message, Cause: err}
}
