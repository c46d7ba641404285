package security

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// allModes are the policies of cases that hold in every mode.
func allModes() map[string]egress.Spec {
	return map[string]egress.Spec{
		"L": limited("ok.example.com", "boom.example.com"),
		"U": {Mode: egress.ModeUnrestricted},
		"B": {Mode: egress.ModeBuild, Endpoints: []egress.Endpoint{{Host: hostName("ok.example.com"), Rule: "registry:pip"}, {Host: hostName("boom.example.com"), Rule: "registry:pip"}}},
	}
}

// gets is an allowed request, in any mode.
func (c *attempt) gets(p *probe) {
	c.Helper()
	r := p.do(c, wire.Request{Op: "get", URL: "http://ok.example.com/"})
	if r.Status != 200 {
		c.Errorf("got %d %s", r.Status, told(r))
	}
	protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[c.s.mode]
	c.passed(fmt.Sprintf("%s ok ok.example.com:80 by %s", protocol, c.s.rule()), "GET http ok.example.com/ 0")
}

// nothing expects that no attempt comes through.
func (c *attempt) nothing(p *probe, why string) {
	c.Helper()
	for _, address := range []string{"198.18.1.0:80", "198.18.0.1:80", "169.254.100.1:15001", "169.254.100.1:80", at(c.s.up.String(), 80), at(c.s.raw.String(), 443)} {
		r := p.do(c, wire.Request{Op: "talk", Address: address, Data: []byte(httpGet("ok.example.com")), WaitMS: 700})
		if strings.Contains(string(r.Data), " 200 ") {
			c.Errorf("%s: %s: %s", why, address, told(r))
		}
	}
}

// inGateway runs f in the network's gateway namespace.
func (c *attempt) inGateway(f func() error) {
	c.Helper()
	ns, err := netns.GetFromPath(filepath.Join(filepath.Dir(c.s.netns), "gateway"))
	if err != nil {
		c.Fatal(err)
	}
	defer ns.Close()
	if err := onThread(ns, f); err != nil {
		c.Fatal(err)
	}
}

// Section H: faults and isolation.
func TestFaults(t *testing.T) {
	t.Parallel()
	for mode, spec := range allModes() {
		everywhereNamed(t, mode, mode, spec, quick, func(t *testing.T, s *stand) {
			isolation(t, s)
			s.try(t, "E225", func(c *attempt) { hibernation(c) })
		})
		everywhereNamed(t, mode+" broken", mode, spec, quick, func(t *testing.T, s *stand) {
			// Each breaks more of the same network.
			s.try(t, "E215", func(c *attempt) {
				c.gets(s.probe)
				c.inGateway(func() error {
					n, err := nftables.New()
					if err != nil {
						return err
					}
					n.FlushRuleset()
					return n.Flush()
				})
				c.nothing(s.probe, "without rules")
				c.unowned("tcp", "http", "tls")
			})
			s.try(t, "E222", func(c *attempt) {
				s.drop("tcp")
				c.inGateway(func() error {
					link, err := netlink.LinkByName("sandbox0")
					if err != nil {
						return err
					}
					return netlink.LinkDel(link)
				})
				c.nothing(s.probe, "without a link")
				told := s.gw.Broken()
				if len(told) != 1 || told[0].SessionID != s.id || len(s.gw.Broken()) != 0 {
					c.Errorf("broken: %+v, want the session, once", told)
				}
			})
		})
	}
}

func isolation(t *testing.T, s *stand) {
	s.try(t, "E218", func(c *attempt) {
		protocol := map[string]string{"L": "http", "B": "http", "U": "tcp"}[s.mode]
		place := netip.AddrPortFrom(s.address(0, 3), 80) // a server that says nothing and notes nothing
		s.resolves("boom.example.com", place.Addr().String())
		world.handle(place, func(conn netConn) { _, _ = conn.Read(make([]byte, 1)) })
		r := c.talk(at(c.address("boom.example.com"), 80), httpGet("boom.example.com"))
		if strings.Contains(string(r.Data), " 200 ") {
			c.Errorf("got %s", told(r))
		}
		c.unowned("")
		eventually(c, "the decision", func() bool { return s.reasons()["ok"] > 0 })
		s.drop(protocol)
		c.sent("tcp " + place.String())
		c.asked("boom.example.com")
		c.gets(s.probe)
		if !strings.Contains(s.log.String(), "panic") {
			c.Error("the log says nothing of the panic")
		}
	})
	s.try(t, "E219", func(c *attempt) {
		other := s.id + "i"
		neighbour := startProbe(c, inPlain, other, s.network(c, other, limited("theirs.example.com")))
		for range 3 {
			c.gets(s.probe)
			if r := neighbour.do(c, wire.Request{Op: "get", URL: "http://theirs.example.com/"}); r.Status != 200 {
				c.Errorf("the neighbour: %d %s", r.Status, told(r))
			}
			c.passed("http ok theirs.example.com:80 by allowed_hosts[0]", "GET http theirs.example.com/ 0")
			if r := neighbour.do(c, wire.Request{Op: "get", URL: "http://ok.example.com/"}); r.Status != 403 {
				c.Errorf("the neighbour: %d %s", r.Status, told(r))
			}
			c.decided("dns name_not_allowed ok.example.com", "http name_not_allowed refusal:80 claims ok.example.com")
		}
		theirs, err := s.gw.Records(other, egress.Filter{})
		if err != nil {
			c.Fatal(err)
		}
		for _, d := range theirs {
			if d.SessionID != other {
				c.Errorf("a record of %s is among those of %s", d.SessionID, other)
			}
		}
		for _, d := range s.records(c, egress.Filter{}) {
			if d.SessionID != s.id || d.Host == "theirs.example.com" {
				c.Errorf("a record of the neighbour: %+v", d)
			}
		}
	})
	s.try(t, "E223", func(c *attempt) { nothingOfTheServer(c) })
	s.try(t, "E224", func(c *attempt) {
		for _, address := range []string{"127.0.0.1:8400", "127.0.0.53:53", "169.254.100.2:8400"} {
			if r := c.talk(address, "x"); len(r.Data) > 0 || r.End == "eof" {
				c.Errorf("%s: %s", address, told(r))
			}
		}
		for _, address := range []string{"169.254.100.5:15001", "169.254.100.9:15001"} {
			c.wantReset(c.talk(address, "x"))
			c.decided(fmt.Sprintf("tcp %s %s", s.private(), address))
		}
	})
}

// nothingOfTheServer looks for policy files, control sockets and the API. The
// plain process shares the host's files; what it must not have are sockets.
func nothingOfTheServer(c *attempt) {
	s := c.s
	control := "@atoll-" + s.id
	l, err := net.Listen("unix", control)
	if err != nil {
		c.Fatal(err)
	}
	defer l.Close()
	if r := c.do(wire.Request{Op: "talk", Network: "unix", Address: control}); r.End != "refused" {
		c.Errorf("a control socket of the host: %s", told(r))
	}
	if r := c.do(wire.Request{Op: "look"}); s.place == inGVisor {
		// Its whole file system is the layer and the files that every sandbox has.
		want := append(slices.Collect(maps.Keys(egress.Files())), "/bin/prober")
		if slices.Sort(want); !slices.Equal(strings.Fields(string(r.Data)), want) || len(want) < 2 {
			c.Errorf("inside there is %q, want %q", r.Data, want)
		}
	}
	for _, address := range []string{hostPublic, "100.64.0.1"} {
		c.wantReset(c.talk(at(address, 8400), httpGet("x")))
		c.decided(fmt.Sprintf("tcp %s %s:8400", s.private(), address))
	}
	c.wantReset(c.talk("169.254.100.1:8400", httpGet("x")))
	c.decided("tcp no_mapping gateway:8400")
	for _, address := range []string{"127.0.0.1:8400", "[::1]:8400", "[fd64::1]:8400", "0.0.0.0:8400"} {
		if r := c.do(wire.Request{Op: "talk", Network: "tcp", Address: address, Data: []byte(httpGet("x"))}); len(r.Data) > 0 || r.End == "eof" {
			c.Errorf("%s: %s", address, told(r))
		}
	}
}

// hibernation suspends the network and gives the sandbox another one.
func hibernation(c *attempt) {
	s := c.s
	address := c.address("ok.example.com")
	r := c.do(wire.Request{Op: "talk", Address: at(address, 443), TLS: tlsAs("ok.example.com"), Max: -1, Keep: true})
	open := s.probe.start(c, wire.Request{Op: "talk", Conn: r.Conn, WaitMS: 30_000})
	eventually(c, "the connection's record", func() bool { return s.reasons()["ok"] == 1 })
	// A sandbox that hibernates does not run any more when its link goes. This one
	// runs, so the link is kept until it has read what came over it.
	gateway, err := netns.GetFromPath(filepath.Join(filepath.Dir(s.netns), "gateway"))
	if err != nil {
		c.Fatal(err)
	}
	if err := s.gw.Suspend(context.Background(), s.id); err != nil {
		c.Fatal(err)
	}
	newest := c.recorded(func(r egress.Record) bool { return r.Reason == egress.ReasonOK && r.DestPort == 443 })[0]
	if newest.BytesUp == 0 {
		c.Errorf("the record of the connection does not say that it has ended: %+v", newest)
	}
	if r := <-open; r.End != "reset" && r.End != "eof" {
		c.Errorf("the open connection: %s", told(r))
	}
	if err := gateway.Close(); err != nil {
		c.Fatal(err)
	}
	s.drop("tcp")
	s.drop("tls")
	c.nothing(s.probe, "suspended")
	if s.netns, err = s.gw.Resume(context.Background(), s.id); err != nil {
		c.Fatal(err)
	}
	c.upstream()
	c.asked("ok.example.com")
	s.probe = startProbe(c.s.t, s.place, s.id+"r", s.netns)
	if again := c.address("ok.example.com"); again != address {
		c.Errorf("its address is %s now, not %s", again, address)
	}
	c.gets(s.probe)
}

// E216, E217: the server is killed, and another one takes over.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	for mode, spec := range allModes() {
		everywhereKilled(t, mode, spec)
	}
}

func everywhereKilled(t *testing.T, mode string, spec egress.Spec) {
	needHost(t)
	for _, place := range []string{inGVisor, inPlain} {
		t.Run(mode+"/"+place, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "atoll-killed-")
			must(err)
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			s := newStand(t, place, mode, func(c *egress.Config) { quick(c); c.Dir = filepath.Join(dir, "unused") })
			cmd := startServer(t, s, dir)
			var address, wild string
			s.try(t, "E216", func(c *attempt) {
				wild, address = "", s.lookup(c, "ok.example.com")
				if mode == "U" {
					wild = s.lookup(c, "wild.example.com")
				}
				r := c.do(wire.Request{Op: "talk", Address: at(address, 443), TLS: tlsAs("ok.example.com"), Max: -1, Keep: true})
				if r.Error != "" {
					c.Errorf("before: %s", told(r))
				}
				open := s.probe.start(c, wire.Request{Op: "talk", Conn: r.Conn, WaitMS: 30_000})
				c.upstream()
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					c.Fatal(err)
				}
				_ = cmd.Wait()
				if r := <-open; r.End != "reset" && r.End != "eof" {
					c.Errorf("the open connection: %s", told(r))
				}
				c.nothing(s.probe, "killed")
				c.wantReset(c.talk(at(address, 80), "x"))
			})
			s.config.Dir = dir
			gw, err := egress.New(s.config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := errors.Join(gw.Close(context.Background(), s.id), gw.Shutdown(context.Background())); err != nil {
					t.Error(err)
				}
			})
			s.gw = gw
			s.try(t, "E217", func(c *attempt) {
				if _, err := gw.Reopen(context.Background(), s.id); err != nil {
					c.Fatal(err)
				}
				if wild != "" && c.address("wild.example.com") != wild {
					c.Errorf("wild.example.com is %s now, not %s", c.address("wild.example.com"), wild)
				}
				if again := c.address("ok.example.com"); again != address {
					c.Errorf("ok.example.com is %s now, not %s", again, address)
				}
				c.gets(s.probe)
			})
			s.try(t, "E227", func(c *attempt) { damaged(c, dir) })
		})
	}
}

// startServer starts a process that serves the stand's network, and a prober in
// that network.
func startServer(t *testing.T, s *stand, dir string) *exec.Cmd {
	t.Helper()
	s.id = fmt.Sprintf("k%d", standNumber.Add(1))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serverVariable+"="+dir, serverVariable+"_ID="+s.id, serverVariable+"_MODE="+s.mode, serverVariable+"_UP="+s.up.String())
	in, err := cmd.StdinPipe()
	must(err)
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill() // it may have been already
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "/") {
		t.Fatalf("the server said %q", lines.Text())
	}
	s.netns = lines.Text()
	s.probe = startProbe(t, s.place, s.id, s.netns)
	return cmd
}

// damaged cuts the table of names while no server runs.
func damaged(c *attempt, dir string) {
	s := c.s
	// The connection of the case before has come to its end when its record says
	// so, and the gateway has closed the other side: that of plain HTTP tells of
	// the request.
	eventually(c, "the end of the last connection", func() bool {
		return s.web.open.Load() == 0 && c.recorded(func(r egress.Record) bool { return r.Reason == egress.ReasonOK })[0].BytesUp > 0
	})
	if err := s.gw.Shutdown(context.Background()); err != nil {
		c.Fatal(err)
	}
	table := filepath.Join(dir, "networks", s.id, "names")
	whole, err := os.ReadFile(table)
	if err != nil {
		c.Fatal(err)
	}
	for name, content := range map[string][]byte{"cut": whole[:len(whole)-5], "changed": []byte(strings.Replace(string(whole), "ok.example", "no.example", 1))} {
		if name == "changed" && string(content) == string(whole) {
			content = append(whole[:len(whole):len(whole)], "x"...)
		}
		must(os.WriteFile(table, content, 0o600))
		gw, err := egress.New(s.config)
		if err != nil {
			c.Fatal(err)
		}
		if _, err := gw.Reopen(context.Background(), s.id); err == nil || !strings.Contains(err.Error(), "stays closed") {
			c.Errorf("%s: %v", name, err)
		}
		c.nothing(s.probe, "with a table that is "+name)
		if err := gw.Shutdown(context.Background()); err != nil {
			c.Error(err)
		}
	}
	must(os.WriteFile(table, whole, 0o600))
	gw, err := egress.New(s.config)
	if err != nil {
		c.Fatal(err)
	}
	if _, err := gw.Reopen(context.Background(), s.id); err != nil {
		c.Errorf("mended: %v", err)
	}
	if err := errors.Join(gw.Close(context.Background(), s.id), gw.Shutdown(context.Background())); err != nil {
		c.Error(err)
	}
}

// E226: of many networks nothing is left. It runs alone.
func TestNothingLeft(t *testing.T) {
	needHost(t)
	unit(t, "E226", func(t *testing.T) {
		s := newStand(t, inUnit, "unit", nil)
		p := compile(t, limited("ok.example.com"))
		round := func(n int) {
			for i := range n {
				id := fmt.Sprintf("left%d", i)
				if _, err := s.gw.Open(context.Background(), id, meta(id), p); err != nil {
					t.Fatal(err)
				}
				if err := s.gw.Close(context.Background(), id); err != nil {
					t.Fatal(err)
				}
			}
		}
		round(5)
		before, mounts := descriptors(t), mountsBelow(t, s.config.Dir)
		round(pick(60, 10_000))
		eventually(t, "no more descriptors than before", func() bool { return descriptors(t) <= before+4 })
		if now := mountsBelow(t, s.config.Dir); now != mounts {
			t.Errorf("%d mounts, %d before", now, mounts)
		}
		if left, err := s.gw.List(context.Background()); err != nil || len(left) != 0 {
			t.Errorf("left: %q %v", left, err)
		}
	})
}

func descriptors(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func mountsBelow(t testing.TB, dir string) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(data), dir)
}
