package toolset

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/html/charset"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/outbound"
)

// The limits of one fetch.
const (
	maxURL       = 2048
	maxRedirects = 10
	maxBody      = 10 << 20 // bytes after decompression
	tokenBytes   = 4        // a token is taken for this many characters
)

// refusal is a tool error with a code of the web tools.
type refusal struct{ code, text string }

func (r *refusal) Error() string { return r.code + ": " + r.text }

func refuse(code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// Codes of refusals.
const (
	codeInput       = "invalid_input"
	codeNotAllowed  = "url_not_allowed"
	codeUnreachable = "url_not_accessible"
	codeType        = "unsupported_content_type"
	codeBusy        = "too_many_requests"
	codeUnavailable = "unavailable"
)

// site holds what decides about an address: the session's policy and the tool's
// own lists.
type site struct {
	policy           *egress.Policy
	allowed, blocked []string
	// refused is told of "host:port" where the tool may not go, and of the list of
	// the tool that says so; the list is empty where the policy does. It may be nil.
	refused func(address, list string)
}

// The tool's lists, as refusals name them.
const (
	listAllowed = "allowed_domains"
	listBlocked = "blocked_domains"
)

// deny is check's refusal.
func (s site) deny(host string, port int, list, format string, args ...any) error {
	if s.refused != nil {
		s.refused(net.JoinHostPort(host, strconv.Itoa(port)), list)
	}
	return refuse(codeNotAllowed, format, args...)
}

// target reads an address and decides whether the tool may go there. The host
// and the path in what it returns are in canonical form. The port is the last
// word of the dial guard; this is what is known before.
func (s site) target(raw string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, refuse(codeInput, "the URL is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
		return nil, refuse(codeInput, "the URL has to be an http or https address without credentials")
	}
	return u, s.check(u)
}

// check decides about an address and writes its host and its path canonically:
// what is compared is what is sent.
func (s site) check(u *url.URL) error {
	port := 443
	if u.Scheme == "http" {
		port = 80
	}
	if text := u.Port(); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 65535 {
			return refuse(codeInput, "the URL has no valid port")
		}
		port = n
	}
	host, err := parseWebHost(u.Hostname())
	if s.policy == nil || s.policy.Mode() == egress.ModeLimited && len(s.policy.Spec().AllowedHosts) == 0 {
		return s.deny(u.Hostname(), port, "", "this session's environment allows no web hosts")
	}
	if err != nil {
		return refuse(codeInput, "the URL has no valid host name: %v", err)
	}
	plain := plainPath(u.EscapedPath())
	if u.Path != "" {
		if u.Path, err = url.PathUnescape(plain); err != nil {
			return refuse(codeInput, "the URL has no valid path")
		}
		u.RawPath = plain
	}
	if host.isAddr() {
		if s.policy.Mode() != egress.ModeUnrestricted || host.addr.Zone() != "" {
			return s.deny(host.addr.String(), port, "", "%s is not an allowed web host", host.addr)
		}
		return s.checkLists(host.addr.String(), host, port, plain)
	}
	u.Host = host.name.String()
	if u.Scheme == "https" && port != 443 || u.Scheme == "http" && port != 80 {
		u.Host = net.JoinHostPort(host.name.String(), strconv.Itoa(port))
	}
	if _, ok := s.policy.Allows(egress.SourceWebTool, host.name, port); !ok {
		return s.deny(host.name.String(), port, "", "%s (port %d) is not in the allowed_hosts of this session's environment", host.name, port)
	}
	return s.checkLists(host.name.String(), host, port, plain)
}

// checkLists decides by the tool's own lists.
func (s site) checkLists(shown string, host webHost, port int, plain string) error {
	allowed, err := parseEntries(s.allowed)
	if err != nil {
		return s.deny(shown, port, listAllowed, "the tool's allowed_domains cannot be read: %v", err)
	}
	blocked, err := parseEntries(s.blocked)
	if err != nil {
		return s.deny(shown, port, listBlocked, "the tool's blocked_domains cannot be read: %v", err)
	}
	switch {
	case len(allowed) > 0 && !allowedBy(allowed, host, plain):
		return s.deny(shown, port, listAllowed, "%s is not in the tool's allowed_domains", shown)
	case blockedBy(blocked, host, plain):
		return s.deny(shown, port, listBlocked, "%s is in the tool's blocked_domains", shown)
	}
	return nil
}

// fetch runs web_fetch.
func (s *Session) fetch(ctx context.Context, call Call, config api.ToolConfig) (Result, error) {
	var in struct {
		URL string `json:"url"`
	}
	if err := decode(call.Input, &in); err != nil || in.URL == "" {
		return textResult(true, "%s: %s: give the address as the string url", api.ToolWebFetch, codeInput), nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.toolset.fetchTime)
	defer cancel()
	at := site{s.cfg.Web, config.AllowedDomains, config.BlockedDomains, s.cfg.RefuseWeb}
	page, err := s.get(ctx, at, in.URL)
	if err != nil {
		return s.webFailure(ctx, api.ToolWebFetch, err), nil
	}
	return s.show(ctx, call, page, config.MaxContentTokens), nil
}

// page is what a server answered.
type page struct {
	url       *url.URL // where it came from, after redirects
	mediaType string
	header    string // Content-Type as it was sent
	body      []byte
}

// get fetches an address, checking each redirect as the address itself.
func (s *Session) get(ctx context.Context, at site, raw string) (page, error) {
	u, err := at.target(raw)
	if err != nil {
		return page{}, err
	}
	if s.cfg.DialWeb == nil {
		return page{}, refuse(codeUnavailable, "this server makes no web connections")
	}
	client := outbound.New(outbound.Config{
		Transport: transport(s.cfg.DialWeb, s.toolset.roots), Redirects: outbound.Pages,
		Check: func(next *http.Request, followed int) error {
			if followed >= maxRedirects {
				return refuse(codeUnreachable, "more than %d redirects", maxRedirects)
			}
			if next.URL.Scheme != "http" && next.URL.Scheme != "https" || next.URL.User != nil {
				return refuse(codeNotAllowed, "a redirect to what is no web address")
			}
			return at.check(next.URL)
		},
	})
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return page{}, refuse(codeInput, "the URL is not valid")
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "text/html, text/markdown, text/plain, application/json, application/pdf, image/*, */*;q=0.1")
	resp, err := client.Do(req)
	if err != nil {
		return page{}, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		return page{}, refuse(codeBusy, "%s answered 429", resp.Request.URL.Host)
	case resp.StatusCode != http.StatusOK:
		return page{}, refuse(codeUnreachable, "%s answered %d %s", resp.Request.URL.Host, resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return page{}, err
	}
	if len(body) > maxBody {
		return page{}, refuse(codeUnreachable, "the content is longer than %d bytes", maxBody)
	}
	return newPage(resp.Request.URL, resp.Header.Get("Content-Type"), body), nil
}

const userAgent = "atoll-web-fetch/1"

func newPage(u *url.URL, contentType string, body []byte) page {
	if contentType == "" {
		contentType = http.DetectContentType(body)
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		mediaType, _, _ = strings.Cut(strings.ToLower(contentType), ";")
	}
	return page{url: u, mediaType: strings.TrimSpace(mediaType), header: contentType, body: body}
}

// transport connects through a session's guard, and through no proxy.
func transport(dial Dial, roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, MaxIdleConns: 8, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 20 * time.Second, ResponseHeaderTimeout: 45 * time.Second, MaxResponseHeaderBytes: 256 << 10,
	}
}

// show makes content blocks of a page.
func (s *Session) show(ctx context.Context, call Call, p page, maxTokens *int) Result {
	if isMedia(p.mediaType) {
		b, err := mediaBlock(p.body)
		if err != nil {
			return textResult(true, "%s: %s: %s is called %s: %v", api.ToolWebFetch, codeType, oneLine(p.url.String(), maxURL), p.mediaType, err)
		}
		return Result{Content: blocks(textBlock("URL: "+p.url.String()), b)}
	}
	title, text, ok := p.text(ctx)
	if !ok {
		return textResult(true, "%s: %s: %s is not text, a PDF or an image", api.ToolWebFetch, codeType, oneLine(p.mediaType, 100))
	}
	head := "URL: " + p.url.String()
	if title != "" {
		head += "\nTitle: " + oneLine(title, 500)
	}
	if maxTokens != nil {
		if short, cut := characters(text, min(*maxTokens, maxBody)*tokenBytes); cut {
			text = short + fmt.Sprintf("\n[content truncated to about %d tokens]", *maxTokens)
		}
	}
	if text == "" {
		text = "(the page has no text)"
	}
	return textResult(false, "%s", s.fit(ctx, call, head+"\n\n"+text))
}

func blocks[T any](b ...T) []T { return b }

// text is the page's text and title; not ok when it is not text.
func (p page) text(ctx context.Context) (title, text string, ok bool) {
	switch {
	case p.mediaType == "text/html" || p.mediaType == "application/xhtml+xml":
		in, err := charset.NewReader(bytes.NewReader(p.body), p.header)
		if err != nil {
			in = bytes.NewReader(p.body)
		}
		title, text = readable(ctx, in, p.url)
		return title, text, true
	case textual(p.mediaType):
		in, err := charset.NewReader(bytes.NewReader(p.body), p.header)
		if err != nil || utf8.Valid(p.body) {
			return "", strings.ToValidUTF8(string(p.body), "\uFFFD"), true
		}
		decoded, _ := io.ReadAll(io.LimitReader(in, 4*maxBody))
		return "", strings.ToValidUTF8(string(decoded), "\uFFFD"), true
	}
	return "", "", false
}

// textual tells whether a media type is made of text.
func textual(mediaType string) bool {
	if strings.HasPrefix(mediaType, "text/") || strings.HasSuffix(mediaType, "+json") || strings.HasSuffix(mediaType, "+xml") {
		return true
	}
	return slices.Contains([]string{"application/json", "application/xml", "application/javascript", "application/x-javascript", "application/yaml",
		"application/x-yaml", "application/toml", "application/x-ndjson", "application/x-sh", "application/sql"}, mediaType)
}

// webFailure words what went wrong for the model. Errors of the network are put
// in words of our own: theirs may hold addresses of this host.
func (s *Session) webFailure(ctx context.Context, tool string, err error) Result {
	if r, ok := errors.AsType[*refusal](err); ok {
		return textResult(true, "%s: %v", tool, r)
	}
	if d, ok := errors.AsType[*egress.DialError](err); ok {
		code := codeNotAllowed
		if d.Reason == egress.ReasonResolveFailed || d.Reason == egress.ReasonConnectFailed {
			code = codeUnreachable
		}
		return textResult(true, "%s: %s: the connection was not made (%s)", tool, code, d.Reason)
	}
	if cause := context.Cause(ctx); errors.Is(cause, ErrCancelled) {
		return textResult(true, "%s: interrupted", tool)
	} else if errors.Is(cause, context.DeadlineExceeded) {
		return textResult(true, "%s: %s: no answer within %s", tool, codeUnreachable, s.toolset.fetchTime)
	}
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return textResult(true, "%s: %s: the TLS certificate is not valid: %s", tool, codeUnreachable, oneLine(cert.Err.Error(), 300))
	}
	if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
		return textResult(true, "%s: %s: the server did not answer in time", tool, codeUnreachable)
	}
	s.toolset.log.DebugContext(ctx, "a web tool failed", "session_id", s.cfg.ID, "tool", tool, "error", err)
	return textResult(true, "%s: %s: the connection failed", tool, codeUnreachable)
}
