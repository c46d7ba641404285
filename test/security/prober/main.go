// Prober tries things: it dials, sends what it is told, and reports what came
// back. The security tests run it in a sandbox and, with every capability, in a
// sandbox's network namespace.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// prober holds the connections that requests left open.
type prober struct {
	mu    sync.Mutex // guards what follows
	out   *json.Encoder
	conns map[int]net.Conn
	next  int
}

func main() {
	p := &prober{out: json.NewEncoder(os.Stdout), conns: map[int]net.Conn{}}
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	decoder := json.NewDecoder(in)
	for {
		var r wire.Request
		if err := decoder.Decode(&r); err != nil {
			return // the tests have left
		}
		go p.serve(r)
	}
}

func (p *prober) serve(r wire.Request) {
	start := time.Now()
	ops := map[string]func(*wire.Request) wire.Reply{
		"talk": p.talk, "close": p.close, "many": p.many, "get": get, "frames": frames, "flood": flood,
		"stream": p.stream, "run": run, "admin": admin, "connect": connectFlags, "quic": overQUIC, "look": look,
	}
	var reply wire.Reply
	if op, ok := ops[r.Op]; ok {
		reply = op(&r)
	} else {
		reply.Error = "no such operation"
	}
	reply.ID, reply.Millis = r.ID, time.Since(start).Milliseconds()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.out.Encode(reply); err != nil {
		os.Exit(1) // nobody listens
	}
}

func wait(r *wire.Request) time.Duration {
	if r.WaitMS > 0 {
		return time.Duration(r.WaitMS) * time.Millisecond
	}
	return 20 * time.Second
}

// ending says in one word how an error ended a conversation.
func ending(err error) string {
	var t net.Error
	var alert interface{ Error() string }
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "eof"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL),
		errors.Is(err, syscall.EAFNOSUPPORT):
		return "unreachable"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "forbidden"
	case errors.As(err, &t) && t.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &alert) && strings.Contains(err.Error(), "remote error: tls:"):
		return "alert"
	}
	return "error"
}

func failed(err error) wire.Reply { return wire.Reply{Error: err.Error(), End: ending(err)} }

func (p *prober) open(r *wire.Request) (net.Conn, int, error) {
	if r.Conn != 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		c, ok := p.conns[r.Conn]
		if !ok {
			return nil, 0, errors.New("no such connection")
		}
		return c, r.Conn, nil
	}
	network := r.Network
	if network == "" {
		network = "tcp4"
	}
	d := net.Dialer{Timeout: wait(r), KeepAlive: -1}
	d.SetMultipathTCP(false)
	c, err := d.Dial(network, r.Address)
	return c, 0, err
}

func (p *prober) talk(r *wire.Request) wire.Reply {
	c, id, err := p.open(r)
	if err != nil {
		return failed(err)
	}
	reply := wire.Reply{}
	if r.TLS != nil {
		if c, err = shake(r, c, &reply); err != nil {
			_ = c.Close()
			reply.Error, reply.End = err.Error(), ending(err)
			return reply
		}
	}
	exchange(r, c, &reply)
	if !r.Keep {
		abort(c, r.Abort)
		p.mu.Lock()
		delete(p.conns, id)
		p.mu.Unlock()
		return reply
	}
	p.mu.Lock()
	if id == 0 {
		p.next++
		id = p.next
	}
	p.conns[id], reply.Conn = c, id
	p.mu.Unlock()
	return reply
}

func abort(c net.Conn, hard bool) {
	if t, ok := c.(*net.TCPConn); ok && hard {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// exchange sends and reads.
func exchange(r *wire.Request, c net.Conn, reply *wire.Reply) {
	for data := r.Data; len(data) > 0; {
		_ = c.SetDeadline(time.Now().Add(wait(r)))
		n := len(data)
		if r.Chunk > 0 {
			n = min(n, r.Chunk)
		}
		written, err := c.Write(data[:n])
		reply.Sent += int64(written)
		if err != nil {
			reply.Error, reply.End = err.Error(), ending(err)
			break // what came back may still be read
		}
		data = data[n:]
		if r.PauseMS > 0 && len(data) > 0 {
			time.Sleep(time.Duration(r.PauseMS) * time.Millisecond)
		}
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok && r.HalfClose {
		_ = half.CloseWrite()
	}
	if r.Max < 0 {
		return
	}
	_ = c.SetDeadline(time.Now().Add(wait(r)))
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if reply.Got += int64(n); len(reply.Data) < 1<<20 {
			reply.Data = append(reply.Data, buf[:n]...)
		}
		if err != nil {
			if err != io.EOF {
				reply.Error = err.Error()
			}
			if reply.End == "" { // or writing failed, and says more
				reply.End = ending(err)
			}
			return
		}
		if _, packet := c.(net.PacketConn); packet || r.Max > 0 && reply.Got >= int64(r.Max) {
			reply.End = "more"
			return
		}
	}
}

func (p *prober) close(r *wire.Request) wire.Reply {
	c, id, err := p.open(r)
	if err != nil {
		return failed(err)
	}
	p.mu.Lock()
	delete(p.conns, id)
	p.mu.Unlock()
	abort(c, r.Abort)
	return wire.Reply{}
}

// many talks to each of many addresses and counts the outcomes.
func (p *prober) many(r *wire.Request) wire.Reply {
	reply := wire.Reply{Counts: map[string]int{}, First: map[string]string{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	work := make(chan string)
	for range max(1, r.Parallel) {
		all.Go(func() {
			for address := range work {
				one := *r
				one.Address, one.Addresses = address, nil
				got := p.talk(&one)
				outcome := got.End
				if len(got.Data) > 0 {
					outcome = string(got.Data[:min(len(got.Data), 12)])
				}
				mu.Lock()
				if reply.Counts[outcome]++; reply.First[outcome] == "" {
					reply.First[outcome] = address
				}
				mu.Unlock()
			}
		})
	}
	for _, address := range r.Addresses {
		work <- address
	}
	close(work)
	all.Wait()
	return reply
}

// stream sends Repeat bytes while it reads to the end, and counts both.
func (p *prober) stream(r *wire.Request) wire.Reply {
	c, _, err := p.open(r)
	if err != nil {
		return failed(err)
	}
	defer c.Close()
	reply := wire.Reply{}
	_ = c.SetDeadline(time.Now().Add(wait(r)))
	sending := make(chan int64)
	go func() {
		n := int64(0)
		buf := make([]byte, 256<<10)
		for n < int64(r.Repeat) {
			m, err := c.Write(buf[:min(int64(len(buf)), int64(r.Repeat)-n)])
			n += int64(m)
			if err != nil {
				break
			}
		}
		if half, ok := c.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		sending <- n
	}()
	if r.PauseMS > 0 { // a slow reader
		time.Sleep(time.Duration(r.PauseMS) * time.Millisecond)
	}
	reply.Got, err = io.Copy(io.Discard, c)
	reply.End = ending(err)
	reply.Sent = <-sending
	return reply
}

func get(r *wire.Request) wire.Reply {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: clientConfig(r.TLS), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := http.Client{Timeout: wait(r), Transport: transport}
	req, err := http.NewRequest(r.Method, r.URL, strings.NewReader(string(r.Data)))
	if err != nil {
		return failed(err)
	}
	for k, v := range r.Header {
		req.Header.Set(k, v)
		if k == "Host" {
			req.Host = v
		}
	}
	res, err := client.Do(req)
	if err != nil {
		return failed(err)
	}
	defer res.Body.Close()
	reply := wire.Reply{Status: res.StatusCode, Header: map[string]string{"Proto": res.Proto}}
	for k := range res.Header {
		reply.Header[k] = res.Header.Get(k)
	}
	reply.Data, err = io.ReadAll(io.LimitReader(res.Body, 8<<20))
	reply.Got = int64(len(reply.Data))
	if reply.End = ending(err); err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// look lists all files that are no directories, one a line, but for those that
// the kernel makes up.
func look(*wire.Request) wire.Reply {
	var out strings.Builder
	err := filepath.WalkDir("/", func(path string, e os.DirEntry, err error) error {
		switch {
		case path == "/proc" || path == "/sys" || path == "/dev":
			return filepath.SkipDir
		case err == nil && !e.IsDir():
			out.WriteString(path + "\n")
		}
		return nil // what cannot be read is not there
	})
	reply := wire.Reply{Data: []byte(out.String()), End: ending(err)}
	return reply
}

func run(r *wire.Request) wire.Reply {
	ctx, cancel := context.WithTimeout(context.Background(), wait(r))
	defer cancel()
	out, err := exec.CommandContext(ctx, r.Args[0], r.Args[1:]...).CombinedOutput()
	reply := wire.Reply{Data: out}
	if err != nil {
		reply.Error, reply.End = fmt.Sprint(err), "error"
	}
	return reply
}
