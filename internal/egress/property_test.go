package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// model is what a network should be like after what was done to it.
type model struct {
	allowed map[string]bool // entries of the policy
	blocked map[string]bool // names on the operator's list
	addr    map[string]string
	owner   map[string]string // address → the only name that it may ever mean
}

func (m *model) reaches(name string) bool {
	_, parent, _ := strings.Cut(name, ".")
	return !m.blocked[name] && (m.allowed[name] || m.allowed["*."+parent])
}

// universe are the names that a sequence knows, and the entries its policies
// are made of.
func universe() (names, entries []string) {
	return []string{"a.example.com", "b.example.com", "x.w.example.com", "y.w.example.com", "w.example.com"},
		[]string{"a.example.com", "b.example.com", "*.w.example.com", "w.example.com", "y.w.example.com"}
}

// held is a connection that was open when it was last looked at.
type held struct {
	name string
	conn *tls.Conn
	r    *bufio.Reader
}

// sequence is one run of the property test.
type sequence struct {
	t      *testing.T
	w      *world
	rnd    *rand.Rand
	config Config
	box    *box
	model  model
	held   []held
	did    []string
}

// TestModel does random things to a network, and to the server that serves it,
// and after each step holds what the sandbox reaches against a model of a few
// lines: every name over both protocols, addresses that it kept from before,
// connections that it had open.
func TestModel(t *testing.T) {
	t.Parallel()
	steps, seeds := 40, []uint64{1, 2, 3, rand.Uint64()}
	if testing.Short() {
		steps, seeds = 15, seeds[2:]
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			names, _ := universe()
			s := &sequence{t: t, w: newWorld(t, names...), rnd: rand.New(rand.NewPCG(seed, 0))}
			s.model = model{map[string]bool{}, map[string]bool{}, map[string]string{}, map[string]string{}}
			dir := t.TempDir()
			g := s.w.gateway(func(c *Config) { c.Dir = dir; c.PoolSize = 1; s.config = *c })
			s.box = s.w.open(g, "m", s.policy())
			for range steps {
				s.step()
				s.check()
				if t.Failed() {
					t.Fatalf("after %s", strings.Join(s.did, ", "))
				}
			}
		})
	}
}

// policy makes a random policy and has the model know it.
func (s *sequence) policy() Spec {
	_, entries := universe()
	clear(s.model.allowed)
	for _, e := range entries {
		if s.rnd.IntN(2) == 0 {
			s.model.allowed[e] = true
		}
	}
	list := slices.Sorted(maps.Keys(s.model.allowed))
	s.rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return Spec{Mode: ModeLimited, AllowedHosts: list}
}

func (s *sequence) step() {
	names, _ := universe()
	name := names[s.rnd.IntN(len(names))]
	ctx, g := context.Background(), s.box.g
	var err error
	switch n := s.rnd.IntN(100); {
	case n < 25:
		s.did = append(s.did, "resolve "+name)
		s.resolve(name)
	case n < 50:
		s.did = append(s.did, "hold "+name)
		s.hold(name)
	case n < 70:
		spec := s.policy()
		s.did = append(s.did, fmt.Sprintf("policy %q", spec.AllowedHosts))
		err = g.Update(ctx, "m", mustCompile(s.t, spec))
	case n < 80:
		clear(s.model.blocked)
		if s.rnd.IntN(2) == 0 {
			s.model.blocked[name] = true
		}
		s.config.BlockHosts = slices.Collect(maps.Keys(s.model.blocked))
		s.did = append(s.did, fmt.Sprintf("block %q", s.config.BlockHosts))
		err = g.Reload(s.config)
	case n < 90:
		s.did = append(s.did, "restart")
		if err = g.Shutdown(ctx); err == nil {
			s.box.g = s.w.gateway(func(c *Config) { *c = s.config })
			_, err = s.box.g.Reopen(ctx, "m")
		}
		s.closed()
	default:
		s.did = append(s.did, "hibernate")
		if err = g.Suspend(ctx, "m"); err == nil && s.rnd.IntN(2) == 0 {
			err = g.Update(ctx, "m", mustCompile(s.t, s.policy()))
		}
		if err == nil {
			_, err = g.Resume(ctx, "m")
		}
		s.closed()
	}
	if err != nil {
		s.t.Fatalf("%s: %v", strings.Join(s.did, ", "), err)
	}
}

// resolve asks the stub, and holds the address against what the name and the
// address meant before.
func (s *sequence) resolve(name string) string {
	s.t.Helper()
	addr := s.box.resolve(name)
	if !s.model.reaches(name) {
		if addr != refusalAddress().String() {
			s.t.Errorf("%s, which is not allowed, is at %s", name, addr)
		}
		return addr
	}
	if before := s.model.addr[name]; before != "" && before != addr {
		s.t.Errorf("%s moved from %s to %s", name, before, addr)
	}
	if owner := s.model.owner[addr]; owner != "" && owner != name {
		s.t.Errorf("%s meant %s and means %s now", addr, owner, name)
	}
	s.model.addr[name], s.model.owner[addr] = addr, name
	return addr
}

// hold opens a connection and keeps it, if it may be opened.
func (s *sequence) hold(name string) {
	s.t.Helper()
	c, err := s.box.dial("tcp", s.resolve(name)+":443")
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		var tc *tls.Conn
		if tc, err = s.box.tls(c, name); err == nil {
			s.held = append(s.held, held{name, tc, bufio.NewReader(tc)})
		}
	}
	if (err == nil) != s.model.reaches(name) {
		s.t.Errorf("connecting to %s: %v", name, err)
	}
}

// closed checks that no connection is open any more.
func (s *sequence) closed() {
	s.t.Helper()
	for _, h := range s.held {
		if _, err := h.r.ReadByte(); err == nil {
			s.t.Errorf("a connection to %s is open", h.name)
		}
	}
	s.held = nil
}

// check compares all that the sandbox can try with the model.
func (s *sequence) check() {
	s.t.Helper()
	names, _ := universe()
	s.w.upstream()
	want := 0
	for _, name := range names {
		addr := s.resolve(name)
		if kept := s.model.addr[name]; kept != "" {
			addr = kept // as a program that asked earlier does
		}
		reached := s.get(addr, name)
		if reached != s.model.reaches(name) {
			s.t.Errorf("%s at %s: reached %v, the model says %v", name, addr, reached, s.model.reaches(name))
		}
		if reached {
			want++
		}
		// The same address with another name in the request reaches nothing.
		if other := names[s.rnd.IntN(len(names))]; other != name && s.get(addr, other) {
			s.t.Errorf("%s answered for %s", addr, other)
		}
	}
	still := s.held[:0]
	for _, h := range s.held {
		alive := false
		if _, err := fmt.Fprintf(h.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", h.name); err == nil {
			if res, err := http.ReadResponse(h.r, nil); err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				alive = err == nil && res.StatusCode == 200
			}
		}
		if alive != s.model.reaches(h.name) {
			s.t.Errorf("an open connection to %s: alive %v, the model says %v", h.name, alive, s.model.reaches(h.name))
		}
		if alive {
			want++
			still = append(still, h)
		}
	}
	s.held = still
	if saw := s.w.upstream(); len(saw) != want {
		s.t.Errorf("%d requests were answered, upstream saw %q", want, saw)
	}
}

// get tells whether a request for a name at an address reaches an upstream.
func (s *sequence) get(addr, name string) bool {
	s.t.Helper()
	c := s.box.mustDial(addr + ":80")
	defer c.Close()
	out, err := raw(c, "GET / HTTP/1.1\r\nHost: "+name+"\r\nConnection: close\r\n\r\n")
	switch {
	case err == nil && strings.HasPrefix(out, "HTTP/1.1 200 "):
		return true
	case err == nil && strings.HasPrefix(out, "HTTP/1.1 403 "):
		return false
	}
	s.t.Errorf("%s at %s: %q %v", name, addr, firstLine(out), err)
	return false
}
