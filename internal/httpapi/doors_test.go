package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/httpapi"
)

// patience is how long a test waits for what should come at once.
const patience = 20 * time.Second

// raw is a connection on which a test sends what no client would.
type raw struct {
	*rig
	net.Conn
	in *bufio.Reader
}

func (r *rig) connect() *raw {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	return &raw{r, c, bufio.NewReader(c)}
}

// send writes the head of a request, and what follows it as it is.
func (c *raw) send(method, path, secret string, length int, rest string) {
	c.t.Helper()
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", method, path, length)
	if secret != "" {
		head += "X-Api-Key: " + secret + "\r\n"
	}
	if _, err := io.WriteString(c, head+"\r\n"+rest); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one reply.
func (c *raw) answer() (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatalf("no reply: %v", err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(text)
}

// ended fails the test unless the server closes the connection.
func (c *raw) ended() {
	c.t.Helper()
	_, err := c.in.ReadByte()
	if timeout, ok := err.(net.Error); err == nil || ok && timeout.Timeout() {
		c.t.Errorf("the connection is open after its reply: %v", err)
	}
}

// TestRefusalsDoNotWaitForTheBody: who has no key, or asks for what is not
// there, is answered at once and holds nothing.
func TestRefusalsDoNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, test := range []struct {
		method, path, secret string
		length, status       int
	}{
		{"POST", "/v1/environments", "", 1000, 401},
		{"POST", "/v1/environments", "", 100 << 20, 401},
		{"POST", "/v1/nothing", key, 1000, 404},
		{"PATCH", "/v1/environments", key, 1000, 405},
		{"POST", "/v1/environments", key, 5 << 20, 413},
		{"POST", "/v1/sessions/sesn_1/events", key, 33 << 20, 413},
		{"POST", "/healthz", "", 1000, 200},
	} {
		c := r.connect()
		c.send(test.method, test.path, test.secret, test.length, "")
		if resp, text := c.answer(); resp.StatusCode != test.status || !resp.Close {
			t.Errorf("%s %s: %d, close %v: %s", test.method, test.path, resp.StatusCode, resp.Close, text)
		}
		c.ended()
	}
}

// TestRefusalKeepsTheConnection: a body that was sent whole costs nothing more,
// and neither does a request without one.
func TestRefusalKeepsTheConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c := r.connect()
	for range 3 {
		c.send("GET", "/v1/environments", "", 0, "")
		if resp, text := c.answer(); resp.StatusCode != 401 || resp.Close {
			t.Fatalf("%d, close %v: %s", resp.StatusCode, resp.Close, text)
		}
		c.send("POST", "/v1/environments/env_none", key, 2, "{}")
		if resp, text := c.answer(); resp.StatusCode != 404 || resp.Close {
			t.Fatalf("%d, close %v: %s", resp.StatusCode, resp.Close, text)
		}
	}
}

// TestBodiesThatDoNotCome: a client with a key that sends nothing more is given
// up. (TestBodiesThatTrickle has one that sends next to nothing.)
func TestBodiesThatDoNotCome(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRigWith(t, h, httpapi.DoorsConfig{}, func(c *httpapi.Config) { c.BodyWait = 300 * time.Millisecond })
	silent, upload := r.connect(), r.connect()
	silent.send("POST", "/v1/environments", key, 1000, `{"name":`)
	upload.send("PUT", "/atoll/v1/sessions/sesn_1/files?path=f", key, 1000, "begin")
	for name, c := range map[string]*raw{"silent": silent, "upload": upload} {
		if resp, text := c.answer(); resp.StatusCode != 400 || !strings.Contains(text, "Request body could not be read") {
			t.Errorf("%s: %d %s", name, resp.StatusCode, text)
		}
		c.ended()
	}
}

// TestManyValuesAreRefusedWhileRead: 18 MiB with 1.5 million members are not
// waited for.
func TestManyValuesAreRefusedWhileRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, begin := range map[string]string{
		"Request body has more than 200000 values":  `{"events":[` + strings.Repeat(`{"a":1},`, 110_000),
		"Request body nests deeper than 100 levels": strings.Repeat(`{"a":[`, 51),
	} {
		c := r.connect()
		c.send("POST", "/v1/sessions/sesn_1/events", key, 18<<20, begin)
		if resp, text := c.answer(); resp.StatusCode != 400 || !strings.Contains(text, name) {
			t.Errorf("%d %s, want 400 %s", resp.StatusCode, text, name)
		}
	}
}

// TestMemoryOfBodies: clients that stall in the middle of large bodies hold no
// more than their workspace's share; small requests and neighbours are served.
func TestMemoryOfBodies(t *testing.T) {
	t.Parallel()
	budget := control.NewBudget(64 << 20)
	r := newRigWith(t, nil, httpapi.DoorsConfig{}, func(c *httpapi.Config) { c.Memory = budget })
	neighbour := r.stranger()
	large := `{"name":"e","description":"` + strings.Repeat("x", 2<<20)
	refused := 0
	var stalled []*raw
	for range 12 {
		c := r.connect()
		c.send("POST", "/v1/environments", key, 4<<20, large)
		stalled = append(stalled, c)
	}
	answers := make(chan string, len(stalled))
	for _, c := range stalled {
		go func() {
			resp, err := http.ReadResponse(c.in, nil)
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- resp.Status + " " + resp.Header.Get("Retry-After")
		}()
	}
	// 2 MiB of a body take 12 MiB, half of the budget is 32 MiB: two have room.
	for ; refused < 10; refused++ {
		select {
		case got := <-answers:
			if got != "429 Too Many Requests 1" {
				t.Errorf("a body without room: %s", got)
			}
		case <-time.After(patience):
			t.Fatalf("%d bodies were refused, want 10", refused)
		}
	}
	if _, used := budget.State(); used > 32<<20 {
		t.Errorf("%d bytes are held by one workspace, its share is half of 64 MiB", used)
	}
	for _, secret := range []string{key, neighbour} {
		if got := r.askAs(secret, "POST", "/v1/environments", `{"name":"small `+secret[:9]+`"}`); got.status != 200 {
			t.Errorf("a small request: %d %s", got.status, got.text)
		}
	}
	if got := r.askAs(neighbour, "POST", "/v1/environments", large+`"}`); got.status != 400 || got.message() == "" {
		t.Errorf("a neighbour's large body: %d %s, want to be read and refused for its content", got.status, got.text)
	}
	for _, c := range stalled {
		c.Close()
	}
	eventually(t, "all memory is returned", func() bool { _, used := budget.State(); return used == 0 })
}

// TestMemoryOfCollectedOutputs: what has no room is cut and says so, nothing is
// run for which there is none; a neighbour has its own share.
func TestMemoryOfCollectedOutputs(t *testing.T) {
	t.Parallel()
	budget := control.NewBudget(8 << 20)
	r := newRigWith(t, newHost(t), httpapi.DoorsConfig{}, func(c *httpapi.Config) { c.Memory = budget })
	neighbour := r.stranger()
	path := execPath + "?stream=false"
	ran := filepath.Join(t.TempDir(), "ran")
	// 4 MiB are the share of one workspace. What is kept of 2 MB of output weighs
	// more than that.
	got := r.ask("POST", path, `{"shell":"head -c 2000000 /dev/zero | tr '\\0' x"}`)
	if kept := len(got.str("stdout")); got.status != 200 || got.body["truncated"] != true || kept < 32<<10 || kept > 1<<20 {
		t.Errorf("an output that has no room: %d, %d bytes of it, truncated %v", got.status, kept, got.body["truncated"])
	}
	var waiting sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range 15 { // 256 KiB each, before they run
		waiting.Go(func() {
			req := r.request("POST", path, strings.NewReader(`{"shell":"sleep 1000"}`), "X-Api-Key", key, "Content-Type", "application/json").WithContext(ctx)
			if resp, err := r.client.Do(req); err == nil {
				resp.Body.Close()
			}
		})
	}
	eventually(t, "all commands run", func() bool { _, used := budget.State(); return used == 15*256<<10 })
	if got := r.ask("POST", path, `{"shell":"echo a"}`); got.status != 200 || got.str("stdout") != "a\n" {
		t.Errorf("the last that has room: %d %s", got.status, got.text)
	}
	if !budget.Take(r.workspace, 200<<10) {
		t.Fatal("the workspace has less than its share")
	}
	if got := r.ask("POST", path, `{"shell":"touch `+ran+`"}`); got.status != 429 || got.header.Get("Retry-After") == "" {
		t.Errorf("an output for which there is no room: %d %s", got.status, got.text)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a command was run although the answer was 429")
	}
	if got := r.askAs(neighbour, "POST", path, `{"shell":"head -c 200000 /dev/zero | tr '\\0' x"}`); got.status != 200 || len(got.str("stdout")) != 200_000 {
		t.Errorf("a neighbour: %d %.200s", got.status, got.text)
	}
	budget.Give(r.workspace, 200<<10)
	cancel()
	waiting.Wait()
	eventually(t, "all memory is returned", func() bool { _, used := budget.State(); return used == 0 })
}

// TestStrangersMakeRoom: connections without a key do not add up, and hold up
// nobody who has one.
func TestStrangersMakeRoom(t *testing.T) {
	t.Parallel()
	descriptors := control.NewBudget(8)
	r := newRigWith(t, nil, httpapi.DoorsConfig{Strangers: 20, StrangersPerAddress: 10, Descriptors: descriptors}, func(*httpapi.Config) {})
	friend := r.connect()
	friend.send("GET", "/v1/environments", key, 0, "")
	if resp, text := friend.answer(); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	var strangers []*raw
	for range 50 {
		c := r.connect()
		c.send("GET", "/v1/environments", "", 0, "")
		if resp, text := c.answer(); resp.StatusCode != 401 { // and idle from here on, which it may be for minutes
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
		strangers = append(strangers, c)
		if got := r.ask("GET", "/v1/environments", ""); got.status != 200 {
			t.Fatalf("beside %d strangers: %d %s", len(strangers), got.status, got.text)
		}
	}
	for i, c := range strangers[:40] {
		if _, err := c.in.ReadByte(); err != io.EOF && !strings.Contains(fmt.Sprint(err), "reset") {
			t.Fatalf("stranger %d of 50 still has its connection, 10 may be open: %v", i, err)
		}
	}
	friend.send("GET", "/v1/environments", key, 0, "")
	if resp, text := friend.answer(); resp.StatusCode != 200 {
		t.Errorf("a connection on which a key was shown: %d %s", resp.StatusCode, text)
	}
	// A workspace has a share of the descriptors; with the two open it is half of 8.
	var own []*raw
	for _, want := range []int{200, 200, 429} {
		c := r.connect()
		c.send("GET", "/v1/environments", key, 0, "")
		if resp, text := c.answer(); resp.StatusCode != want {
			t.Errorf("connection %d of one workspace: %d %s, want %d", len(own)+3, resp.StatusCode, text, want)
		}
		own = append(own, c)
	}
	if got := r.askAs(r.stranger(), "GET", "/v1/environments", ""); got.status != 200 {
		t.Errorf("a neighbour: %d %s", got.status, got.text)
	}
	for _, c := range append(own, friend) {
		c.Close()
	}
	// The idle connection of the test's client stays, on which two keys were shown.
	eventually(t, "the descriptors are returned", func() bool { _, used := descriptors.State(); return used <= 2 })
}

// TestKeylessRoutesKnowTheirNames: a page whose name is made to mean 127.0.0.1
// reads nothing of this machine's.
func TestKeylessRoutesKnowTheirNames(t *testing.T) {
	t.Parallel()
	r := newRigWith(t, nil, httpapi.DoorsConfig{}, func(c *httpapi.Config) { c.Hosts = []string{"atoll.example.com"} })
	for host, want := range map[string]int{
		"evil.example": 403, "evil.example:8400": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "example.com": 403,
		"localhost": 200, "LocalHost:8400": 200, "a.localhost": 200, "127.0.0.1": 200, "127.0.0.1:8400": 200, "[::1]": 200, "[::1]:80": 200,
		"10.0.0.7:8400": 200, "atoll.example.com": 200, "Atoll.Example.COM.:443": 200,
	} {
		for _, path := range []string{"/metrics", "/healthz"} {
			req, err := http.NewRequestWithContext(context.Background(), "GET", r.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			if got := r.do(req); got.status != want || want == 403 && got.str("error", "type") != "permission_error" {
				t.Errorf("%s of %s: %d, want %d", path, host, got.status, want)
			}
		}
	}
}
