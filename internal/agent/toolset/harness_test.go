package toolset_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// loopback is a range of this host's own loopback that the tests' servers are in.
var loopback = netip.MustParsePrefix("127.0.0.0/8")

// names answers for the hosts of a test: all of them are at one address.
type names struct{ addr netip.Addr }

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if !strings.HasSuffix(strings.TrimSuffix(host, "."), ".example.com") {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{n.addr}, nil
}

// world is a real gateway whose guard lets the named hosts be on loopback, and
// one HTTP server there that answers for all of them.
type world struct {
	gateway *egress.Gateway
	port    int
	mu      sync.Mutex
	asked   []string // "host path" of each request that came through
}

// newWorld serves handler on port 80 of a loopback address, or on any port.
func newWorld(t *testing.T, port80 bool, handler http.Handler, hosts ...string) *world {
	t.Helper()
	port := 0
	if port80 {
		port = 80
	}
	return serve(t, listen(t, port), handler, hosts...)
}

// listen listens on a port of an address of loopback, or on any port.
func listen(t *testing.T, port int) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	if port == 0 {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	} else {
		for i := 2; i < 250; i++ { // other tests may be there
			if l, err = net.Listen("tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, 3, byte(i)}), uint16(port)).String()); err == nil {
				break
			}
		}
	}
	if err != nil {
		t.Skipf("needs to listen: %v", err)
	}
	return l
}

// serve serves handler where l listens, for all the hosts.
func serve(t *testing.T, l net.Listener, handler http.Handler, hosts ...string) *world {
	t.Helper()
	w := &world{}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	w.port = int(at.Port())
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.asked = append(w.asked, r.Host+" "+r.URL.Path)
		w.mu.Unlock()
		handler.ServeHTTP(rw, r)
	}), ReadHeaderTimeout: time.Minute}
	go server.Serve(l)
	t.Cleanup(func() { _ = server.Close() })
	w.gateway = newGateway(t, at, hosts...)
	return w
}

// newGateway opens a gateway for which the hosts are at one address of this host.
func newGateway(t *testing.T, at netip.AddrPort, hosts ...string) *egress.Gateway {
	t.Helper()
	var exempt []egress.Exemption
	for _, host := range hosts {
		exempt = append(exempt, egress.Exemption{Host: host, CIDR: loopback, Ports: []int{int(at.Port())}})
	}
	gateway, err := egress.New(egress.Config{Dir: t.TempDir(), Resolver: names{at.Addr()}, Exempt: exempt})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gateway.Shutdown(context.Background()) })
	return gateway
}

func (w *world) requests() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.asked, "\n")
}

// dial connects under a policy, as the server does for a session.
func (w *world) dial(source string, policy *egress.Policy) toolset.Dial {
	return dialer(w.gateway, source, policy)
}

// refuse records what the tool did not dial, as the server does for a session.
func (w *world) refuse(t *testing.T, policy *egress.Policy) func(address, list string) {
	return func(address, list string) {
		err := w.gateway.Refuse(egress.Client{ID: "sesn_test", Source: egress.SourceWebTool, Meta: egress.Meta{SessionID: "sesn_test"}, Policy: policy}, address, list)
		if err != nil {
			t.Errorf("recording that %s was refused: %v", address, err)
		}
	}
}

func dialer(gateway *egress.Gateway, source string, policy *egress.Policy) toolset.Dial {
	return gateway.Dialer(egress.Client{ID: "sesn_test", Source: source, Meta: egress.Meta{SessionID: "sesn_test", Source: source}, Policy: policy})
}

func compile(t *testing.T, spec egress.Spec) *egress.Policy {
	t.Helper()
	p, err := egress.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// agentToolset enables all built-in tools, with settings for some.
func agentToolset(configs ...api.ToolConfig) []api.Tool {
	allow := api.PermissionPolicy{Type: "always_allow"}
	for i := range configs {
		configs[i].Enabled, configs[i].PermissionPolicy = true, allow
	}
	return []api.Tool{{Toolset: &api.Toolset{Type: api.ToolsetAgent, DefaultConfig: api.ToolDefault{Enabled: true, PermissionPolicy: allow}, Configs: configs}}}
}

// open opens a session of a toolset of its own.
func open(t *testing.T, shared toolset.Config, cfg toolset.SessionConfig) *toolset.Session {
	t.Helper()
	set, err := toolset.New(shared)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Box == nil {
		cfg.Box = &memoryBox{}
	}
	cfg.ID = "sesn_test"
	s := set.Open(cfg)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// memoryBox stands for a sandbox where a test is about something else: it keeps
// what is written.
type memoryBox struct {
	mu    sync.Mutex
	calls []sandbox.ToolCall
}

func (b *memoryBox) RunTool(_ context.Context, call sandbox.ToolCall) (sandbox.ToolResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, call)
	if call.Name != sandbox.ToolWrite {
		return sandbox.ToolResult{}, errors.New("not in this test")
	}
	return sandbox.ToolResult{Text: "written"}, nil
}

func (b *memoryBox) CancelTool(context.Context, string) error { return nil }

// run runs a call and gives its text blocks, joined, and the other blocks.
func run(t *testing.T, s *toolset.Session, call toolset.Call, input any) (text string, others []json.RawMessage, r toolset.Result) {
	t.Helper()
	raw, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	call.Input = raw
	if call.ID == "" {
		call.ID = "sevt_" + strings.ReplaceAll(time.Now().Format("150405.000000000"), ".", "")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if r, err = s.Run(ctx, call); err != nil {
		t.Fatalf("%s %s: %v", call.Name, raw, err)
	}
	if len(r.Content) == 0 {
		t.Fatalf("%s %s: an empty result", call.Name, raw)
	}
	var words []string
	for _, b := range r.Content {
		var head struct{ Type, Text string }
		if err := json.Unmarshal(b, &head); err != nil {
			t.Fatalf("a block that is no JSON: %s", b)
		}
		switch {
		case head.Type != "text":
			others = append(others, b)
		case head.Text == "":
			t.Errorf("a text block without text")
		default:
			words = append(words, head.Text)
		}
	}
	return strings.Join(words, "\n"), others, r
}

// hostName is a host for a table, of a name that is one.
func hostName(name string) egress.Host {
	h, err := egress.Canonical(name)
	if err != nil {
		panic(err)
	}
	return h
}
