package toolset_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/egress"
)

// authority is a certificate authority that this host does not know, and a
// certificate of it for hosts.
func authority(t *testing.T, hosts ...string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	make := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	ca, signer := make(&x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	leaf, key := make(&x509.Certificate{Subject: pkix.Name{CommonName: "test site"}, DNSNames: hosts, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, signer)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return roots, tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}

// newTLSWorld serves handler over TLS on port 443, for hosts that its
// certificate names and for those that it does not.
func newTLSWorld(t *testing.T, handler http.Handler, named, unnamed []string) (*world, *x509.CertPool) {
	t.Helper()
	roots, cert := authority(t, named...)
	l := tls.NewListener(listen(t, 443), &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}})
	return serve(t, l, handler, slices.Concat(named, unnamed)...), roots
}

// The same as over plain HTTP, where sites really are.
func TestFetchTLS(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("/", site(t))
	mux.HandleFunc("/proto", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.Proto + " " + r.TLS.ServerName)) })
	mux.Handle("/tls-away", http.RedirectHandler("https://blocked.example.com/plain", http.StatusFound))
	mux.Handle("/tls-sideways", http.RedirectHandler("https://other.example.com/proto", http.StatusPermanentRedirect))
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	w, roots := newTLSWorld(t, mux, []string{"web.example.com", "other.example.com", "blocked.example.com"}, []string{"wrong.example.com"})
	policy := compile(t, egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"web.example.com", "other.example.com", "wrong.example.com"}})
	session := func(config toolset.Config) *toolset.Session {
		return open(t, config, toolset.SessionConfig{Tools: agentToolset(), Web: policy, DialWeb: w.dial(egress.SourceWebTool, policy), RefuseWeb: w.refuse(t, policy)})
	}
	s, short, stranger := session(toolset.Config{Roots: roots}), session(toolset.Config{Roots: roots, FetchTime: time.Second}), session(toolset.Config{})
	const web = "https://web.example.com"
	for _, test := range []struct {
		by        *toolset.Session
		url, want string
		isError   bool
	}{
		{s, web + "/proto", "URL: https://web.example.com/proto\n\nHTTP/2.0 web.example.com", false},
		{s, web + "/inside", "URL: https://web.example.com/plain\n\nplain ü", false},
		{s, web + "/tls-sideways", "URL: https://other.example.com/proto\n\nHTTP/2.0 other.example.com", false},
		{s, "https://blocked.example.com/plain", "web_fetch: url_not_allowed: blocked.example.com (port 443) is not in the allowed_hosts of this session's environment", true},
		{s, web + ":8443/plain", "web_fetch: url_not_allowed: web.example.com (port 8443) is not in the allowed_hosts of this session's environment", true},
		{s, web + "/tls-away", "web_fetch: url_not_allowed: blocked.example.com (port 443) is not in the allowed_hosts of this session's environment", true},
		{s, web + "/away", "web_fetch: url_not_allowed: blocked.example.com (port 80) is not in the allowed_hosts of this session's environment", true},
		{s, web + "/local", "web_fetch: url_not_allowed: 127.0.0.1 is not an allowed web host", true},
		{s, web + "/huge", "web_fetch: url_not_accessible: the content is longer than 10485760 bytes", true},
		{s, web + "/bomb", "web_fetch: url_not_accessible: the content is longer than 10485760 bytes", true},
		{short, web + "/slow", "web_fetch: url_not_accessible: no answer within 1s", true},
		{short, web + "/silent", "web_fetch: url_not_accessible: no answer within 1s", true},
		{s, "https://wrong.example.com/plain", "web_fetch: url_not_accessible: the TLS certificate is not valid: x509: certificate is valid for web.example.com, " +
			"other.example.com, blocked.example.com, not wrong.example.com", true},
		{stranger, web + "/plain", "web_fetch: url_not_accessible: the TLS certificate is not valid: x509: certificate signed by unknown authority", true},
	} {
		if got, _, r := run(t, test.by, toolset.Call{Name: "web_fetch"}, map[string]string{"url": test.url}); got != test.want || r.IsError != test.isError {
			t.Errorf("%s: error %t\ngot  %q\nwant %q", test.url, r.IsError, got, test.want)
		}
	}
	if asked := w.requests(); strings.Contains(asked, "blocked.example.com") || strings.Contains(asked, "wrong.example.com") {
		t.Errorf("requests went where none may: %s", asked)
	}
	records, err := w.gateway.Records("sesn_test", egress.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []egress.Record{
		{Host: "web.example.com", DestPort: 443, Reason: egress.ReasonOK},
		{Host: "web.example.com", DestPort: 8443, Reason: egress.ReasonPortNotAllowed},
		{Host: "blocked.example.com", DestPort: 443, Reason: egress.ReasonNameNotAllowed},
		{DestAddress: "127.0.0.1", DestPort: 80, Reason: egress.ReasonNoMapping},
	} {
		if !slices.ContainsFunc(records, func(r egress.Record) bool {
			return r.Host == want.Host && r.DestPort == want.DestPort && r.Reason == want.Reason && r.Source == egress.SourceWebTool
		}) {
			t.Errorf("no record of %s:%d, %s: %+v", want.Host, want.DestPort, want.Reason, records)
		}
	}
	interruptFetch(t, s, w, web+"/silent")
}

// interruptFetch ends a fetch that has no answer yet.
func interruptFetch(t *testing.T, s *toolset.Session, w *world, url string) {
	t.Helper()
	before := strings.Count(w.requests(), "/silent")
	call := toolset.Call{ID: "sevt_interrupted", Name: "web_fetch"}
	go func() {
		for end := time.Now().Add(30 * time.Second); strings.Count(w.requests(), "/silent") == before && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if err := s.Cancel(context.Background(), call); err != nil {
			t.Error(err)
		}
	}()
	if got, _, r := run(t, s, call, map[string]string{"url": url}); got != "web_fetch: interrupted" || !r.IsError {
		t.Errorf("an interrupted fetch: %q", got)
	}
}

// An MCP server behind TLS is believed by the same authorities.
func TestMCPOverTLS(t *testing.T) {
	server := mcp.NewServer(&mcp.Implementation{Name: "tls", Version: "1"}, nil)
	server.AddTool(&mcp.Tool{Name: "hello", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "over TLS"}}}, nil
	})
	// The server's library refuses names that are not its listener's, to keep browsers out.
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{DisableLocalhostProtection: true})
	w, roots := newTLSWorld(t, handler, []string{"mcp.example.com"}, nil)
	policy := compile(t, egress.Spec{Mode: egress.ModeLimited, Endpoints: []egress.Endpoint{{Host: hostName("mcp.example.com"), Port: 443, Rule: "mcp:my server"}}})
	tools, servers := mcpTools(443, "/")
	servers[0].URL = "https://mcp.example.com/"
	for name, known := range map[string]*x509.CertPool{"known": roots, "unknown": nil} {
		s := open(t, toolset.Config{Roots: known}, toolset.SessionConfig{Tools: tools, MCPServers: servers, DialMCP: w.dial(egress.SourceMCP, policy)})
		offered, failed := s.Tools(t.Context())
		if known == nil {
			if len(failed) != 1 || failed[0].Auth || len(offered) != 0 {
				t.Errorf("%s authority: offered %+v, failed %v", name, offered, failed)
			}
			continue
		}
		if len(offered) != 1 || len(failed) != 0 {
			t.Fatalf("%s authority: offered %+v, failed %v", name, offered, failed)
		}
		if got, _, r := run(t, s, toolset.Call{Name: "hello", Server: "my server"}, map[string]string{}); r.IsError || got != "over TLS" {
			t.Errorf("the call gave %q", got)
		}
	}
}
