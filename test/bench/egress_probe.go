package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// probe is this program when it runs as a client, inside a sandbox or beside
// one. Its arguments are an operation, the resolver to ask ("-": none), a host,
// a port and a number; it prints one probeResult.
type probe struct {
	addr string // host and port, resolved
	host string
	n    int
}

type probeResult struct {
	Millis   []float64 `json:"ms"`
	Failures int       `json:"failures"`
	Note     string    `json:"note,omitempty"`
	Sent     int       `json:"sent,omitempty"` // of a flood
}

func runProbe(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("a probe takes five arguments: operation, resolver, host, port, number")
	}
	p := probe{host: args[2]}
	var err error
	if p.n, err = strconv.Atoi(args[4]); err != nil {
		return err
	}
	at := args[2]
	if args[1] != "-" {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(args[1], "53"))
		}}
		found, err := r.LookupNetIP(context.Background(), "ip4", args[2]+".")
		if err != nil {
			return err
		}
		at = found[0].String()
	}
	p.addr = net.JoinHostPort(at, args[3])
	operations := map[string]func() probeResult{
		"raw": func() probeResult { return p.repeat(p.firstByte) }, "tls": func() probeResult { return p.repeat(p.handshake) },
		"down": func() probeResult { return p.once(p.download) }, "up": func() probeResult { return p.once(p.upload) },
		"many": p.many, "paced": p.paced, "spin": p.spin,
		"flood-connect": func() probeResult { return p.flood(8, p.connect) }, "flood-hello": func() probeResult { return p.flood(8, p.halfHello()) },
		"flood-dns": func() probeResult { return p.flood(2, p.question()) }, "flood-udp": func() probeResult { return p.flood(2, p.datagram()) },
		"flood-syn": func() probeResult { return p.flood(2, p.syn()) },
	}
	do, ok := operations[args[0]]
	if !ok {
		return fmt.Errorf("no such operation: %s", args[0])
	}
	return json.NewEncoder(os.Stdout).Encode(do())
}

func (r *probeResult) add(start time.Time, err error) {
	if err != nil {
		r.Failures++
		r.Note = err.Error()
		return
	}
	r.Millis = append(r.Millis, float64(time.Since(start).Microseconds())/1000)
}

func (p probe) once(do func() error) (r probeResult) {
	start := time.Now()
	r.add(start, do())
	return r
}

// repeat does something n times, one after the other.
func (p probe) repeat(do func() error) (r probeResult) {
	for range p.n {
		start := time.Now()
		r.add(start, do())
	}
	return r
}

func (p probe) dial() (net.Conn, error) {
	c, err := net.DialTimeout("tcp", p.addr, 30*time.Second)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(2 * time.Minute))
	}
	return c, err
}

// firstByte connects to a server that speaks first.
func (p probe) firstByte() error {
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

func (p probe) secure() (net.Conn, error) {
	c, err := p.dial()
	if err != nil {
		return nil, err
	}
	return tls.Client(c, &tls.Config{ServerName: p.host, InsecureSkipVerify: true}), nil // the bench's own certificate
}

// handshake connects over TLS and has one byte echoed.
func (p probe) handshake() error {
	c, err := p.secure()
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

func echo(c net.Conn) error {
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// download and upload move n MiB.
func (p probe) download() error {
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "D %d\n", p.n<<20); err != nil {
		return err
	}
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, 256<<10))
	if err == nil && got != int64(p.n)<<20+1 {
		err = fmt.Errorf("%d bytes came", got)
	}
	return err
}

func (p probe) upload() error {
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "U %d\n", p.n<<20); err != nil {
		return err
	}
	block := make([]byte, 256<<10)
	for left := p.n << 20; left > 0; left -= len(block) {
		if _, err := c.Write(block); err != nil {
			return err
		}
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "xdone\n" {
		err = fmt.Errorf("the server says %q", answer)
	}
	return err
}

// many opens n connections at once and keeps each until all have spoken.
func (p probe) many() (r probeResult) {
	var mu sync.Mutex
	var all, ending sync.WaitGroup
	all.Add(p.n)
	for range p.n {
		ending.Go(func() {
			start := time.Now()
			c, err := p.secure()
			if err == nil {
				defer c.Close()
				err = echo(c)
			}
			mu.Lock()
			r.add(start, err)
			mu.Unlock()
			all.Done()
			all.Wait()
			if err == nil {
				if err = echo(c); err != nil {
					mu.Lock()
					r.add(start, fmt.Errorf("a second time: %w", err))
					mu.Unlock()
				}
			}
		})
	}
	ending.Wait()
	return r
}

// paced makes a TLS request every 20 ms, n times: what a neighbour does.
func (p probe) paced() (r probeResult) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range p.n {
		<-tick.C
		start := time.Now()
		r.add(start, p.handshake())
	}
	return r
}

// spin uses the processors, and no network, for n seconds.
func (p probe) spin() (r probeResult) {
	end := time.Now().Add(time.Duration(p.n) * time.Second)
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			for x := uint64(1); time.Now().Before(end); {
				for range 1 << 16 {
					x = x*6364136223846793005 + 1
				}
			}
		})
	}
	running.Wait()
	return r
}

// flood does something over and over from several goroutines for n seconds.
func (p probe) flood(workers int, do func(worker int) error) (r probeResult) {
	end := time.Now().Add(time.Duration(p.n) * time.Second)
	var mu sync.Mutex
	var running sync.WaitGroup
	for worker := range workers {
		running.Go(func() {
			own := probeResult{}
			for time.Now().Before(end) {
				if err := do(worker); err != nil {
					own.Failures++ // refusals are what is to be expected
					own.Note = err.Error()
				}
				own.Sent++
			}
			mu.Lock()
			defer mu.Unlock()
			r.Sent, r.Failures = r.Sent+own.Sent, r.Failures+own.Failures
			if own.Note != "" {
				r.Note = own.Note
			}
		})
	}
	running.Wait()
	return r
}

func (p probe) connect(int) error {
	c, err := net.DialTimeout("tcp", p.addr, time.Second)
	if err != nil {
		return err
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	return c.Close()
}

// halfHello holds many connections that began to speak TLS.
func (p probe) halfHello() func(int) error {
	held := [8][]net.Conn{}
	return func(worker int) error {
		c, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err != nil {
			return err
		}
		h := append(held[worker], c)
		if len(h) > 100 {
			_ = h[0].Close()
			h = h[1:]
		}
		held[worker] = h
		_, err = c.Write([]byte{0x16, 3, 1})
		return err
	}
}

// question asks for a name that nobody has asked for.
func (p probe) question() func(int) error {
	var conns [2]net.Conn
	var sent [2]int
	return func(worker int) error {
		if sent[worker]%1000 == 0 { // another port now and then
			if conns[worker] != nil {
				_ = conns[worker].Close()
			}
			var err error
			if conns[worker], err = net.Dial("udp", "169.254.100.1:53"); err != nil {
				return err
			}
		}
		sent[worker]++
		q := append([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10"), fmt.Sprintf("%016x", rand.Uint64())...)
		_, err := conns[worker].Write(append(q, "\x07example\x03com\x00\x00\x01\x00\x01"...))
		return err
	}
}

// datagram sends to ever other ports of an address.
func (p probe) datagram() func(int) error {
	at, err := netip.ParseAddrPort(p.addr)
	if err != nil {
		return func(int) error { return err }
	}
	var conns [2]*net.UDPConn
	var sent [2]int
	data := make([]byte, 1200)
	return func(worker int) error {
		if conns[worker] == nil {
			var err error
			if conns[worker], err = net.ListenUDP("udp4", nil); err != nil {
				return err
			}
		}
		sent[worker]++
		_, err := conns[worker].WriteToUDPAddrPort(data, netip.AddrPortFrom(at.Addr(), uint16(1024+sent[worker]%60000)))
		return err
	}
}

// syn sends first packets of TCP connections from ever other ports, past the
// kernel's own TCP: an attacker with raw sockets. The kernel fills in addresses
// and the checksum of the IP header.
func (p probe) syn() func(int) error {
	at, err := netip.ParseAddrPort(p.addr)
	if err != nil {
		return func(int) error { return err }
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		return func(int) error { return err }
	}
	to := &unix.SockaddrInet4{Addr: at.Addr().As4()}
	return func(int) error {
		port := uint16(1024 + rand.IntN(60000))
		s := make([]byte, 20)
		s[0], s[1], s[2], s[3] = byte(port>>8), byte(port), byte(at.Port()>>8), byte(at.Port())
		s[12], s[13], s[14] = 5<<4, 2, 0xff
		pseudo := []byte{169, 254, 100, 2, to.Addr[0], to.Addr[1], to.Addr[2], to.Addr[3], 0, 6, 0, 20}
		sum := uint32(0)
		for _, b := range [][]byte{pseudo, s} {
			for i := 0; i < len(b); i += 2 {
				sum += uint32(b[i])<<8 | uint32(b[i+1])
			}
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		s[16], s[17] = byte(^sum>>8), byte(^sum)
		err := unix.Sendto(fd, s, 0, to)
		if errors.Is(err, unix.ENOBUFS) {
			err = nil
		}
		return err
	}
}
