package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/httpapi"
)

// TestAdminBodies: a body that does not come, or has no end, ends its connection;
// one that came does not bound the time in which it is served.
func TestAdminBodies(t *testing.T) {
	t.Parallel()
	const wait = 200 * time.Millisecond
	served := make(chan string, 10)
	slow := make(chan struct{})
	web := httptest.NewServer(httpapi.WholeBodies(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path == "/slow" {
			<-slow
		}
		if err := r.Context().Err(); err != nil {
			t.Errorf("%s: the request was ended: %v", r.URL.Path, err)
		}
		served <- string(body)
	}), wait))
	defer web.Close()
	for _, test := range []struct {
		method, path, body string
		length, status     int
	}{
		{"POST", "/keys", "", 1000, 400},
		{"POST", "/keys", "begin", 1000, 400},
		{"GET", "/keys", "", 1 << 40, 400},
		{"POST", "/keys", strings.Repeat("x", 65<<10), 1 << 40, 400},
		{"POST", "/keys", "whole", 5, 200},
		{"GET", "/keys", "", 0, 200},
		{"POST", "/slow", "whole", 5, 200},
	} {
		c, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if test.path == "/slow" {
			time.AfterFunc(3*wait, func() { close(slow) }) // longer than a body may take
		}
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: admin\r\nContent-Length: %d\r\n\r\n%s", test.method, test.path, test.length, test.body)
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%+.60v: %v", test, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != test.status || resp.Close != (test.status != 200) {
			t.Errorf("%.60s: %d, close %v, %v", test.method+" "+test.path+" "+test.body, resp.StatusCode, resp.Close, err)
		}
		if test.status != 200 {
			if _, err := in.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("%.60s: the connection stays: %v", test.method+" "+test.path+" "+test.body, err)
			}
			continue
		}
		if got := <-served; got != test.body {
			t.Errorf("served %q, want %q", got, test.body)
		}
	}
}
