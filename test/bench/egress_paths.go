package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/atoll-run/atoll/internal/egress"
)

// The bench's upstream: a port that speaks first and moves bytes, and one that
// speaks TLS and echoes.
const (
	upstreamName = "up.example.com"
	rawPort      = 7000
	tlsPort      = 443
	resolver     = "169.254.100.1" // of every sandbox
	directAddr   = "169.254.101.1" // of the upstream on a path without a gateway
)

// upstream is where the bench's connections end, on one address.
type upstream struct{ raw, tls net.Listener }

func newUpstream(addr string) (*upstream, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{upstreamName}}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	u := &upstream{}
	if u.raw, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", addr, rawPort)); err != nil {
		return nil, err
	}
	secure, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", addr, tlsPort))
	if err != nil {
		return nil, errors.Join(err, u.raw.Close())
	}
	u.tls = tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	go serve(u.raw, serveRaw)
	go serve(u.tls, func(c net.Conn) { _, _ = io.Copy(c, c) })
	return u, nil
}

func (u *upstream) close() {
	_ = u.raw.Close()
	_ = u.tls.Close()
}

func serve(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// serveRaw says a byte, and then does as it is told: D sends bytes, U takes them.
func serveRaw(c net.Conn) {
	if _, err := io.WriteString(c, "x"); err != nil {
		return
	}
	r := bufio.NewReaderSize(c, 256<<10)
	var what string
	var size int64
	if _, err := fmt.Fscanf(r, "%s %d\n", &what, &size); err != nil {
		return
	}
	if what == "U" {
		if _, err := io.CopyN(io.Discard, r, size); err == nil {
			_, _ = io.WriteString(c, "done\n")
		}
		return
	}
	block := make([]byte, 256<<10)
	for ; size > 0; size -= int64(len(block)) {
		if _, err := c.Write(block); err != nil {
			return
		}
	}
}

// loopback is an address of loopback that nobody else has.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 100+rand.IntN(90), rand.IntN(256), 1+rand.IntN(250))
}

// link is a pair of namespaces with a veth between them, as a sandbox and its
// gateway have, and an upstream in the far one: the path without a gateway.
type link struct {
	near     netns.NsHandle
	far      netns.NsHandle
	upstream *upstream
}

func newLink() (*link, error) {
	l := &link{near: netns.None(), far: netns.None()}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in another namespace
		done <- l.make()
	}()
	if err := <-done; err != nil {
		l.close()
		return nil, fmt.Errorf("making a path without a gateway: %w", err)
	}
	return l, nil
}

func (l *link) make() (err error) {
	if l.far, err = netns.New(); err != nil { // the thread is in it now
		return err
	}
	if l.near, err = netns.New(); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0", PeerNamespace: netlink.NsFd(l.far)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := up("eth0", "169.254.101.2/30"); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(directAddr)}); err != nil {
		return err
	}
	if err := netns.Set(l.far); err != nil {
		return err
	}
	if err := up("peer0", directAddr+"/30"); err != nil {
		return err
	}
	l.upstream, err = newUpstream(directAddr)
	return err
}

func up(name, addr string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	at, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(dev, at), netlink.LinkSetUp(dev))
}

func (l *link) close() {
	if l.upstream != nil {
		l.upstream.close()
	}
	for _, ns := range []*netns.NsHandle{&l.near, &l.far} {
		if ns.IsOpen() {
			_ = ns.Close()
		}
	}
}

// ownGateway is a gateway of this process, for what runs in a network without
// gVisor, which takes a sandbox's address for itself.
type ownGateway struct {
	b       *bench
	gateway *egress.Gateway
	held    []netns.NsHandle
	ids     []string
}

// LookupNetIP has every name at the upstream's address.
func (o *ownGateway) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr(o.b.upstreamAt)}, nil
}

func (b *bench) newOwnGateway() (*ownGateway, error) {
	o := &ownGateway{b: b}
	at := netip.PrefixFrom(netip.MustParseAddr(b.upstreamAt), 32)
	var err error
	o.gateway, err = egress.New(egress.Config{
		Dir: filepath.Join(b.dir, "own"), Resolver: o,
		Exempt: []egress.Exemption{{Host: upstreamName, CIDR: at, Ports: []int{rawPort, tlsPort}}},
	})
	return o, err
}

// open makes a network under a policy, for a probe that is a plain process.
func (o *ownGateway) open(spec egress.Spec) (path, error) {
	policy, err := egress.Compile(spec)
	if err != nil {
		return path{}, err
	}
	id := fmt.Sprintf("n%d", len(o.ids))
	at, err := o.gateway.Open(context.Background(), id, egress.Meta{SessionID: id}, policy)
	if err != nil {
		return path{}, err
	}
	o.ids = append(o.ids, id)
	ns, err := netns.GetFromPath(at)
	if err != nil {
		return path{}, err
	}
	o.held = append(o.held, ns)
	return o.b.inNamespace("process → gateway → server", resolver, upstreamName, ns), nil
}

func (o *ownGateway) close() {
	for _, ns := range o.held {
		_ = ns.Close()
	}
	for _, id := range o.ids {
		if err := o.gateway.Close(context.Background(), id); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	if err := o.gateway.Shutdown(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// path is a way for a probe to run: where, and what it reaches.
type path struct {
	name     string
	resolver string
	host     string
	run      func(args ...string) ([]byte, error)
}

// probe runs an operation and takes its times over.
func (p path) probe(operation string, port, n int) (probeResult, error) {
	var r probeResult
	out, err := p.run(operation, p.resolver, p.host, fmt.Sprint(port), fmt.Sprint(n))
	if err != nil {
		return r, fmt.Errorf("%s: %w: %s", p.name, err, tail(out))
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("%s: %w: %s", p.name, err, tail(out))
	}
	return r, nil
}

func (s *sample) take(r probeResult, err error) {
	if err != nil {
		s.Failures++
		s.Note = err.Error()
		return
	}
	s.Millis = append(s.Millis, r.Millis...)
	s.Failures += r.Failures
	if r.Note != "" {
		s.Note = r.Note
	}
}

// inSession is a probe in a session's sandbox.
func (b *bench) inSession(name, session string) path {
	return path{name, resolver, upstreamName, func(args ...string) ([]byte, error) {
		var out struct {
			Stdout, Stderr string
			Code           int
		}
		err := b.call("POST", "/atoll/v1/sessions/"+session+"/exec?stream=false", object{"command": append([]string{"/tmp/probe", "-probe"}, args...)}, &out)
		if err == nil && out.Code != 0 {
			err = fmt.Errorf("exit %d: %s", out.Code, out.Stderr)
		}
		return []byte(out.Stdout), err
	}}
}

// inNamespace is a probe as a plain process in a network namespace.
func (b *bench) inNamespace(name, resolver, host string, ns netns.NsHandle) path {
	return path{name, resolver, host, func(args ...string) ([]byte, error) {
		cmd := exec.Command(b.probe, append([]string{"-probe"}, args...)...)
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends here
			err := netns.Set(ns)
			if err == nil {
				err = cmd.Run() // what a thread starts is where the thread is
			}
			done <- err
		}()
		if err := <-done; err != nil {
			return nil, fmt.Errorf("%w: %s", err, tail(stderr.Bytes()))
		}
		return out.Bytes(), nil
	}}
}

// inRunsc is a probe in a gVisor sandbox of raw runsc on a direct path, a new
// one each time: gVisor takes the addresses and routes of a link away.
func (b *bench) inRunsc(name string) path {
	return path{name, "-", directAddr, func(args ...string) ([]byte, error) {
		l, err := newLink()
		if err != nil {
			return nil, err
		}
		defer l.close()
		bundle := filepath.Join(b.dir, fmt.Sprintf("probe-%d", counter.Add(1)))
		if err := b.bundle(bundle, append([]string{"/tmp/probe", "-probe"}, args...)...); err != nil {
			return nil, err
		}
		if err := joinNamespace(bundle, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(l.near))); err != nil {
			return nil, err
		}
		cmd := exec.Command(b.runsc, "--root", filepath.Join(b.dir, "runsc-root"), "--network", "sandbox", "--ignore-cgroups", "--overlay2", "none",
			"run", "--bundle", bundle, filepath.Base(bundle))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return out, fmt.Errorf("%w: %s", err, tail(stderr.Bytes()))
		}
		return out, nil
	}}
}

// joinNamespace has a bundle use a network namespace that is there.
func joinNamespace(bundle, path string) error {
	file := filepath.Join(bundle, "config.json")
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	raw = bytes.Replace(raw, []byte(`{"type":"network"}`), fmt.Appendf(nil, `{"type":"network","path":%q}`, path), 1)
	return os.WriteFile(file, raw, 0o644)
}
