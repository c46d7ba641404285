package toolset_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/egress"
)

// mcpVersion of the official Python SDK, which the test's server is made with.
const mcpVersion = "2.3.0"

// unavailable skips a test whose tools are not here; in CI it fails.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// python is an interpreter with the MCP SDK of the public registry, installed
// once for each user.
func python(t *testing.T) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "atoll-test", "mcp-"+mcpVersion)
	interpreter := filepath.Join(dir, "bin", "python3")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil {
		return interpreter
	}
	for _, step := range [][]string{{"python3", "-m", "venv", "--clear", dir},
		{interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "mcp==" + mcpVersion, "uvicorn"}} {
		if out, err := exec.CommandContext(t.Context(), step[0], step[1:]...).CombinedOutput(); err != nil {
			unavailable(t, "%s: %v\n%.2000s", step[0], err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "complete"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return interpreter
}

// startMCP starts the server of testdata. It can be ended and started again.
func startMCP(t *testing.T, log string) (port int, stop func()) {
	t.Helper()
	cmd := exec.Command(python(t), "testdata/mcp_server.py", log)
	said := &bytes.Buffer{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("the MCP server said: %s", said)
		}
	})
	if _, err := fmt.Fscan(bufio.NewReader(out), &port); err != nil {
		t.Fatalf("the MCP server does not start: %v", err)
	}
	return port, stop
}

// mcpTools is an agent with one MCP server.
func mcpTools(port int, path string, configs ...api.ToolConfig) ([]api.Tool, []api.MCPServer) {
	set := &api.Toolset{Type: api.ToolsetMCP, MCPServerName: "my server",
		DefaultConfig: api.ToolDefault{Enabled: true, PermissionPolicy: api.PermissionPolicy{Type: "always_ask"}}, Configs: configs}
	return []api.Tool{{Toolset: set}}, []api.MCPServer{{Type: "url", Name: "my server", URL: fmt.Sprintf("http://mcp.example.com:%d%s", port, path)}}
}

// mcpPolicy opens the server as an agent's endpoint.
func mcpPolicy(t *testing.T, port int) *egress.Policy {
	return compile(t, egress.Spec{Mode: egress.ModeLimited, Endpoints: []egress.Endpoint{{Host: hostName("mcp.example.com"), Port: port, Rule: "mcp:my server"}}})
}

func TestMCP(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	port, stop := startMCP(t, log)
	gateway := newGateway(t, netip.AddrPortFrom(loopback.Addr().Next(), uint16(port)), "mcp.example.com")
	tools, servers := mcpTools(port, "/mcp", api.ToolConfig{Name: "add", Enabled: true, PermissionPolicy: api.PermissionPolicy{Type: "always_allow"}},
		api.ToolConfig{Name: "fails", Enabled: true, PermissionPolicy: api.PermissionPolicy{Type: "auto"}}, api.ToolConfig{Name: "hidden"})
	box := &memoryBox{}
	s := open(t, toolset.Config{}, toolset.SessionConfig{Tools: append(tools, agentToolset()...), MCPServers: servers, Box: box,
		DialMCP: dialer(gateway, egress.SourceMCP, mcpPolicy(t, port))})
	offered := toolsEventually(t, s)
	var names []string
	for _, o := range offered {
		if o.Kind == toolset.KindMCP {
			names = append(names, o.ModelName+" "+o.Permission)
			if o.Server != "my server" || !strings.Contains(string(o.InputSchema), `"object"`) {
				t.Errorf("offered: %+v", o)
			}
		}
	}
	got := strings.Join(names, "\n")
	for _, want := range []string{"mcp__my_server__add_", " always_allow", "mcp__my_server__dots_and_strokes_", " always_ask", "mcp__my_server__fails_", " auto"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not offered:\n%s", want, got)
		}
	}
	if strings.Contains(got, "hidden") || len(names) != 9 {
		t.Errorf("offered:\n%s", got)
	}
	call := func(name string, input any, want string, isError bool) {
		t.Helper()
		if text, _, r := run(t, s, toolset.Call{Server: "my server", Name: name}, input); !strings.Contains(text, want) || r.IsError != isError || r.Failed != nil {
			t.Errorf("%s: error %t, %.200q, want %q", name, r.IsError, text, want)
		}
	}
	call("add", map[string]int{"a": 2, "b": 3}, "sum: 5", false)
	call("dots.and/strokes", nil, "odd", false)
	call("structured", nil, "42", false)
	call("fails", nil, "Error executing tool fails", true)
	call("add", map[string]string{"a": "x"}, "validation", true)
	call("hidden", nil, "hidden: this tool is not enabled", true)
	call("nothing", nil, "has no such tool", true)
	call("add", []int{1}, "invalid add input: not an object", true)
	call("long", nil, "[output truncated: the whole text, 250000 bytes, is in ", false)
	if _, others, r := run(t, s, toolset.Call{Server: "my server", Name: "picture"}, nil); r.IsError || len(others) != 1 ||
		string(others[0]) != `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}` {
		t.Errorf("picture: %s", others)
	}
	mixedMCP(t, s)
	if text, _, r := run(t, s, toolset.Call{Server: "no server", Name: "add"}, nil); !r.IsError || !strings.Contains(text, "no MCP server") {
		t.Errorf("another server: %q", text)
	}
	// What may have run before a restart runs again only where that does no harm.
	once := map[string]string{"word": "noted"}
	call("once", once, "noted", false)
	if text, _, r := run(t, s, toolset.Call{Server: "my server", Name: "once", Again: true}, once); !r.IsError || !strings.Contains(text, "unknown") {
		t.Errorf("once again: %q", text)
	}
	if text, _, r := run(t, s, toolset.Call{Server: "my server", Name: "add", Again: true}, map[string]int{"a": 1, "b": 1}); r.IsError || text != "sum: 2" && !strings.Contains(text, "sum: 2") {
		t.Errorf("add again: %q", text)
	}
	if noted, _ := os.ReadFile(log); string(noted) != "noted\n" {
		t.Errorf("the server noted %q", noted)
	}
	cancelMCP(t, s)
	records, err := gateway.Records("sesn_test", egress.Filter{})
	if err != nil || len(records) == 0 || records[0].Source != egress.SourceMCP || records[0].Rule != "mcp:my server" {
		t.Errorf("decisions: %+v %v", records, err)
	}
	stop()
	if text, _, r := run(t, s, toolset.Call{Server: "my server", Name: "add"}, map[string]int{"a": 1, "b": 1}); !r.IsError || r.Failed == nil || r.Failed.Auth {
		t.Errorf("a server that is gone: %q %+v", text, r.Failed)
	}
	if _, failed := s.Tools(t.Context()); len(failed) != 1 || failed[0].Server != "my server" || failed[0].Auth {
		t.Errorf("a server that is gone: %+v", failed)
	}
}

// mixedMCP holds that a result keeps the server's order, also when it is too long.
func mixedMCP(t *testing.T, s *toolset.Session) {
	t.Helper()
	for words, want := range map[int]string{
		5:      "text aaaaa, image, text bbbbb, image, text ccccc",
		60_000: "text aaaaa…, image, text bbbbb…[output truncated: the whole text, 180002 bytes, is in FILE], image",
	} {
		_, _, r := run(t, s, toolset.Call{Server: "my server", Name: "mixed"}, map[string]int{"words": words})
		var got []string
		for _, raw := range r.Content {
			var b struct{ Type, Text string }
			if err := json.Unmarshal(raw, &b); err != nil {
				t.Fatal(err)
			}
			if len(b.Text) > 1000 {
				_, note, _ := strings.Cut(b.Text, "\n")
				if at := strings.Index(note, " is in "); at >= 0 {
					note = note[:at] + " is in FILE]"
				}
				b.Text = b.Text[:5] + "…" + note
			}
			got = append(got, strings.TrimSpace(b.Type+" "+b.Text))
		}
		if order := strings.Join(got, ", "); order != want || r.IsError {
			t.Errorf("%d: error %t, %s\nwant %s", words, r.IsError, order, want)
		}
	}
}

// toolsEventually waits until the server answers.
func toolsEventually(t *testing.T, s *toolset.Session) []toolset.Tool {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		tools, failed := s.Tools(t.Context())
		if len(failed) == 0 {
			return tools
		}
		if time.Now().After(end) {
			t.Fatal(failed[0])
		}
	}
}

// cancelMCP interrupts a call that runs, and one that has not begun.
func cancelMCP(t *testing.T, s *toolset.Session) {
	t.Helper()
	began := filepath.Join(t.TempDir(), "began")
	slow := toolset.Call{ID: "sevt_slow", Server: "my server", Name: "slow"}
	done := make(chan string, 1)
	go func() {
		text, _, r := run(t, s, slow, map[string]string{"log": began})
		done <- fmt.Sprint(r.IsError, " ", text)
	}()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(began); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the slow call does not begin")
		}
	}
	if err := s.Cancel(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	if got := <-done; !strings.HasPrefix(got, "true slow: interrupted") {
		t.Errorf("interrupted: %s", got)
	}
	never := toolset.Call{ID: "sevt_never", Server: "my server", Name: "once"}
	if err := s.Cancel(t.Context(), never); err != nil {
		t.Fatal(err)
	}
	if text, _, r := run(t, s, never, map[string]string{"word": "never"}); !r.IsError || !strings.Contains(text, "interrupted before it ran") {
		t.Errorf("interrupted before: %q", text)
	}
}

func TestMCPFailures(t *testing.T) {
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		auth    bool
		text    string
	}{
		"unauthorized": {answer(401, "who are you"), true, "the server answered 401"},
		"forbidden":    {answer(403, ""), true, "the server answered 403"},
		"broken":       {answer(500, "secret words"), false, "the server answered 500"},
		"a web page":   {answer(200, "<html>"), false, "does not speak MCP"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://other.example.com/", http.StatusTemporaryRedirect)
		}, false, "the server answered 307"},
		"no end": {endless, false, "does not speak MCP"},
	} {
		server := httptest.NewServer(c.handler)
		at := netip.MustParseAddrPort(server.Listener.Addr().String())
		gateway := newGateway(t, at, "mcp.example.com", "other.example.com")
		tools, servers := mcpTools(int(at.Port()), "/")
		s := open(t, toolset.Config{}, toolset.SessionConfig{Tools: tools, MCPServers: servers, DialMCP: dialer(gateway, egress.SourceMCP, mcpPolicy(t, int(at.Port())))})
		offered, failed := s.Tools(t.Context())
		if len(offered) != 0 || len(failed) != 1 || failed[0].Auth != c.auth || !strings.Contains(failed[0].Error(), c.text) || strings.Contains(failed[0].Error(), "secret") {
			t.Errorf("%s: %v", name, failed)
		}
		server.CloseClientConnections()
		server.Close()
	}
	// Under a policy without it, the server is not reached.
	reached := false
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	gateway := newGateway(t, at, "mcp.example.com")
	tools, servers := mcpTools(int(at.Port()), "/")
	for _, policy := range []*egress.Policy{compile(t, egress.Spec{Mode: egress.ModeLimited}),
		compile(t, egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"mcp.example.com"}})} { // on the web's ports only
		s := open(t, toolset.Config{}, toolset.SessionConfig{Tools: tools, MCPServers: servers, DialMCP: dialer(gateway, egress.SourceMCP, policy)})
		if _, failed := s.Tools(context.Background()); len(failed) != 1 || !strings.Contains(failed[0].Error(), "_not_allowed") {
			t.Errorf("a policy without the server: %v", failed)
		}
	}
	if reached {
		t.Error("the server was reached")
	}
}
