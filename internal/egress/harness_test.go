package egress

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
)

// needRoot skips where namespaces cannot be made, except in CI.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("ATOLL_CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
}

// world is what lies outside a sandbox: a resolver that records and upstreams
// that record, on loopback addresses that exemptions open.
type world struct {
	t        testing.TB
	addr     netip.Addr // where all upstreams listen
	resolver *fakeResolver
	exempt   []Exemption
	cert     tls.Certificate
	roots    *x509.CertPool
	release  chan struct{}              // lets an answer of /slow go
	waiting  atomic.Int64               // requests for /never
	tls      atomic.Pointer[tls.Config] // of the upstream on port 443; nil: without encrypted hellos
	trial    atomic.Bool                // that upstream tries its keys, whatever number a hello claims

	mu   sync.Mutex // guards what follows
	seen []string   // requests and connections, as upstreams saw them
}

type fakeResolver struct {
	mu    sync.Mutex // guards what follows
	hosts map[string][]string
	asked []string
}

func (r *fakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, host)
	answers, ok := r.hosts[host]
	if !ok {
		return nil, errors.New("no such host")
	}
	var out []netip.Addr
	for _, a := range answers {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func (r *fakeResolver) set(host string, addrs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts[host+"."] = addrs
}

func (r *fakeResolver) questions() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.asked...)
}

// newWorld starts upstreams on ports 80 and 443 of a loopback address of its
// own. hosts resolve to it and are exempted on ports.
func newWorld(t testing.TB, hosts ...string) *world {
	t.Helper()
	needRoot(t)
	w := &world{t: t, resolver: &fakeResolver{hosts: map[string][]string{}}, release: make(chan struct{})}
	var plain net.Listener
	for range 20 {
		w.addr = netip.AddrFrom4([4]byte{127, byte(1 + mrand.IntN(250)), byte(mrand.IntN(250)), byte(1 + mrand.IntN(250))})
		l, err := net.Listen("tcp", netip.AddrPortFrom(w.addr, 80).String())
		if err == nil {
			plain = l
			break
		}
	}
	if plain == nil {
		t.Fatal("no loopback address with port 80 free")
	}
	secure, err := net.Listen("tcp", netip.AddrPortFrom(w.addr, 443).String())
	if err != nil {
		t.Fatal(err)
	}
	w.cert, w.roots = certificate(t)
	handler := http.HandlerFunc(w.serve)
	config := &tls.Config{Certificates: []tls.Certificate{w.cert}, GetConfigForClient: w.tlsConfig, GetEncryptedClientHelloKeys: w.echKeys}
	for _, l := range []net.Listener{plain, tls.NewListener(readListener{secure}, config)} {
		server := &http.Server{Handler: handler, DisableGeneralOptionsHandler: true, ErrorLog: log.New(io.Discard, "", 0)}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close() })
	}
	for _, h := range hosts {
		w.know(h)
	}
	return w
}

// know makes the world's upstreams the place of a host.
func (w *world) know(host string, ports ...int) {
	w.resolver.set(host, w.addr.String())
	w.exempt = append(w.exempt, Exemption{Host: host, CIDR: netip.PrefixFrom(w.addr, 32), Ports: ports})
}

func (w *world) saw(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, fmt.Sprintf(format, args...))
}

// upstream returns and forgets what the upstreams saw.
func (w *world) upstream() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	w.seen = nil
	return out
}

// hiddenName is a host that is not allowed, behind the upstream on port 443.
const hiddenName = "hidden.example.com"

// tlsConfig is what the upstream on port 443 speaks at the moment.
func (w *world) tlsConfig(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if hello.ServerName == hiddenName {
		w.saw("a hello to %s", hiddenName)
	}
	return w.tls.Load(), nil
}

// echKeys are the keys that the upstream tries on an encrypted hello. Package
// tls tries all that it is given. An upstream that goes by the number cannot
// decrypt with one of another number, so it gets a wrong one in its place.
func (w *world) echKeys(hello *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
	out := []tls.EncryptedClientHelloKey{}
	config := w.tls.Load()
	if config == nil {
		return out, nil
	}
	id, err := echConfigID(hello.Conn.(*readConn).read)
	for _, k := range config.EncryptedClientHelloKeys {
		if !w.trial.Load() && (err != nil || k.Config[4] != id) {
			wrong, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return nil, err
			}
			k.PrivateKey = wrong.Bytes()
		}
		out = append(out, k)
	}
	return out, nil
}

// readListener is one whose connections keep what was read.
type readListener struct{ net.Listener }

func (l readListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &readConn{Conn: c}, nil
}

// readConn keeps the first bytes that are read. Only the handshake's goroutine
// looks at them.
type readConn struct {
	net.Conn

	read []byte
}

func (c *readConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if len(c.read) < maxHello {
		c.read = append(c.read, b[:n]...)
	}
	return n, err
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	w.saw("%s %s %s%s %d", r.Method, scheme, r.Host, r.RequestURI, len(body))
	if err != nil {
		return
	}
	rw.Header().Set("X-Upstream", "yes")
	if r.URL.Path == "/echo" {
		_, _ = rw.Write(body)
		return
	}
	if r.URL.Path == "/slow" {
		select {
		case <-w.release:
			_, _ = io.WriteString(rw, "slow but sure")
		case <-r.Context().Done():
		}
		return
	}
	if r.URL.Path == "/never" {
		w.waiting.Add(1)
		defer w.waiting.Add(-1)
		<-r.Context().Done()
		return
	}
	if r.URL.Path == "/headers" {
		_ = r.Header.Write(rw)
		return
	}
	fmt.Fprintf(rw, "hello from %s", r.Host)
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"example.com", "*.example.com", "*.w.example.com", "*.example.org", "example.org"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// gateway starts a Gateway over this world.
func (w *world) gateway(change func(*Config)) *Gateway {
	w.t.Helper()
	c := Config{Dir: w.t.TempDir(), Resolver: w.resolver, Exempt: w.exempt}
	if change != nil {
		change(&c)
	}
	g, err := New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ids, err := g.List(context.Background())
		if err != nil {
			w.t.Error(err)
		}
		for _, id := range ids {
			if err := g.Close(context.Background(), id); err != nil {
				w.t.Error(err)
			}
		}
		if err := g.Shutdown(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	return g
}

// box is a sandbox's side of a network: a process with all capabilities in the
// runtime namespace.
type box struct {
	t    testing.TB
	w    *world
	g    *Gateway
	id   string
	path string
}

// open makes a network under a policy.
func (w *world) open(g *Gateway, id string, spec Spec) *box {
	w.t.Helper()
	p, err := Compile(spec)
	if err != nil {
		w.t.Fatal(err)
	}
	path, err := g.Open(context.Background(), id, Meta{SessionID: id, WorkspaceID: "ws", EnvironmentID: "env", Source: "sandbox"}, p)
	if err != nil {
		w.t.Fatal(err)
	}
	return &box{w.t, w, g, id, path}
}

// limited is the usual case: one gateway, one network, these entries.
func (w *world) limited(hosts ...string) *box {
	w.t.Helper()
	return w.open(w.gateway(nil), "sandbox", Spec{Mode: ModeLimited, AllowedHosts: hosts})
}

// in runs f in the runtime namespace.
func (b *box) in(f func() error) error {
	ns, err := netns.GetFromPath(b.path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inNamespace(ns, f)
}

// dial connects from inside the sandbox to an address.
func (b *box) dial(network, address string) (net.Conn, error) {
	var c net.Conn
	err := b.in(func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, address)
		return err
	})
	if err == nil {
		b.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func (b *box) mustDial(address string) net.Conn {
	b.t.Helper()
	c, err := b.dial("tcp", address)
	if err != nil {
		b.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// closed connects to an address, reads, and returns how that ended. A reset can
// come before connect has returned.
func (b *box) closed(address string) error {
	c, err := b.dial("tcp", address)
	if err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	out, err := io.ReadAll(c)
	if err == nil {
		err = fmt.Errorf("ended after %d bytes", len(out))
	}
	return err
}

// ask sends one question to a server and returns the reply.
func (b *box) ask(server, name string, kind dnsmessage.Type) (dnsmessage.Message, error) {
	c, err := b.dial("udp", server)
	if err != nil {
		return dnsmessage.Message{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write(question(b.t, name, kind)); err != nil {
		return dnsmessage.Message{}, err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		return dnsmessage.Message{}, err
	}
	var m dnsmessage.Message
	return m, m.Unpack(buf[:n])
}

func question(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}},
	}
	data, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// resolve returns the address that the stub gives a name.
func (b *box) resolve(name string) string {
	b.t.Helper()
	m, err := b.ask("169.254.100.1:53", name, dnsmessage.TypeA)
	if err != nil {
		b.t.Fatalf("asking for %s: %v", name, err)
	}
	if len(m.Answers) != 1 {
		b.t.Fatalf("asking for %s: %v, %d answers", name, m.RCode, len(m.Answers))
	}
	return netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A).String()
}

// to connects to a name's address on a port.
func (b *box) to(name string, port int) net.Conn {
	b.t.Helper()
	return b.mustDial(fmt.Sprintf("%s:%d", b.resolve(name), port))
}

// tls shakes hands over c, saying sni.
func (b *box) tls(c net.Conn, sni string) (*tls.Conn, error) {
	tc := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: b.w.roots, InsecureSkipVerify: sni == ""})
	return tc, tc.Handshake()
}

// get is a whole HTTPS or HTTP request by a well-behaved client.
func (b *box) get(url string) (int, string, http.Header, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: b.w.roots},
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			if _, err := netip.ParseAddr(host); err != nil {
				host = b.resolve(host)
			}
			return b.dial("tcp", net.JoinHostPort(host, port))
		},
	}}
	res, err := client.Get(url)
	if err != nil {
		return 0, "", nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), res.Header, err
}

// raw sends bytes and returns all that comes back until the end.
func raw(c net.Conn, send string) (string, error) {
	if _, err := io.WriteString(c, send); err != nil {
		return "", err
	}
	out, err := io.ReadAll(c)
	return string(out), err
}

// reply sends bytes and reads one HTTP response.
func reply(t testing.TB, c net.Conn, r *bufio.Reader, send string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// isReset tells whether the error is that of a connection that was reset.
func isReset(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "reset by peer") || strings.Contains(err.Error(), "broken pipe"))
}

// record waits for the network's newest record that is not of a DNS answer.
func (b *box) record() Record {
	b.t.Helper()
	var got Record
	eventually(b.t, "a record", func() bool {
		all, err := b.g.Records(b.id, Filter{})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, r := range all {
			if r.Protocol != "dns" {
				got = r
				return true
			}
		}
		return false
	})
	return got
}

// wantReason waits for a record with this reason and returns the newest one.
func (b *box) wantReason(want Reason) Record {
	b.t.Helper()
	var got Record
	eventually(b.t, "a record with reason "+string(want), func() bool {
		all, err := b.g.Records(b.id, Filter{})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, r := range all {
			if r.Reason == want && r.Protocol != "dns" {
				got = r
				return true
			}
		}
		return false
	})
	return got
}

// counts adds up the network's decisions by reason, without those of the stub.
func (b *box) counts() map[Reason]int64 {
	b.t.Helper()
	all, err := b.g.Records(b.id, Filter{})
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[Reason]int64{}
	for _, r := range all {
		if r.Protocol != "dns" {
			out[r.Reason] += r.Count
		}
	}
	return out
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// maxHello is the default limit of a ClientHello.
const maxHello = 18 << 10

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
