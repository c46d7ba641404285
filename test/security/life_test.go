package security

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// reasons counts the decisions since the last that a case has looked at.
func (s *stand) reasons() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{}
	for _, d := range s.decisions {
		if d.Protocol != "dns" {
			out[string(d.Reason)]++
		}
	}
	return out
}

// Section G: life of a policy.
func TestPolicy(t *testing.T) {
	t.Parallel()
	everywhere(t, "L", limited("ok.example.com", "two.example.com"), func(c *egress.Config) {
		quick(c)
		c.OpenPorts = []egress.OpenPort{{Host: "git.example.com", Ports: []int{22}}}
	}, func(t *testing.T, s *stand) {
		policyTightened(t, s)
		policyReplaced(t, s)
		policyEndpoints(t, s)
	})
}

func policyTightened(t *testing.T, s *stand) {
	both, two := limited("ok.example.com", "two.example.com"), limited("two.example.com")
	const stale = "http stale_mapping ok.example.com:80"
	s.try(t, "E193", func(c *attempt) {
		address := c.address("ok.example.com")
		r := c.do(wire.Request{Op: "talk", Address: at(address, 443), TLS: tlsAs("ok.example.com"), Max: -1, Keep: true})
		download := s.probe.start(c, wire.Request{Op: "talk", Conn: r.Conn, WaitMS: 30_000})
		c.decided(okTLS)
		c.upstream()
		c.asked("ok.example.com")
		s.replace(c, two)
		if r := <-download; r.End != "reset" {
			c.Errorf("the download: %s, want a reset", told(r))
		}
		c.decided("tcp policy_changed ok.example.com:443")
	})
	s.try(t, "E055", func(c *attempt) {
		s.change(c, both)
		address := c.address("ok.example.com")
		s.change(c, two)
		c.want403(c.talk(at(address, 80), httpGet("ok.example.com")), "ok.example.com")
		c.decided(stale)
		c.fails("ok.example.com")
	})
	s.try(t, "E196", func(c *attempt) {
		s.change(c, both)
		h := helloAs(c, "ok.example.com")
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("ok.example.com"), 443), Data: h[:50], Max: -1, Keep: true})
		s.replace(c, two)
		r = c.do(wire.Request{Op: "talk", Conn: r.Conn, Data: h[50:]})
		if len(r.Data) > 0 && string(r.Data) != alertBytes || r.End == "timeout" {
			c.Errorf("got %s, want a refusal", told(r))
		}
		eventually(c, "the decision", func() bool { return len(s.reasons()) > 0 })
		s.mu.Lock()
		for _, d := range s.decisions {
			if d.Verdict != egress.VerdictRefused {
				c.Errorf("decision %s", s.describe(d))
			}
		}
		s.decisions = nil
		s.mu.Unlock()
		c.note("policy_changed")
	})
	s.try(t, "E054", func(c *attempt) {
		// E217 shows the same over a restart, E225 over hibernation.
		s.change(c, both)
		one := c.address("ok.example.com")
		s.change(c, limited("three.example.com", "two.example.com"))
		three := c.address("three.example.com")
		s.change(c, limited("three.example.com", "ok.example.com"))
		if again := c.address("ok.example.com"); again != one || three == one {
			c.Errorf("ok is %s, was %s; three is %s", again, one, three)
		}
		s.change(c, both)
	})
}

func policyReplaced(t *testing.T, s *stand) {
	one, both := limited("ok.example.com"), limited("two.example.com", "ok.example.com")
	s.try(t, "E194", func(c *attempt) {
		s.change(c, one)
		stop := make(chan struct{})
		tried := make(chan int)
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					tried <- n
					return
				default:
				}
				r := s.probe.do(c, wire.Request{Op: "many", Addresses: []string{"198.18.0.1:80", "198.18.0.1:80"}, Parallel: 2, Data: []byte(httpGet("no.example.com"))})
				for outcome := range r.Counts {
					if !strings.HasPrefix(outcome, "HTTP/1.1 403") {
						c.Errorf("a refused host: %s", outcome)
					}
				}
				r = s.probe.do(c, wire.Request{Op: "get", URL: "http://ok.example.com/"})
				if r.Status != 200 {
					c.Errorf("an allowed host: %d %s", r.Status, told(r))
				}
				n++
			}
		}()
		for i := range pick(300, 1000) {
			s.replace(c, map[bool]egress.Spec{true: both, false: one}[i%2 == 0])
		}
		close(stop)
		if n := <-tried; n == 0 {
			c.Error("nothing was tried")
		}
		c.unowned("http", "tcp")
		c.asked("ok.example.com")
		s.mu.Lock()
		for _, seen := range s.seen {
			if seen != "GET http ok.example.com/ 0" {
				c.Errorf("upstream saw %q", seen)
			}
		}
		s.seen = nil
		s.mu.Unlock()
		c.upstream()
	})
	s.try(t, "E195", func(c *attempt) {
		s.change(c, one)
		for _, bad := range []egress.Spec{limited("*"), limited("https://x"), {Mode: "open"}, {Mode: egress.ModeLimited, Endpoints: []egress.Endpoint{{Rule: "mcp:x"}}}} {
			if _, err := egress.Compile(bad); err == nil {
				c.Errorf("%+v was compiled", bad)
			}
		}
		if err := json.Unmarshal([]byte(`{"mode":"limited","endpoints":[{"host":"127.0.0.1","rule":"mcp:x"}]}`), &egress.Spec{}); err == nil {
			c.Error("an address was taken for a host")
		}
		if err := s.gw.Update(context.Background(), s.id, nil); err == nil {
			c.Error("no policy was installed")
		}
		broken := s.config
		broken.BlockHosts = []string{"https://x"}
		if err := s.gw.Reload(broken); err == nil {
			c.Error("invalid rules of the operator were installed")
		}
		c.works("ok.example.com", "allowed_hosts[0]")
		c.fails("no.example.com")
	})
	s.try(t, "E205", func(c *attempt) {
		spec := limited("ok.example.com")
		spec.Endpoints = []egress.Endpoint{{Host: hostName("mcp.example.com"), Rule: "mcp:x"}, {Host: hostName("reg.example.com"), Rule: "registry:pip"}}
		s.change(c, spec)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: s.gw.Dialer(egress.Client{ID: s.id, Source: egress.SourceWebTool})}}
		get := func(host string) string {
			res, err := client.Get("http://" + host + "/")
			var refused *egress.DialError
			if errors.As(err, &refused) {
				return string(refused.Reason)
			}
			if err != nil {
				return err.Error()
			}
			defer res.Body.Close()
			_, _ = io.Copy(io.Discard, res.Body)
			return res.Status
		}
		s.resolves("ok.example.com", s.up.String())
		for host, want := range map[string]string{"ok.example.com": "200 OK", "a.ok.example.com": "name_not_allowed", "mcp.example.com": "name_not_allowed", "reg.example.com": "name_not_allowed", "no.example.com": "name_not_allowed"} {
			if got := get(host); got != want {
				c.Errorf("%s: %s, want %s", host, got, want)
			}
		}
		s.resolves("ok.example.com", "10.0.0.5")
		if got := get("ok.example.com"); got != "address_not_public" {
			c.Errorf("the guard: %s", got)
		}
		s.resolves("ok.example.com", s.up.String())
		s.mu.Lock()
		for _, d := range s.decisions {
			if d.Source != egress.SourceWebTool {
				c.Errorf("decision %+v", d)
			}
		}
		if len(s.decisions) != 6 {
			c.Errorf("%d decisions, want 6", len(s.decisions))
		}
		s.decisions = nil
		s.mu.Unlock()
		c.upstream("GET http ok.example.com/ 0")
		c.asked("ok.example.com")
		c.note("address_not_public")
		c.note("name_not_allowed")
	})
}

func policyEndpoints(t *testing.T, s *stand) {
	s.try(t, "E199", func(c *attempt) {
		s.change(c, egress.Spec{Mode: egress.ModeLimited, Endpoints: []egress.Endpoint{{Host: hostName("mcp.example.com"), Port: 8443, Rule: "mcp:tools"}}})
		address := c.address("mcp.example.com")
		r := c.do(wire.Request{Op: "talk", Address: at(address, 8443), TLS: tlsAs("mcp.example.com"), Data: []byte(httpGet("mcp.example.com:8443"))})
		c.wantStatus(r, "200")
		c.passed("tls ok mcp.example.com:8443 by mcp:tools", "GET https mcp.example.com:8443/ 0")
		c.wantRawAlert(c.talk(at(address, 443), string(helloAs(c, "mcp.example.com"))))
		c.wantReset(c.talk(at(address, 9443), "x"))
		c.decided("tls port_not_allowed mcp.example.com:443", "tcp port_not_allowed mcp.example.com:9443")
		c.fails("mcp2.example.com")
	})
	s.try(t, "E200", func(c *attempt) {
		s.change(c, egress.Spec{Mode: egress.ModeLimited, Endpoints: []egress.Endpoint{
			{Host: hostName("pip.example.com"), Port: 443, Rule: "registry:pip"}, {Host: hostName("npm.example.com"), Port: 8080, Rule: "registry:npm"}}})
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("pip.example.com"), 443), TLS: tlsAs("pip.example.com"), Data: []byte(httpGet("pip.example.com"))})
		c.wantStatus(r, "200")
		c.passed("tls ok pip.example.com:443 by registry:pip", "GET https pip.example.com/ 0")
		c.wantStatus(c.talk(at(c.address("npm.example.com"), 8080), httpGet("npm.example.com:8080")), "200")
		c.passed("http ok npm.example.com:8080 by registry:npm", "GET http npm.example.com:8080/ 0")
		c.want403(c.talk(at(c.address("npm.example.com"), 80), httpGet("npm.example.com")), "npm.example.com")
		c.decided("http port_not_allowed npm.example.com:80")
		c.fails("files.example.com")
		s.change(c, limited())
		c.fails("pip.example.com")
	})
	s.try(t, "E204", func(c *attempt) {
		s.change(c, limited("git.example.com", "other.example.com"))
		r := c.do(wire.Request{Op: "talk", Address: at(c.address("git.example.com"), 22), Data: []byte("x"), HalfClose: true})
		if string(r.Data) != "220 server first\r\nx" {
			c.Errorf("got %s", told(r))
		}
		c.passed("tcp ok git.example.com:22 by operator", `banner 22 "x"`)
		c.wantReset(c.talk(at(c.address("other.example.com"), 22), "x"))
		c.decided("tcp port_not_allowed other.example.com:22")
	})
}

// E090 and the like are in other sections. What follows is section K as far as
// a gateway alone shows it: the network of a build.
func TestBuilds(t *testing.T) {
	t.Parallel()
	spec := egress.Spec{Mode: egress.ModeBuild, Endpoints: []egress.Endpoint{
		{Host: hostName("pip.example.com"), Rule: "registry:pip"}, {Host: hostName("inside.example.com"), Rule: "registry:npm"}, {Host: hostName("private.example.com"), Rule: "registry:npm"}}}
	everywhere(t, "B", spec, func(c *egress.Config) {
		quick(c)
		c.Exempt = []egress.Exemption{{Host: "inside.example.com", CIDR: netip.MustParsePrefix("10.6.0.0/16"), Ports: []int{80}}}
	}, func(t *testing.T, s *stand) {
		s.try(t, "E272", func(c *attempt) {
			with := spec
			with.AllowedHosts = []string{"ok.example.com"}
			if _, err := egress.Compile(with); err == nil {
				c.Error("a build took allowed hosts")
			}
			c.works("pip.example.com", "registry:pip")
			c.fails("ok.example.com")
		})
		s.try(t, "E274", func(c *attempt) {
			for _, address := range []string{"169.254.169.254", "100.64.0.1", hostPublic} {
				c.want403(c.talk(at(address, 80), httpGet("x.example.com")), at(address, 80))
				c.decided(fmt.Sprintf("http no_mapping %s:80 claims x.example.com", address))
				c.wantReset(c.talk(at(address, 8400), "x"))
				c.decided(fmt.Sprintf("tcp no_mapping %s:8400", address))
			}
		})
		s.try(t, "E275", func(c *attempt) {
			r := c.do(wire.Request{Op: "get", URL: "http://pip.example.com/redirect/storage.example.net"})
			if r.Status != 403 || !strings.Contains(string(r.Data), "storage.example.net") {
				c.Errorf("got %d %s", r.Status, told(r))
			}
			c.decided("http ok pip.example.com:80 by registry:pip", "dns name_not_allowed storage.example.net", "http name_not_allowed refusal:80 claims storage.example.net")
			c.upstream("GET http pip.example.com/redirect/storage.example.net 0")
			c.asked("pip.example.com")
			with := spec
			with.Endpoints = append([]egress.Endpoint{{Host: hostName("storage.example.net"), Rule: "registry:pip"}}, spec.Endpoints...)
			s.change(c, with)
			c.works("storage.example.net", "registry:pip")
			s.change(c, spec)
		})
		s.try(t, "E276", func(c *attempt) {
			address := fmt.Sprintf("10.6.0.%d", s.index+1)
			s.resolves("private.example.com", address)
			s.resolves("inside.example.com", address)
			c.want403(c.talk(at(c.address("private.example.com"), 80), httpGet("private.example.com")), "private.example.com")
			c.decided("http address_not_public private.example.com:80 by registry:npm")
			c.asked("private.example.com")
			defer world.claim(s, address+"/32")()
			c.wantStatus(c.talk(at(c.address("inside.example.com"), 80), httpGet("inside.example.com")), "200")
			c.decided("http ok inside.example.com:80 by registry:npm")
			c.sent("tcp " + at(address, 80))
			c.upstream("GET http inside.example.com/ 0")
			c.asked("inside.example.com")
		})
	})
}
