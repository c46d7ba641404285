package security

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// The two places that every attempt is made from.
const (
	inGVisor = "gvisor"
	inPlain  = "plain"
)

// stand is one network under test with all around it: its gateway, its resolver,
// its part of the internet, and a prober in the sandbox's place.
type stand struct {
	t      testing.TB
	place  string // inGVisor or inPlain
	mode   string // the column of the results: L, U, B
	index  int
	up     netip.Addr // where every name resolves to
	raw    netip.Addr // an address that no name has
	gw     *egress.Gateway
	id     string
	netns  string
	probe  *probe
	web    *upstream
	log    *lockedBuffer
	config egress.Config

	ticketKey [32]byte

	mu        sync.Mutex // guards what follows
	answers   map[string]func() ([]netip.Addr, error)
	asked     []string
	seen      []string
	packets   []string
	decisions []egress.Record
	generated int64 // all decisions so far
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// everywhere runs f twice at once: with a stand whose prober is in a sandbox and
// with one whose prober is a plain process. change may adjust the gateway.
func everywhere(t *testing.T, mode string, spec egress.Spec, change func(*egress.Config), f func(t *testing.T, s *stand)) {
	needHost(t)
	for _, place := range []string{inGVisor, inPlain} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, place, mode, change)
			s.open(t, spec)
			f(t, s)
		})
	}
}

// needHost skips a test in the quick loop.
func needHost(t testing.TB) {
	t.Helper()
	if world == nil {
		t.Skip("needs root, and minutes")
	}
}

// newStand makes a stand whose network is still to be opened.
func newStand(t testing.TB, place, mode string, change func(*egress.Config)) *stand {
	t.Helper()
	s := &stand{t: t, place: place, mode: mode, log: &lockedBuffer{}, answers: map[string]func() ([]netip.Addr, error){}}
	s.index = world.join(s)
	s.up, s.raw = s.address(0, 1), s.address(9, 9)
	_, err := rand.Read(s.ticketKey[:])
	must(err)
	s.web = newUpstream(s)
	t.Cleanup(func() { _ = s.web.server.Close() })
	dir, err := os.MkdirTemp("", "atoll-stand-")
	must(err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s.config = egress.Config{
		Dir: dir, Resolver: s, OnDecision: s.decided,
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&s.config)
	}
	s.gw, err = egress.New(s.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ids, err := s.gw.List(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if err := s.gw.Close(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
		if err := s.gw.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// address is one of the stand's own addresses on the internet.
func (s *stand) address(c, d byte) netip.Addr {
	return netip.AddrFrom4([4]byte{20, byte(s.index), c, d})
}

// address6 is the same in IPv6.
func (s *stand) address6(last byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x2a, 1: 0x0d, 5: byte(s.index), 15: last})
}

var standNumber atomic.Int64

// open makes the network and starts the prober in its place.
func (s *stand) open(t testing.TB, spec egress.Spec) {
	t.Helper()
	s.id = fmt.Sprintf("s%d", standNumber.Add(1))
	s.netns = s.network(t, s.id, spec)
	s.probe = startProbe(t, s.place, s.id, s.netns)
}

// network makes one more network of the stand's gateway.
func (s *stand) network(t testing.TB, id string, spec egress.Spec) string {
	t.Helper()
	path, err := s.gw.Open(context.Background(), id, meta(id), compile(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func meta(id string) egress.Meta {
	return egress.Meta{SessionID: id, WorkspaceID: "ws", EnvironmentID: "env", Source: "sandbox"}
}

func compile(t testing.TB, spec egress.Spec) *egress.Policy {
	t.Helper()
	p, err := egress.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// change puts the network under another policy. Connections that have said all
// and are just being closed may be recorded as ended by it; that is forgotten.
func (s *stand) change(t testing.TB, spec egress.Spec) {
	t.Helper()
	s.replace(t, spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decisions = slices.DeleteFunc(s.decisions, func(r egress.Record) bool { return r.Reason == egress.ReasonPolicyChanged })
}

// replace is change for cases about what it does to connections.
func (s *stand) replace(t testing.TB, spec egress.Spec) {
	t.Helper()
	if err := s.gw.Update(context.Background(), s.id, compile(t, spec)); err != nil {
		t.Fatal(err)
	}
}

func limited(hosts ...string) egress.Spec {
	return egress.Spec{Mode: egress.ModeLimited, AllowedHosts: hosts}
}

// translatorName is what the guard asks to learn which NAT64 there is. The
// internet has none, unless a stand says otherwise.
const translatorName = "ipv4only.arpa"

// LookupNetIP is the recording resolver. Every name is on the stand's part of
// the internet, unless it was told another answer: a refused name could be
// reached, if it was asked for.
func (s *stand) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	guards := host == translatorName+"." // the guard's own question
	if !guards {
		s.asked = append(s.asked, host)
	}
	answer := s.answers[strings.TrimSuffix(host, ".")]
	s.mu.Unlock()
	switch {
	case answer != nil:
		return answer()
	case guards:
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{s.up}, nil
}

// resolves makes a name resolve to these addresses.
func (s *stand) resolves(name string, addrs ...string) {
	parsed := []netip.Addr{}
	for _, a := range addrs {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	s.answer(name, func() ([]netip.Addr, error) { return parsed, nil })
}

func (s *stand) answer(name string, f func() ([]netip.Addr, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name] = f
}

func (s *stand) saw(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, fmt.Sprintf(format, args...))
}

func (s *stand) sniffed(kind string, at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := kind + " " + at.String()
	if l := s.label(at.Addr()); l != at.Addr().String() {
		what = fmt.Sprintf("%s %s:%d", kind, l, at.Port())
	}
	if !slices.Contains(s.packets, what) {
		s.packets = append(s.packets, what)
	}
}

// label names an address as the cases do.
func (s *stand) label(a netip.Addr) string {
	switch a {
	case s.up:
		return "up"
	case s.raw:
		return "raw"
	case netip.MustParseAddr("198.18.0.1"):
		return "refusal"
	case netip.MustParseAddr("169.254.100.1"):
		return "gateway"
	}
	return a.String()
}

func (s *stand) decided(r egress.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generated++
	s.decisions = append(s.decisions, r)
	if r.Host == "boom.example.com" && r.Protocol != "dns" {
		panic("boom") // for the case about panics
	}
}

// describe puts a decision in one line, as the cases expect it.
func (s *stand) describe(r egress.Record) string {
	target := r.Host
	switch {
	case target != "" && r.Protocol != "dns":
		target = fmt.Sprintf("%s:%d", target, r.DestPort)
	case target == "" && r.DestAddress != "":
		target = fmt.Sprintf("%s:%d", s.label(netip.MustParseAddr(r.DestAddress)), r.DestPort)
	}
	parts := []string{r.Protocol, string(r.Reason)}
	for _, p := range []struct{ word, value string }{{"", target}, {"claims ", r.ClaimedHost}, {"by ", r.Rule}} {
		if p.value != "" {
			parts = append(parts, p.word+p.value)
		}
	}
	if r.ECH {
		parts = append(parts, "ech")
	}
	if (r.DialedAddress != "") != (r.Verdict == egress.VerdictAllowed) && r.Protocol != "dns" {
		parts = append(parts, "dialed "+r.DialedAddress)
	}
	return strings.Join(parts, " ")
}

// lookup asks the stub for a name's address, from inside.
func (s *stand) lookup(t testing.TB, name string) string {
	t.Helper()
	m := s.ask(t, "169.254.100.1:53", question(t, name, dnsmessage.TypeA))
	if m == nil || len(m.Answers) != 1 {
		t.Fatalf("asking for %s: %+v", name, m)
	}
	return netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A).String()
}

// ask sends a message to a server over UDP and returns the reply, or nil.
func (s *stand) ask(t testing.TB, server string, message []byte) *dnsmessage.Message {
	t.Helper()
	for range 3 { // a datagram may be lost
		r := s.probe.do(t, wire.Request{Op: "talk", Network: "udp4", Address: server, Data: message, WaitMS: 1500})
		if r.End != "more" {
			continue
		}
		var m dnsmessage.Message
		if err := m.Unpack(r.Data); err != nil {
			t.Fatalf("reply %x: %v", r.Data, err)
		}
		return &m
	}
	return nil
}

func question(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		t.Fatal(err)
	}
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
	data, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// probe talks to one prober.
type probe struct {
	in    io.WriteCloser
	mu    sync.Mutex // guards what follows
	next  int
	wait  map[int]chan wire.Reply
	ended error
}

// do has one thing done, and waits for it.
func (p *probe) do(t testing.TB, r wire.Request) wire.Reply {
	t.Helper()
	return <-p.start(t, r)
}

// start has one thing done and returns where its reply will be.
func (p *probe) start(t testing.TB, r wire.Request) <-chan wire.Reply {
	t.Helper()
	reply := make(chan wire.Reply, 1)
	p.mu.Lock()
	p.next++
	r.ID = p.next
	p.wait[r.ID] = reply
	line, err := json.Marshal(r)
	if err == nil && p.ended != nil {
		err = p.ended
	}
	if err == nil {
		_, err = p.in.Write(append(line, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		t.Fatalf("asking the prober: %v", err)
	}
	return reply
}

// listen takes the prober's replies.
func (p *probe) listen(out io.Reader) {
	decoder := json.NewDecoder(out)
	for {
		var r wire.Reply
		err := decoder.Decode(&r)
		p.mu.Lock()
		if err != nil {
			p.ended = fmt.Errorf("the prober has ended: %w", err)
			for id, c := range p.wait {
				c <- wire.Reply{ID: id, Error: p.ended.Error(), End: "gone"}
			}
			p.wait = map[int]chan wire.Reply{}
			p.mu.Unlock()
			return
		}
		c := p.wait[r.ID]
		delete(p.wait, r.ID)
		p.mu.Unlock()
		if c != nil {
			c <- r
		}
	}
}

// engine is the one engine of this process, with the layer that holds the prober.
var engine = sync.OnceValues(func() (*gvisor.Engine, string) {
	dir, err := os.MkdirTemp("", "atoll-sec-")
	must(err)
	layer := filepath.Join(dir, "layer")
	for _, sub := range []string{"etc", "tmp", "proc", "sys", "dev", "bin"} {
		must(os.MkdirAll(filepath.Join(layer, sub), 0o755))
	}
	program, err := os.ReadFile(os.Getenv(proberVariable))
	must(err)
	must(os.WriteFile(filepath.Join(layer, "bin", "prober"), program, 0o755))
	e, err := gvisor.New(gvisor.Config{Dir: filepath.Join(dir, "engine"), MinFreeBytes: -1})
	must(err)
	engineDir = dir
	return e, layer
})

var engineDir string

// closeEngine destroys what is left and tells what that was.
func closeEngine() error {
	if engineDir == "" {
		return nil
	}
	e, _ := engine()
	left, err := e.List(context.Background())
	for _, info := range left {
		err = errors.Join(err, fmt.Errorf("sandbox %s is left", info.ID), e.Destroy(context.Background(), info.ID))
	}
	return errors.Join(err, e.Close(), os.RemoveAll(engineDir))
}

// startProbe starts a prober in a network, in this kind of place.
func startProbe(t testing.TB, place, id, netns string) *probe {
	t.Helper()
	in, theirIn := io.Pipe()
	out, theirOut := io.Pipe()
	p := &probe{in: theirIn, wait: map[int]chan wire.Reply{}}
	if place == inGVisor {
		startInSandbox(t, id, netns, in, theirOut)
	} else {
		startPlain(t, netns, in, theirOut)
	}
	go p.listen(out)
	return p
}

func startInSandbox(t testing.TB, id, netns string, in io.Reader, out *io.PipeWriter) {
	t.Helper()
	e, layer := engine()
	err := e.Create(context.Background(), sandbox.Spec{
		ID: id, Layers: []string{layer}, NetNS: netns, Files: egress.Files(),
		Limits: sandbox.Limits{MemoryBytes: 1 << 30, DiskBytes: 64 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Destroy(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	process, err := e.Exec(context.Background(), id, sandbox.Command{Args: []string{"/bin/prober"}, Stdin: in, Stdout: out, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = process.Wait(context.Background())
		_ = out.Close()
	}()
}

// startPlain starts it with every capability, and with the files of a sandbox.
func startPlain(t testing.TB, netns string, in io.Reader, out *io.PipeWriter) {
	t.Helper()
	files := t.TempDir()
	script := "set -e; mount --make-rprivate /; "
	for name, content := range egress.Files() {
		local := filepath.Join(files, filepath.Base(name))
		must(os.WriteFile(local, content, 0o644))
		// TestHostResolver may have bound a file of its own there, which is gone by
		// now: nothing can be mounted on that.
		script += fmt.Sprintf("at=$(readlink -f %s); umount -l $at 2>/dev/null || true; mount --bind %s $at; ", name, local)
	}
	cmd := exec.Command("nsenter", "--net="+netns, "unshare", "--mount", "sh", "-c", script+"exec "+os.Getenv(proberVariable))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	cmd.WaitDelay = time.Second // else one that ends by itself is waited for until more is asked of it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	go func() {
		_ = cmd.Wait()
		_ = out.Close()
	}()
}

// eventually polls until ok, within a generous deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// hostName is a host for a table, of a name that is one.
func hostName(name string) egress.Host {
	h, err := egress.Canonical(name)
	if err != nil {
		panic(err)
	}
	return h
}
