package httpapi

import (
	"cmp"
	"container/list"
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// DoorsConfig bounds the connections of a server.
type DoorsConfig struct {
	// Strangers is how many connections may be open together that have not shown a
	// valid key; zero means 4096. The oldest is closed when one more comes.
	Strangers int
	// StrangersPerAddress is how many of them may come from one address, of IPv6
	// from one network of 64 bits; zero means half of Strangers. The oldest of that
	// address is closed when one more comes.
	StrangersPerAddress int
	// Descriptors gets one unit for each connection that has shown a valid key,
	// held by its workspace. Nil means no limit.
	Descriptors *control.Budget
}

// Doors counts the connections of a server: those of strangers, who have not
// shown a valid key, and those of workspaces. Strangers cost the server little:
// a client who knows a key shows it in its first request and is none any more,
// so that those who wait longest make room. [Doors.Serve] counts.
type Doors struct {
	config DoorsConfig

	mu        sync.Mutex                // guards what follows
	strangers list.List                 // of *doorConn, the oldest first
	addresses map[netip.Addr]*list.List // address → its strangers, the oldest first
}

// NewDoors makes the counters of one server.
func NewDoors(config DoorsConfig) *Doors {
	config.Strangers = cmp.Or(config.Strangers, 4096)
	config.StrangersPerAddress = cmp.Or(config.StrangersPerAddress, max(config.Strangers/2, 1))
	return &Doors{config: config, addresses: map[netip.Addr]*list.List{}}
}

// Serve makes a server answer what comes to a listener, counted. It returns as
// [http.Server.Serve] does. The server's handler is one of [New]: it also answers
// what net/http would answer by itself, as a request without method and path.
func (d *Doors) Serve(server *http.Server, l *net.TCPListener) error {
	handler := server.Handler
	server.ReadHeaderTimeout, server.IdleTimeout, server.MaxHeaderBytes = headWait, idleWait, maxHead
	server.DisableGeneralOptionsHandler = true
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, doorKey{}, c)
	}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(doorKey{}).(*doorConn); ok {
			c.answering.Store(true)
		}
		handler.ServeHTTP(w, r)
	})
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if c, ok := c.(*doorConn); ok && state == http.StateIdle {
			c.answering.Store(false) // the reply is out
		}
	}
	return server.Serve(&doorListener{TCPListener: l, doors: d, handler: handler})
}

const (
	// headWait is how long a client may take to send the head of a request.
	headWait = 15 * time.Second
	// idleWait is how long a connection may be idle between two requests.
	idleWait = 3 * time.Minute
	// maxHead is how large the head of a request may be, in bytes.
	maxHead = 256 << 10
)

type doorKey struct{}

type doorListener struct {
	*net.TCPListener
	doors   *Doors
	handler http.Handler // as in doorConn
}

// Accept implements net.Listener.
func (l *doorListener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	conn := &doorConn{TCPConn: c, doors: l.doors, handler: l.handler}
	l.doors.add(conn)
	return conn, nil
}

// doorConn is one connection. The lock of its doors guards what follows
// answering; refused belongs to the goroutine that serves the connection.
type doorConn struct {
	*net.TCPConn
	doors   *Doors
	handler http.Handler // answers in the place of net/http

	refused   bool        // it has done so, which ends the connection
	answering atomic.Bool // a request is with the handler, or its reply on the way

	address    netip.Addr    // as strangers are counted
	inAll      *list.Element // its place among all strangers; nil: it is none any more
	inAddress  *list.Element // its place among those of its address
	workspaces []string      // whose valid keys it has shown, each with one descriptor
	closed     bool
}

// Write implements net.Conn. What is written while no request is with the handler
// is a reply of net/http's own, in plain text and without an id; the handler's
// takes its place.
func (c *doorConn) Write(p []byte) (int, error) {
	if c.answering.Load() {
		return c.TCPConn.Write(p)
	}
	if c.refused {
		return len(p), nil // the rest of that reply
	}
	c.refused = true
	if _, err := c.TCPConn.Write(replyToProtocol(c.handler, c, readProtocolRefusal(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements net.Conn.
func (c *doorConn) Close() error {
	c.doors.remove(c)
	return c.TCPConn.Close()
}

func (d *Doors) add(c *doorConn) {
	remote, _ := c.RemoteAddr().(*net.TCPAddr) // the listener's connections have one
	c.address = strangerAddress(remote.AddrPort().Addr())
	d.mu.Lock()
	own := d.addresses[c.address]
	if own == nil {
		own = list.New()
		d.addresses[c.address] = own
	}
	c.inAll, c.inAddress = d.strangers.PushBack(c), own.PushBack(c)
	var oldest *doorConn
	switch {
	case own.Len() > d.config.StrangersPerAddress:
		oldest = own.Front().Value.(*doorConn)
	case d.strangers.Len() > d.config.Strangers:
		oldest = d.strangers.Front().Value.(*doorConn)
	}
	if oldest != nil {
		d.forget(oldest)
	}
	d.mu.Unlock()
	if oldest != nil {
		_ = oldest.TCPConn.Close() // the server that reads it sees its end
	}
}

// strangerAddress is what strangers are counted by: whoever has an IPv6 address
// has the 2⁶⁴ of its network.
func strangerAddress(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// forget takes a connection out of the strangers. The caller holds the lock.
func (d *Doors) forget(c *doorConn) {
	if c.inAll == nil {
		return
	}
	d.strangers.Remove(c.inAll)
	own := d.addresses[c.address]
	own.Remove(c.inAddress)
	if own.Len() == 0 {
		delete(d.addresses, c.address)
	}
	c.inAll, c.inAddress = nil, nil
}

func (d *Doors) remove(c *doorConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(c)
	c.closed = true
	for _, workspace := range c.workspaces {
		d.config.Descriptors.Give(workspace, 1)
	}
	c.workspaces = nil
}

// admit makes a connection a workspace's own, as a valid key of the workspace
// was shown on it. It tells whether the workspace may have one more connection.
func (d *Doors) admit(c *doorConn, workspace string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(c)
	if c.closed {
		return true // nobody will read the answer
	}
	for _, known := range c.workspaces {
		if known == workspace {
			return true
		}
	}
	if !d.config.Descriptors.Take(workspace, 1) {
		return false
	}
	c.workspaces = append(c.workspaces, workspace)
	return true
}

// admit counts the request's connection as one of the workspace's.
func admit(r *http.Request, workspace string) error {
	c, ok := r.Context().Value(doorKey{}).(*doorConn)
	if ok && !c.doors.admit(c, workspace) {
		return control.Faultf(control.RateLimited, "Too many connections are open; close some and try again")
	}
	return nil
}
