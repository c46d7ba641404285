package egress

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gateConn is a connection that speaks plain HTTP, on its way through the gate.
type gateConn struct {
	*net.TCPConn
	flow     *flow
	head     []byte // read ahead, still to be given to the server
	up, down atomic.Int64
	requests atomic.Int64

	answering atomic.Bool // a request is being handled

	countedUp, countedDown int64 // in records already; requests come one after the other
	proxy                  *httputil.ReverseProxy
	dialed                 atomic.Pointer[string]
	once                   sync.Once
	done                   chan struct{}
}

// Read gives the bytes that were read ahead first.
func (c *gateConn) Read(b []byte) (n int, err error) {
	if len(c.head) > 0 {
		n = copy(b, c.head)
		c.head = c.head[n:]
	} else if n, err = c.TCPConn.Read(b); err == io.EOF && len(b) == 1 && c.answering.Load() {
		err = c.stillThere()
	}
	c.up.Add(int64(n))
	return n, err
}

// stillThere waits while a client that has closed its sending side is to get an
// answer. While a request is handled, net/http looks out for the end of the
// connection, by reads of one byte, and takes any end for the client's going
// away. The wait ends with the connection, by an error, or with the request,
// when net/http sets a deadline.
func (c *gateConn) stillThere() error {
	raw, err := c.TCPConn.SyscallConn()
	if err != nil {
		return err
	}
	var end error
	waited := raw.Read(func(fd uintptr) bool {
		// A read would only say again that the client has closed its side.
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if end = err; code != 0 {
			end = syscall.Errno(code)
		}
		return end != nil
	})
	if waited != nil {
		return waited
	}
	return end
}

// ReadFrom and WriteTo of the embedded connection would go round the counters.
func (c *gateConn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

// WriteTo writes what is still to be read.
func (c *gateConn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

func (c *gateConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.down.Add(int64(n))
	return n, err
}

// Close ends the flow's stay in the gate. Closed first and told second: who
// waits for done resets what is still open, with what it has not sent yet.
func (c *gateConn) Close() error {
	c.flow.over()
	err := c.TCPConn.Close()
	c.once.Do(func() { close(c.done) })
	return err
}

// gate hands connections to a slot's HTTP server.
type gate struct {
	conns  chan net.Conn
	closed chan struct{}
	addr   net.Addr
}

func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.conns:
		return c, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}
func (g *gate) Close() error   { return nil } // the slot closes it
func (g *gate) Addr() net.Addr { return g.addr }

type gateKey struct{}

// newHTTPServer makes the server in front of the gate. Its limits are the first
// line: what it cannot parse never reaches the handler, let alone an upstream.
func (s *slot) newHTTPServer() *http.Server {
	return &http.Server{
		Handler:                      http.HandlerFunc(s.handleHTTP),
		ReadHeaderTimeout:            s.gateway.config.Limits.HTTPHead,
		IdleTimeout:                  s.gateway.config.Limits.Idle,
		MaxHeaderBytes:               s.gateway.config.Limits.HTTPHeadSize,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // may quote what a client sent
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, gateKey{}, c)
		},
	}
}

// serveHTTP passes the connection through the gate and returns when it ended.
func (s *slot) serveHTTP(f *flow, head []byte) {
	_ = f.client.SetDeadline(time.Time{})
	c := &gateConn{TCPConn: f.client, flow: f, head: head, done: make(chan struct{})}
	transport := &http.Transport{
		DialContext:            c.dial,
		DisableCompression:     true,
		MaxIdleConns:           1,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	c.proxy = &httputil.ReverseProxy{
		Transport:      transport,
		FlushInterval:  -1,
		ErrorLog:       log.New(io.Discard, "", 0),
		Rewrite:        func(r *httputil.ProxyRequest) { rewrite(r, f.host, f.dest.Port()) },
		ModifyResponse: answered,
		ErrorHandler:   unanswered,
	}
	select {
	case s.gate.conns <- c:
		<-c.done
	case <-s.gate.closed:
		_ = c.Close()
	}
	transport.CloseIdleConnections()
	if c.requests.Load() == 0 {
		reason := f.deny
		if reason == "" {
			reason = ReasonHTTPMalformed
		}
		f.record(Record{Protocol: "http", Reason: reason})
	}
}

// dial connects to the name the connection was made to, whatever it is asked.
func (c *gateConn) dial(context.Context, string, string) (net.Conn, error) {
	up, err := c.flow.dial()
	if err != nil {
		c.flow.gateway.log.Debug("egress: not connected", "session", c.flow.st.id, "host", c.flow.host.name, "error", err)
		return nil, err
	}
	if err := c.flow.connected(up); err != nil {
		_ = up.Close()
		return nil, err
	}
	at := up.RemoteAddr().String()
	c.dialed.Store(&at)
	return up, nil
}

// rewrite makes the request that goes upstream: to the name the address stands
// for, in the path, query and headers the client sent, with one Host.
func rewrite(r *httputil.ProxyRequest, host Host, port uint16) {
	full := net.JoinHostPort(host.name, strconv.Itoa(int(port)))
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", full, full
	if port == 80 {
		r.Out.Host = host.name
	}
	r.Out.URL.RawQuery, r.Out.URL.ForceQuery, r.Out.URL.User = r.In.URL.RawQuery, r.In.URL.ForceQuery, nil
	// The proxy takes these away; the gate is not to be seen.
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = v
		}
	}
}

// request is one request on its way through the gate.
type request struct {
	conn   *gateConn
	writer http.ResponseWriter
	record Record
	kept   *Record
}

type requestKey struct{}

// decided writes the request's one record.
func (q *request) decided(reason Reason) {
	q.record.Reason = reason
	if at := q.conn.dialed.Load(); at != nil && reason == ReasonOK {
		q.record.DialedAddress = *at
	}
	q.kept = q.conn.flow.gateway.record(q.conn.flow.st, q.record)
}

// finish counts what went over the client's side since the last request.
func (q *request) finish() {
	c := q.conn
	up, down := c.up.Load(), c.down.Load()
	if q.kept != nil {
		c.flow.st.journal.finish(q.kept, up-c.countedUp, down-c.countedDown)
	}
	c.countedUp, c.countedDown = up, down
}

// broken ends a connection whose request was not handled to its end. net/http
// would keep a panic to itself: its log may quote what a client sent.
func (s *slot) broken(f *flow) {
	p := recover()
	if p == nil {
		return
	}
	if p != http.ErrAbortHandler { // that one means an upstream that broke off
		s.gateway.log.Error("panic while handling a request", "session", f.st.id, "panic", p, "stack", string(debug.Stack()))
	}
	panic(http.ErrAbortHandler)
}

// handleHTTP decides on one request and passes it on or refuses it.
func (s *slot) handleHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(gateKey{}).(*gateConn)
	f := c.flow
	c.requests.Add(1)
	c.answering.Store(true)
	defer c.answering.Store(false)
	defer s.broken(f)
	reason, rule, claimed := f.decideRequest(r)
	q := &request{conn: c, writer: w, record: f.about(Record{Time: s.gateway.now(), Protocol: "http", Rule: rule, ClaimedHost: claimed})}
	defer q.finish()
	if reason != ReasonOK {
		q.decided(reason)
		name := f.refusedName(reason, claimed)
		if isHTTP2(r) {
			if f.host.IsZero() && reason == ReasonNameNotAllowed { // its frames would say which
				name = "this host"
			}
			denyHTTP2(w, refusalText(name, reason))
			return
		}
		deny(w, name, reason)
		return
	}
	withoutOffer(r)
	c.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, q)))
}

// decideRequest checks one request against the connection it came on, and
// against the policy of this moment.
func (f *flow) decideRequest(r *http.Request) (reason Reason, rule, claimed string) {
	host, port, err := splitAuthority(r.Host)
	switch {
	case r.Host == "":
	case err != nil:
		claimed = InvalidHost
	case host != f.host:
		claimed = host.name
	}
	if f.deny != "" {
		return f.deny, "", claimed
	}
	if _, v := f.decide(f.slot.state.Load()); v.reason != ReasonOK {
		return v.reason, "", claimed
	}
	switch {
	case isHTTP2(r):
		return ReasonProtocolNotAllowed, "", ""
	case r.ProtoMajor != 1 || r.ProtoMinor > 1,
		r.URL.Opaque != "": // "http:x", which would go on as the target "x"
		return ReasonHTTPMalformed, "", claimed
	case r.Method == http.MethodConnect,
		r.URL.Scheme != "" && r.URL.Scheme != "http",
		len(r.Header.Values("Upgrade")) > 0 && !isWebSocket(r) && !isOffer(r):
		return ReasonProtocolNotAllowed, "", claimed
	case r.Host == "":
		return ReasonHostMissing, "", ""
	case claimed != "":
		return ReasonHostMismatch, "", claimed
	case port != 0 && port != f.dest.Port():
		return ReasonHostMismatch, "", host.name
	}
	return ReasonOK, f.choice.rule, ""
}

// isHTTP2 tells whether a request is the preface of HTTP/2 without TLS.
func isHTTP2(r *http.Request) bool { return r.Method == "PRI" && r.ProtoMajor == 2 }

func isWebSocket(r *http.Request) bool {
	all := r.Header.Values("Upgrade")
	return len(all) == 1 && strings.EqualFold(all[0], "websocket")
}

// isOffer tells whether all that a request wants to change to are ways to send
// the same request: HTTP/2, or TLS. A server may go on without (RFC 9110, 7.8).
func isOffer(r *http.Request) bool {
	all := strings.Split(strings.Join(r.Header.Values("Upgrade"), ","), ",")
	for _, p := range all {
		p = strings.ToLower(strings.TrimSpace(p))
		if p != "h2c" && !strings.HasPrefix(p, "tls/") {
			return false
		}
	}
	return true
}

// withoutOffer takes an offer to change the protocol out of a request, which
// goes on in HTTP/1.1.
func withoutOffer(r *http.Request) {
	if !isWebSocket(r) {
		r.Header.Del("Upgrade")
		r.Header.Del("HTTP2-Settings")
	}
}

// splitAuthority takes the host and the port, zero if there is none, out of a
// Host header.
func splitAuthority(s string) (Host, uint16, error) {
	name, digits, ok := strings.Cut(s, ":")
	port := uint64(0)
	if ok {
		var err error
		if port, err = strconv.ParseUint(digits, 10, 16); err != nil || port == 0 {
			return Host{}, 0, fmt.Errorf("no such port")
		}
	}
	host, err := Canonical(name)
	return host, uint16(port), err
}

// refusedName is how a refusal calls what was refused. No byte of the client's
// is in it that is not part of a canonical name.
func (f *flow) refusedName(reason Reason, claimed string) string {
	switch {
	case !f.host.IsZero() && reason != ReasonHostMismatch:
		return f.host.name
	case reason == ReasonNoMapping && f.dest.IsValid(), !f.host.IsZero() && claimed == "":
		return f.dest.String()
	case f.host.IsZero() && reason != ReasonNameNotAllowed && f.dest.IsValid():
		return f.dest.String()
	case claimed == InvalidHost || claimed == "":
		return "an invalid host"
	}
	return claimed
}

// answered records a request that reached its host, and keeps the server from
// adding headers of its own to the answer.
func answered(res *http.Response) error {
	q := res.Request.Context().Value(requestKey{}).(*request)
	q.writer.Header()["Date"] = nil
	q.writer.Header()["Content-Type"] = nil
	q.decided(ReasonOK)
	return nil
}

// unanswered tells the client that its host was not reached.
func unanswered(w http.ResponseWriter, r *http.Request, err error) {
	q := r.Context().Value(requestKey{}).(*request)
	reason := dialReason(err)
	if reason == ReasonConnectFailed && q.conn.dialed.Load() != nil {
		reason = ReasonOK // it was reached, and then broke off
	}
	if q.kept == nil {
		q.decided(reason)
	}
	if reason.verdict() == VerdictRefused {
		deny(w, q.conn.flow.host.name, reason)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusBadGateway)
	_, _ = io.WriteString(w, "no answer from "+q.conn.flow.host.name+" ("+string(reason)+")\n")
}
