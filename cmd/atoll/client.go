package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/coder/websocket"

	"github.com/atoll-run/atoll/internal/outbound"
)

// clientFlags say which server to talk to, and with which key.
type clientFlags struct {
	URL string `help:"Base URL of the server." setting:"ATOLL_URL" default:"http://127.0.0.1:8400" placeholder:"URL"`
	Key string `help:"API key. Default: the content of default.key in the data directory." setting:"ATOLL_API_KEY" placeholder:"KEY"`
	dataFlag
}

// client speaks to a server's HTTP interface.
type client struct {
	base *url.URL
	key  string
	http *http.Client
}

func (f clientFlags) client(io *streams) (*client, error) {
	base, err := url.Parse(strings.TrimRight(f.URL, "/"))
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("--url: %q is not an http or https URL", f.URL)
	}
	key := f.Key
	if key == "" {
		path := filepath.Join(f.dir(io), defaultKeyFile)
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("no API key: give --key or ATOLL_API_KEY, or run this where %s can be read", path)
		}
		key = strings.TrimSpace(string(content))
	}
	return &client{base: base, key: key, http: outbound.New(outbound.Config{})}, nil
}

// wireError is the error body of every route.
type wireError struct {
	Error struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	} `json:"error"`
	RequestID string `json:"request_id"`
}

// failure turns a reply that is not a success into the server's words. It
// closes the body.
func failure(res *http.Response) error {
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10)) // a cut body is still worth its status
	if err := wordsOf(body); err != nil {
		return err
	}
	return fmt.Errorf("the server answered %s", res.Status)
}

// wordsOf is the message of an error body; nil if it is none. The request's id,
// which is in the server's log, is added where the message says little.
func wordsOf(body []byte) error {
	var e wireError
	switch {
	case json.Unmarshal(body, &e) != nil || e.Error.Message == "":
		return nil
	case e.Error.Type == "api_error" && e.RequestID != "":
		return fmt.Errorf("%s (request %s)", e.Error.Message, e.RequestID)
	}
	return errors.New(e.Error.Message)
}

// send makes a request and answers its reply, whose body the caller closes.
// body is JSON, or nil for none. A status of 400 or more is an error.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	target := c.base.JoinPath(path)
	target.RawQuery = query.Encode()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("x-api-key", c.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreached(err)
	}
	if res.StatusCode >= 400 {
		return nil, failure(res)
	}
	return res, nil
}

// unreached is the error of a request that was not answered.
func (c *client) unreached(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // the whole URL is in the flag already
	}
	return fmt.Errorf("asking the server at %s: %w", c.base, err)
}

// maxFrame is the largest frame that a server sends, in bytes.
const maxFrame = 1 << 20

// dial opens a WebSocket.
func (c *client) dial(ctx context.Context, path string) (*websocket.Conn, error) {
	target := c.base.JoinPath(path)
	conn, res, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{
		HTTPClient: c.http,
		HTTPHeader: http.Header{"X-Api-Key": {c.key}},
	})
	switch {
	case err == nil:
		conn.SetReadLimit(maxFrame)
		return conn, nil
	case res != nil && res.StatusCode >= 400 && res.Body != nil:
		return nil, failure(res)
	}
	return nil, c.unreached(err)
}

// get reads a JSON reply into out.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.exchange(ctx, http.MethodGet, path, query, nil, out)
}

// post sends JSON and reads the JSON reply into out.
func (c *client) post(ctx context.Context, path string, body, out any) error {
	return c.exchange(ctx, http.MethodPost, path, nil, body, out)
}

func (c *client) exchange(ctx context.Context, method, path string, query url.Values, body, out any) error {
	res, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("reading the reply: %w", err)
	}
	return nil
}
