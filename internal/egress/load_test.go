package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// churn opens and closes connections from inside the box, one after the other,
// each in the way that its turn says.
func churn(b *box, n int, ways ...func(c *net.TCPConn) error) (opened int, err error) {
	addrs := []string{b.resolve("ok.example.com") + ":443", b.resolve("ok.example.com") + ":80", "198.18.0.1:443", "203.0.113.9:22"}
	err = b.in(func() error {
		for i := range n {
			c, err := net.Dial("tcp", addrs[i%len(addrs)])
			if err != nil {
				if isReset(err) { // refused before connect had returned
					opened++
					continue
				}
				return err
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			// What the other end does meanwhile is not the point here.
			err = ways[i/len(addrs)%len(ways)](c.(*net.TCPConn))
			_ = c.Close()
			var t net.Error
			if errors.As(err, &t) && t.Timeout() {
				return fmt.Errorf("connection %d was left alone: %w", i, err)
			}
			opened++
		}
		return nil
	})
	return opened, err
}

// E238: ten thousand connections, opened and closed in every way, leave nothing.
// Not parallel: it counts what the process has.
func TestE238Churn(t *testing.T) {
	w := newWorld(t, "ok.example.com")
	g := w.gateway(func(c *Config) { c.Limits.ConnectionRate = 1e6 })
	b := w.open(g, "churn", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	hello := withSNI(t, "ok.example.com")
	readAll := func(c *net.TCPConn, say string) error {
		if _, err := io.WriteString(c, say); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	}
	ways := []func(*net.TCPConn) error{
		func(c *net.TCPConn) error { return nil },                                                               // nothing said
		func(c *net.TCPConn) error { return c.SetLinger(0) },                                                    // reset
		func(c *net.TCPConn) error { _, err := c.Write(hello[:20]); return err },                                // half a hello
		func(c *net.TCPConn) error { _, err := c.Write(hello); return err },                                     // a hello, then gone
		func(c *net.TCPConn) error { return readAll(c, "GET / HTTP/1.1\r\nHost: x.example.com\r\n\r\n") },       // refused
		func(c *net.TCPConn) error { return readAll(c, "GET / HTTP/1.0\r\nHost: ok.example.com\r\n\r\n") },      // answered
		func(c *net.TCPConn) error { return readAll(c, "SSH-2.0-x\r\n") },                                       // another protocol
		func(c *net.TCPConn) error { _ = c.CloseWrite(); _, err := io.Copy(io.Discard, c); return err },         // half closed
		func(c *net.TCPConn) error { _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: ok.exam")); return err }, // half a head
		func(c *net.TCPConn) error {
			return tls.Client(c, &tls.Config{ServerName: "no.example.com"}).Handshake()
		}, // mismatch
	}
	slot := g.live("churn")
	run := func(n int) {
		t.Helper()
		if opened, err := churn(b, n, ways...); err != nil || opened != n {
			t.Fatalf("%d of %d connections: %v", opened, n, err)
		}
		eventually(t, "no flow left", func() bool {
			slot.mu.Lock()
			defer slot.mu.Unlock()
			return len(slot.flows) == 0
		})
	}
	run(len(ways) * 4) // what is made once is made now
	n := 10_000
	if testing.Short() { // the race detector's run
		n = 1000
	}
	before, names := census(t), len(slot.state.Load().names.byAddr)
	run(n)
	after := map[string]int{}
	eventually(t, "as much as before", func() bool {
		after = census(t)
		for what, n := range before {
			if after[what] > n+3 { // the runtime's own and kept-alive ones of the upstream come and go
				return false
			}
		}
		return true
	})
	t.Logf("before %v, after %v", before, after)
	if n := len(slot.state.Load().names.byAddr); n != names {
		t.Errorf("%d names with an address, %d before", n, names)
	}
	if code, _, _, err := b.get("https://ok.example.com/"); err != nil || code != 200 {
		t.Errorf("afterwards: %d %v", code, err)
	}
}

// E232: a thousand connections at once from twenty sandboxes are all served.
func TestE232ThousandAtOnce(t *testing.T) {
	t.Parallel()
	const boxes, each = 20, 50
	w := newWorld(t, "ok.example.com")
	// A thousand handshakes may take longer than a hello may on a busy machine.
	g := w.gateway(func(c *Config) { c.Limits.Hello = time.Minute })
	var open sync.WaitGroup // all connections are there at the same time
	open.Add(boxes * each)
	var served atomic.Int64
	var running sync.WaitGroup
	for i := range boxes {
		b := w.open(g, fmt.Sprintf("b%d", i), Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
		addr := b.resolve("ok.example.com") + ":443"
		running.Go(func() {
			conns := make([]*tls.Conn, 0, each)
			err := b.in(func() error {
				for range each {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						return err
					}
					conns = append(conns, tls.Client(c, &tls.Config{ServerName: "ok.example.com", RootCAs: w.roots}))
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			for range each - len(conns) {
				open.Done()
			}
			for _, c := range conns {
				_ = c.SetDeadline(time.Now().Add(60 * time.Second))
				running.Go(func() {
					defer c.Close()
					err := c.Handshake()
					open.Done()
					open.Wait()
					if err == nil {
						_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: ok.example.com\r\nConnection: close\r\n\r\n")
					}
					var out []byte
					if err == nil {
						out, err = io.ReadAll(c)
					}
					if err != nil || !bytes.Contains(out, []byte("200 OK")) {
						t.Errorf("%s: %q %v", b.id, firstLine(string(out)), err)
						return
					}
					served.Add(1)
				})
			}
		})
	}
	running.Wait()
	if served.Load() != boxes*each {
		t.Errorf("%d of %d served", served.Load(), boxes*each)
	}
}

// E233: hellos and heads that are never finished are ended, and take no more
// than the sandbox's share of connections.
func TestE233HalfOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	g := w.gateway(func(c *Config) {
		c.Limits.ConnectionRate, c.Limits.Hello, c.Limits.HTTPHead = 1e6, time.Second, time.Second
	})
	b := w.open(g, "half", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	slot := g.live("half")
	addr := b.resolve("ok.example.com")
	var conns []net.Conn
	most := 0
	err := b.in(func() error {
		for i := range 1000 {
			c, err := net.Dial("tcp", addr+[]string{":443", ":80"}[i%2])
			if err != nil {
				continue // over the limit
			}
			conns = append(conns, c)
			_, _ = io.WriteString(c, []string{"\x16\x03\x01\x02\x00\x01", "GET / HTTP/1.1\r\nHost: ok"}[i%2]) // may be refused already
			slot.mu.Lock()
			most = max(most, len(slot.flows))
			slot.mu.Unlock()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if most > g.config.Limits.Connections {
		t.Errorf("%d connections at once, the limit is %d", most, g.config.Limits.Connections)
	}
	eventually(t, "all of them ended", func() bool {
		slot.mu.Lock()
		defer slot.mu.Unlock()
		return len(slot.flows) == 0
	})
	// The kernel counts those that the client has not closed on its side.
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "a connection afterwards", func() bool {
		code, _, _, err := b.get("https://ok.example.com/")
		return err == nil && code == 200
	})
}

// lineCounter is a log that counts its lines and bytes.
type lineCounter struct{ lines, bytes atomic.Int64 }

func (l *lineCounter) Write(b []byte) (int, error) {
	l.lines.Add(1)
	l.bytes.Add(int64(len(b)))
	return len(b), nil
}

// E236: a hundred thousand refusals, each of another name, are decided and
// counted one by one, and take bounded memory and log.
func TestE236Refusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	var log lineCounter
	var decided atomic.Int64
	g := w.gateway(func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.OnDecision = func(Record) { decided.Add(1) }
	})
	b := w.open(g, "refused", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	s := g.live("refused")
	const n = 100_000
	start := time.Now()
	for i := range n { // past the socket, whose rate would make this minutes
		if s.answer(question(t, fmt.Sprintf("n%d.no.example.com", i), 1)) == nil {
			t.Fatal("no answer")
		}
	}
	took := time.Since(start)
	rs, err := g.Records("refused", Filter{})
	if err != nil || len(rs) > ringAll+ringRefused || len(rs) < ringRefused {
		t.Errorf("%d records, %v", len(rs), err)
	}
	j := s.state.Load().journal
	j.mu.Lock()
	if len(j.recent) > collapseKeys {
		t.Errorf("%d records are waiting for their like", len(j.recent))
	}
	j.mu.Unlock()
	if decided.Load() != n {
		t.Errorf("%d decisions counted, want %d", decided.Load(), n)
	}
	if names := len(s.state.Load().names.byAddr); names != 1 {
		t.Errorf("%d names have an address", names)
	}
	// A burst, and then so many a second.
	if most := int64(logBurst + logRate*(took.Seconds()+1)); log.lines.Load() > most {
		t.Errorf("%d lines, %d bytes of log in %v; want at most %d lines", log.lines.Load(), log.bytes.Load(), took, most)
	}
	if code, _, _, err := b.get("https://ok.example.com/"); err != nil || code != 200 {
		t.Errorf("afterwards: %d %v", code, err)
	}
}
