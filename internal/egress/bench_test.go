package egress

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
)

func BenchmarkMakePair(b *testing.B) {
	needRoot(b)
	for b.Loop() {
		p, err := makePair(Limits{}.withDefaults())
		if err != nil {
			b.Fatal(err)
		}
		p.close()
	}
}

// BenchmarkOpenClose is what a session pays, with nothing made ahead.
func BenchmarkOpenClose(b *testing.B) {
	w := newWorld(b)
	g := w.gateway(nil)
	p := mustCompile(b, crashSpec())
	ctx := context.Background()
	for b.Loop() {
		if _, err := g.Open(ctx, "x", Meta{}, p); err != nil {
			b.Fatal(err)
		}
		if err := g.Close(ctx, "x"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenPooled is what a session pays when a network was made ahead.
func BenchmarkOpenPooled(b *testing.B) {
	w := newWorld(b)
	g := w.gateway(func(c *Config) { c.PoolSize = 8 })
	p := mustCompile(b, crashSpec())
	ctx := context.Background()
	for b.Loop() {
		b.StopTimer()
		eventually(b, "a full pool", func() bool { return len(g.pool) == cap(g.pool) })
		b.StartTimer()
		if _, err := g.Open(ctx, "x", Meta{}, p); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := g.Close(ctx, "x"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkConnect is a connection through the gateway and its first byte.
func BenchmarkConnect(b *testing.B) {
	w := newWorld(b)
	box, port := rawUpstream(b, w, func(c net.Conn) { _, _ = io.WriteString(c, "x"); _ = c.Close() })
	addr := net.JoinHostPort(box.resolve("raw.example.com"), strconv.Itoa(port))
	err := box.in(func() error {
		for b.Loop() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			if _, err := io.ReadAll(c); err != nil {
				return err
			}
			_ = c.Close()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkDownload moves bytes through the gateway.
func BenchmarkDownload(b *testing.B) {
	w := newWorld(b)
	const size = 64 << 20
	block := make([]byte, 1<<20)
	box, port := rawUpstream(b, w, func(c net.Conn) {
		for range size / len(block) {
			_, _ = c.Write(block)
		}
		_ = c.Close()
	})
	addr := net.JoinHostPort(box.resolve("raw.example.com"), strconv.Itoa(port))
	b.SetBytes(size)
	for b.Loop() {
		c, err := box.dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c); err != nil || n != size {
			b.Fatal(n, err)
		}
		_ = c.Close()
	}
}

func rawUpstream(b *testing.B, w *world, serve func(net.Conn)) (*box, int) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(w.addr, 0).String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	w.know("raw.example.com", port)
	g := w.gateway(func(c *Config) { c.Limits.ConnectionRate = 1e6 })
	return w.open(g, "bench", Spec{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("raw.example.com"), Port: port, Rule: "operator", Raw: true}}}), port
}
