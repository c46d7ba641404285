package httpapi_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// malformed are requests that net/http answers by itself.
var malformed = []struct {
	name, sent    string
	status        int
	kind, message string
}{
	{"a large head", "GET /v1/environments HTTP/1.1\r\nHost: localhost\r\nX-Large: " + strings.Repeat("x", 300<<10) + "\r\n\r\n", 431, "invalid_request_error", "The head of the request is larger than 262144 bytes"},
	{"a large line", "GET /" + strings.Repeat("x", 300<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "invalid_request_error", "The head of the request is larger than 262144 bytes"},
	{"an unknown expectation", "POST /v1/environments HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417, "invalid_request_error", "expect: Input should be '100-continue'"},
	{"an expectation of HEAD", "HEAD /v1/environments HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\n\r\n", 417, "invalid_request_error", "expect: Input should be '100-continue'"},
	{"no request line", "hello\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"a method that is none", "G(T / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"a path that is none", "GET %zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"a version that is none", "GET / HTTP/x\r\nHost: localhost\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"a later version", "GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505, "invalid_request_error", "The request is not valid HTTP: unsupported protocol version"},
	{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP: missing required Host header"},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"a host that is none", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP: malformed Host header"},
	{"a header that is none", "GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP: invalid header name"},
	{"a value that is none", "GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"a line without a colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"an unknown transfer encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "api_error", "transfer-encoding: Input should be 'chunked'"},
	{"two transfer encodings", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "api_error", "transfer-encoding: Input should be 'chunked'"},
	{"a length that is none", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
	{"TLS", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400, "invalid_request_error", "The request is not valid HTTP"},
}

// TestMalformedRequests: what net/http answers by itself has the body of every
// other error, the request id in header and body, a log line and its metric.
func TestMalformedRequests(t *testing.T) {
	t.Parallel()
	for _, behind := range []string{"", "a request before it"} {
		for _, test := range malformed {
			t.Run(strings.Trim(test.name+", "+behind, ", "), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, nil)
				c := r.connect()
				if behind != "" {
					c.send("GET", "/v1/environments", key, 0, "")
					if resp, text := c.answer(); resp.StatusCode != 200 {
						t.Fatalf("%d %s", resp.StatusCode, text)
					}
				}
				if _, err := io.WriteString(c, test.sent); err != nil {
					t.Fatal(err)
				}
				resp, text := c.answer()
				if err := checkRefusal(resp, []byte(text)); err != nil {
					t.Error(err)
				}
				got := struct {
					Error struct{ Type, Message string }
				}{}
				if err := json.Unmarshal([]byte(text), &got); err != nil || resp.StatusCode != test.status || got.Error.Type != test.kind || got.Error.Message != test.message || !resp.Close {
					t.Errorf("%d %s, close %v, %v", resp.StatusCode, text, resp.Close, err)
				}
				c.ended()
				id := resp.Header.Get("Request-Id")
				eventually(t, "the log has it", func() bool {
					return strings.Contains(r.log.String(), fmt.Sprintf(`"route":"other","status":%d`, test.status)) && strings.Contains(r.log.String(), id)
				})
			})
		}
	}
}

// TestRepliesThatLookLikeRefusals: what a handler writes is never taken for
// net/http's own reply, whatever it looks like.
func TestRepliesThatLookLikeRefusals(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	lie := "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n431 Request Header Fields Too Large"
	content := strings.Repeat(lie, 1000)
	if got := r.do(r.request("PUT", "/atoll/v1/sessions/sesn_1/files?path=f", strings.NewReader(content), "X-Api-Key", key)); got.status != 200 && got.status != 204 {
		t.Fatalf("%d %s", got.status, got.text)
	}
	for range 3 {
		if got := r.ask("GET", "/atoll/v1/sessions/sesn_1/files?path=f", ""); got.status != 200 || got.text != content {
			t.Fatalf("%d, %d bytes, want %d", got.status, len(got.text), len(content))
		}
	}
	c := r.connect()
	c.send("OPTIONS", "*", "", 0, "") // which net/http would answer by itself with nothing
	if resp, text := c.answer(); resp.StatusCode != 404 || checkRefusal(resp, []byte(text)) != nil {
		t.Errorf("OPTIONS *: %d %s", resp.StatusCode, text)
	}
}

// checkRefusal tells what a reply lacks of what all have.
func checkRefusal(resp *http.Response, body []byte) error {
	id := resp.Header.Get("Request-Id")
	if !strings.HasPrefix(id, "req_") {
		return fmt.Errorf("%d: request id %q", resp.StatusCode, id)
	}
	if resp.StatusCode < 400 {
		return nil
	}
	var got struct {
		Type      string
		Error     struct{ Type, Message string }
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal(body, &got); err != nil || got.Type != "error" || got.Error.Type == "" || got.Error.Message == "" || got.RequestID != id {
		return fmt.Errorf("%d is no error as the API has them: %q, %v", resp.StatusCode, body, err)
	}
	return nil
}

// FuzzConnection: whatever a client sends, each reply is HTTP, has an id, and is
// an error in JSON if it is one.
func FuzzConnection(f *testing.F) {
	for _, test := range malformed {
		if len(test.sent) < 1000 {
			f.Add([]byte(test.sent))
		}
	}
	f.Add([]byte("POST /v1/environments HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"name\":\"x\"}GET /v1/sessions?statuses=x&created_at[gt]=1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + key + "\r\n\r\nx"))
	f.Add([]byte("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/models/%2f?limit=&%zz HTTP/1.0\r\n\r\n"))
	f.Add([]byte("PUT /v1/agents HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\nzz\r\n"))
	r := newRig(f, nil)
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = conn.Write(sent) // the server may have closed the connection
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		var kept bytes.Buffer
		in := bufio.NewReader(io.TeeReader(conn, &kept))
		for {
			if _, err := in.Peek(1); errors.Is(err, io.EOF) {
				return
			}
			resp, err := http.ReadResponse(in, nil)
			if isReset(err) {
				return
			}
			if err != nil {
				t.Fatalf("no reply: %v: %q", err, kept.Bytes())
			}
			if resp.StatusCode == http.StatusContinue {
				continue
			}
			body, err := io.ReadAll(resp.Body)
			if isReset(err) {
				return
			}
			// A reply to HEAD has a length and no body, and is the last that can be read.
			head := errors.Is(err, io.ErrUnexpectedEOF) && len(body) == 0
			if head {
				return
			}
			if err != nil {
				t.Fatalf("reading a reply: %v: %q", err, kept.Bytes())
			}
			if err := checkRefusal(resp, body); err != nil {
				t.Fatalf("%v: %q", err, kept.Bytes())
			}
		}
	})
}

func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), "reset")
}
