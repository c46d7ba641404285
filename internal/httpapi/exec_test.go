package httpapi_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/api"
)

const execPath = "/atoll/v1/sessions/sesn_1/exec"

// execLines runs a command and returns what the stream says: the output of
// each stream put together, and the end.
func (r *rig) execLines(body string) (stdout, stderr string, end map[string]any) {
	r.t.Helper()
	var out, errs strings.Builder
	got := r.ask("POST", execPath, body)
	if got.status != 200 || got.header.Get("Content-Type") != "application/x-ndjson" {
		r.t.Fatalf("%s: %d %s", body, got.status, got.text)
	}
	for line := range strings.Lines(got.text) {
		var event map[string]any
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			r.t.Fatalf("line %q: %v", line, err)
		}
		if end != nil {
			r.t.Errorf("a line after the end: %q", line)
		}
		data, _ := event["data"].(string)
		if event["encoding"] == "base64" {
			raw, err := base64.StdEncoding.DecodeString(data)
			if err != nil {
				r.t.Error(err)
			}
			data = string(raw)
		}
		switch event["type"] {
		case "stdout":
			out.WriteString(data)
		case "stderr":
			errs.WriteString(data)
		case "exit":
			end = event
		}
	}
	return out.String(), errs.String(), end
}

func TestExec(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	tests := []struct {
		name, body, stdout, stderr string
		code                       float64
		signal                     any
	}{
		{"list", `{"command":["echo","a b","$HOME"]}`, "a b $HOME\n", "", 0, nil},
		{"shell", `{"shell":"echo out; echo err >&2; exit 3"}`, "out\n", "err\n", 3, nil},
		{"env and cwd", `{"shell":"echo $A; pwd","env":{"A":"1=2"},"cwd":"/"}`, "1=2\n/\n", "", 0, nil},
		{"stdin", `{"command":["cat"],"stdin":"λ\n"}`, "λ\n", "", 0, nil},
		{"stdin base64", `{"command":["cat"],"stdin":"/wD+","stdin_encoding":"base64"}`, "\xff\x00\xfe", "", 0, nil},
		{"no stdin", `{"command":["cat"]}`, "", "", 0, nil},
		{"not UTF-8", `{"shell":"printf 'a\\377b'"}`, "a\xffb", "", 0, nil},
		{"character in two writes", `{"shell":"printf '\\316'; sleep 0.05; printf '\\273'"}`, "λ", "", 0, nil},
		{"half a character at the end", `{"shell":"printf 'x\\316'"}`, "x\xce", "", 0, nil},
		{"killed", `{"shell":"kill -9 $$"}`, "", "", 137, "SIGKILL"},
		{"null means absent", `{"command":["true"],"shell":null,"timeout_ms":null,"env":null}`, "", "", 0, nil},
	}
	for _, test := range tests {
		stdout, stderr, end := r.execLines(test.body)
		if stdout != test.stdout || stderr != test.stderr {
			t.Errorf("%s: stdout %q, stderr %q", test.name, stdout, stderr)
		}
		if _, ok := end["duration_ms"].(float64); !ok || end["code"] != test.code || end["signal"] != test.signal || end["timed_out"] != false {
			t.Errorf("%s: end %v", test.name, end)
		}
		got := r.must("POST", execPath+"?stream=false", test.body)
		for name, want := range map[string]string{"stdout": test.stdout, "stderr": test.stderr} {
			data := got.str(name)
			if got.str(name+"_encoding") == "base64" {
				raw, err := base64.StdEncoding.DecodeString(data)
				if err != nil {
					t.Error(err)
				}
				data = string(raw)
			}
			if data != want {
				t.Errorf("%s: whole: %s", test.name, got.text)
			}
		}
		if got.body["code"] != test.code || got.body["signal"] != test.signal || got.body["truncated"] != false || got.body["timed_out"] != false {
			t.Errorf("%s: whole: %s", test.name, got.text)
		}
	}
}

func TestExecRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	for body, message := range map[string]string{
		`{}`:                                                  "command: Exactly one of command and shell is required",
		`{"command":["a"],"shell":"a"}`:                       "command: Exactly one of command and shell is required",
		`{"command":[]}`:                                      "command: List should have at least 1 item, the program",
		`{"command":[""]}`:                                    "command: List should have at least 1 item, the program",
		`{"command":["a\u0000b"]}`:                            "command: NUL is not allowed in an argument",
		`{"command":"ls"}`:                                    "command: Input should be a valid list",
		`{"shell":"a","cwd":"\u0000"}`:                        "cwd: Input should be a path without NUL",
		`{"shell":"a","env":{"A=B":"c"}}`:                     "env: A name is not empty and holds no '='; neither it nor its value holds NUL",
		`{"shell":"a","timeout_ms":0}`:                        "timeout_ms: Input should be between 1 and 86400000",
		`{"shell":"a","timeout_ms":86400001}`:                 "timeout_ms: Input should be between 1 and 86400000",
		`{"shell":"a","stdin_encoding":"latin1"}`:             "stdin_encoding: Input should be 'utf-8' or 'base64'",
		`{"shell":"a","stdin":"!","stdin_encoding":"base64"}`: "stdin: Input should be valid base64",
		`{"shell":"a","user":"root"}`:                         "user: Extra inputs are not permitted",
		`{"command":["/no/such/program"]}`:                    "command not found",
	} {
		for _, query := range []string{"", "?stream=false"} {
			if got := r.ask("POST", execPath+query, body); got.status != 400 || got.message() != message {
				t.Errorf("%s: %d %s", body, got.status, got.text)
			}
		}
	}
	if got := r.ask("POST", execPath+"?stream=maybe", `{"shell":"a"}`); got.status != 400 {
		t.Errorf("%d %s", got.status, got.text)
	}
	if got := r.ask("POST", "/atoll/v1/sessions/sesn_2/exec", `{"shell":"a"}`); got.status != 404 {
		t.Errorf("%d %s", got.status, got.text)
	}
}

// eventually polls a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come true that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestExecTimeout: the whole process group ends, and what was written before
// is there.
func TestExecTimeout(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	// What it prints first is the process id of a child.
	const body = `{"shell":"sleep 300 & echo $!; sleep 300","timeout_ms":1000}`
	gone := func(stdout string) {
		t.Helper()
		child, ok := strings.CutSuffix(stdout, "\n")
		if _, err := strconv.Atoi(child); err != nil || !ok {
			t.Fatalf("stdout %q", stdout)
		}
		eventually(t, "the child is gone", func() bool {
			stat, err := os.ReadFile("/proc/" + child + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
	stdout, _, end := r.execLines(body)
	if end["timed_out"] != true || end["code"] != 137.0 || end["signal"] != "SIGKILL" {
		t.Errorf("end %v", end)
	}
	gone(stdout)
	got := r.must("POST", execPath+"?stream=false", body)
	if got.body["timed_out"] != true {
		t.Error(got.text)
	}
	gone(got.str("stdout"))
}

// TestExecStreams: output comes as it is written, and a client that leaves
// takes the command with it.
func TestExecStreams(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	for _, query := range []string{"", "?stream=false"} {
		ctx, cancel := context.WithCancel(context.Background())
		req := r.request("POST", execPath+query, strings.NewReader(`{"shell":"echo one; exec sleep 60"}`), "X-Api-Key", key, "Content-Type", "application/json").WithContext(ctx)
		before := h.process()
		left := make(chan error, 1)
		go func() {
			resp, err := r.client.Do(req)
			if err == nil {
				line, readErr := bufio.NewReader(resp.Body).ReadString('\n')
				if readErr != nil || line != `{"type":"stdout","data":"one\n"}`+"\n" {
					t.Errorf("first line %q, %v", line, readErr)
				}
				cancel()
				_ = resp.Body.Close() // it was given up
			}
			left <- err
		}()
		eventually(t, "the command runs", func() bool { return h.process() != before })
		if query != "" {
			cancel() // there is nothing to read before the end
		}
		<-left
		cancel()
		eventually(t, "the command is gone", func() bool {
			select {
			case <-h.process().done:
				return true
			default:
				return false
			}
		})
	}
}

// TestExecTruncates: a reply that does not stream is bounded, a stream is not.
func TestExecTruncates(t *testing.T) {
	t.Parallel()
	r := newRig(t, newHost(t))
	body := `{"shell":"head -c 11000000 /dev/zero | tr '\\0' x"}`
	got := r.must("POST", execPath+"?stream=false", body)
	if got.body["truncated"] != true || len(got.str("stdout")) != 10<<20 || got.body["code"] != 0.0 {
		t.Errorf("truncated %v, %d bytes, code %v", got.body["truncated"], len(got.str("stdout")), got.body["code"])
	}
	if stdout, _, _ := r.execLines(body); len(stdout) != 11000000 {
		t.Errorf("streamed %d bytes", len(stdout))
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	r := newRig(t, h)
	base := "/atoll/v1/sessions/sesn_1/files?path="
	send := func(method, path, contentType string, body io.Reader) answer {
		return r.do(r.request(method, path, body, "X-Api-Key", key, "Content-Type", contentType))
	}
	data := string([]byte{0, 0xff, '\n'}) + strings.Repeat("x", 40<<20) // larger than a JSON body may be
	if got := send("PUT", base+"a&mode=0755", "", strings.NewReader(data)); got.status != 200 || got.str("type") != "file_written" {
		t.Fatalf("%d %s", got.status, got.text)
	}
	got := r.ask("GET", base+"a", "")
	if got.status != 200 || got.text != data || got.header.Get("Content-Type") != "application/octet-stream" || got.header.Get("X-Atoll-Mode") != "0755" {
		t.Errorf("%d, %d bytes, %v", got.status, len(got.text), got.header)
	}
	if got := r.ask("GET", base+".", ""); got.text != "a tar" || got.header.Get("Content-Type") != "application/x-tar" {
		t.Errorf("%d %s", got.status, got.text)
	}
	if got := send("PUT", base+"d", "application/x-tar", strings.NewReader("tar")); got.str("type") != "directory_written" {
		t.Errorf("%d %s", got.status, got.text)
	}
	if got := send("PUT", base+"j", "application/json", strings.NewReader("{not json")); got.str("type") != "file_written" {
		t.Errorf("%d %s", got.status, got.text)
	}
	if got := r.ask("DELETE", base+"a", ""); got.status != 200 || got.str("type") != "file_removed" {
		t.Errorf("%d %s", got.status, got.text)
	}
	if got := r.ask("GET", base+"a", ""); got.status != 404 || got.message() != "no such file or directory" {
		t.Errorf("%d %s", got.status, got.text)
	}
	for _, bad := range []string{"", "%00", strings.Repeat("x", 4097), "a&mode=999", "a&mode=77777", "a&mode=rwx"} {
		if got := send("PUT", base+bad, "", strings.NewReader("x")); got.status != 400 {
			t.Errorf("%.20s: %d %s", bad, got.status, got.text)
		}
	}
	if err := os.WriteFile(filepath.Join(h.dir, "shrinks"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Do(r.request("GET", base+"shrinks", nil, "X-Api-Key", key))
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it breaks off
	}
	if err == nil {
		t.Error("a file that shrank reads as if it were whole")
	}
}

func TestBuildsAndEgress(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.log = []byte("line 1\nline 2\n")
	r := newRig(t, h)
	path := "/atoll/v1/environments/env_1/build"
	for _, method := range []string{"GET", "POST"} {
		if got := r.must(method, path, ""); got.str("status") != "ready" || got.body["error"] != nil {
			t.Error(got.text)
		}
	}
	if got := r.ask("GET", path+"/log?offset=7", ""); got.text != "line 2\n" || got.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%d %q", got.status, got.text)
	}
	if got := r.ask("GET", path+"/log?offset=99", ""); got.status != 200 || got.text != "" {
		t.Errorf("%d %q", got.status, got.text)
	}
	for _, bad := range []string{"offset=-1", "offset=x", "follow=x"} {
		if got := r.ask("GET", path+"/log?"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.text)
		}
	}
	go func() { h.tail <- []byte("line 4\n"); close(h.tail) }()
	resp, err := r.client.Do(r.request("GET", path+"/log?follow=true&offset=14", nil, "X-Api-Key", key))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "line 4\n" {
		t.Errorf("followed %q, %v", text, err)
	}
	if got := r.must("GET", "/atoll/v1/sessions/sesn_1/egress?verdict=refused&limit=7&before=egr_00000000000001&after=egr_00000000000000", ""); got.text != `{"data":[],"has_more":false}`+"\n" {
		t.Error(got.text)
	}
	if h.ask.Verdict != "refused" || h.ask.Limit != 8 || h.ask.Before != "egr_00000000000001" || h.ask.After != "egr_00000000000000" {
		t.Errorf("filter %+v", h.ask)
	}
	for _, bad := range []string{"verdict=maybe", "limit=0", "limit=1001", "before=r1", "after=%00"} {
		if got := r.ask("GET", "/atoll/v1/sessions/sesn_1/egress?"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.text)
		}
	}
	if got := r.must("GET", "/atoll/v1/templates", ""); got.body["data"].([]any)[0].(map[string]any)["name"] != "slim" {
		t.Error(got.text)
	}
	for _, gone := range []string{"/atoll/v1/environments/env_2/build", "/atoll/v1/environments/env_2/build/log", "/atoll/v1/sessions/sesn_2/egress", "/atoll/v1/sessions/sesn_2/files?path=x"} {
		if got := r.ask("GET", gone, ""); got.status != 404 {
			t.Errorf("%s: %d %s", gone, got.status, got.text)
		}
	}
	if got := r.askAs("", "GET", "/atoll/v1/templates", ""); got.status != 401 {
		t.Errorf("%d %s", got.status, got.text)
	}
}

// TestExecWire: the lines are exactly what docs/sandbox-api.md promises.
func TestExecWire(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		value any
		want  string
	}{
		{api.ExecEvent{Type: "stdout", Data: "a"}, `{"type":"stdout","data":"a"}`},
		{api.ExecEvent{Type: "stderr", Data: "/w==", Encoding: "base64"}, `{"type":"stderr","data":"/w==","encoding":"base64"}`},
		{api.ExecExit{Type: "exit", ExecEnd: api.ExecEnd{DurationMS: 3}}, `{"type":"exit","code":0,"signal":null,"timed_out":false,"duration_ms":3}`},
	} {
		got, err := json.Marshal(test.value)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, string(got)); diff != "" {
			t.Error(diff)
		}
	}
}
