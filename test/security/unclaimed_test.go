package security

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// E220: a network that was made ahead and that nobody has claimed. It is found
// among the descriptors of this process, so the tests beside it wait meanwhile.
func TestUnclaimed(t *testing.T) {
	needHost(t)
	for _, place := range []string{inGVisor, inPlain} {
		t.Run(place, func(t *testing.T) {
			known := namespaces(t)
			s := newStand(t, place, "any", func(c *egress.Config) { c.PoolSize = 1 })
			s.id = fmt.Sprintf("u%d", standNumber.Add(1))
			eventually(t, "a network that was made ahead", func() bool {
				for inode, path := range namespaces(t) {
					if known[inode] == "" && hasSandboxLink(path) {
						s.netns = path
						return true
					}
				}
				return false
			})
			s.probe = startProbe(t, place, s.id, s.netns)
			s.try(t, "E220", func(c *attempt) {
				for _, address := range []string{"198.18.1.0:80", "198.18.0.1:443", at(s.up.String(), 80), at(s.raw.String(), 443), at(s.raw.String(), 22), "169.254.100.1:15001", at(hostPublic, 8400)} {
					c.wantReset(c.talk(address, httpGet("ok.example.com")))
				}
				if m := s.ask(c, "169.254.100.1:53", question(c, "ok.example.com", dnsmessage.TypeA)); m != nil && (m.RCode != dnsmessage.RCodeRefused || len(m.Answers) > 0) {
					c.Errorf("the stub says %+v", m)
				}
				if r := c.do(wire.Request{Op: "talk", Network: "udp4", Address: at(s.raw.String(), 443), Data: []byte("x"), WaitMS: 3000}); r.End != "refused" {
					c.Errorf("a datagram: %s", told(r))
				}
				if ids, err := s.gw.List(t.Context()); err != nil || len(ids) != 0 {
					c.Errorf("networks: %q %v", ids, err)
				}
			})
		})
	}
}

// namespaces are the network namespaces that this process holds by descriptors:
// inode → a path.
func namespaces(t testing.TB) map[string]string {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/"
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, fd := range fds {
		if to, err := os.Readlink(dir + fd.Name()); err == nil && strings.HasPrefix(to, "net:[") {
			out[to] = dir + fd.Name()
		}
	}
	return out
}

// hasSandboxLink tells whether a namespace is the sandbox's side of a network
// that is wholly set up.
func hasSandboxLink(path string) (ok bool) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	_ = onThread(ns, func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			addrs, _ := link.Addrs()
			ok = link.Flags&net.FlagUp != 0 && len(addrs) > 0
		}
		return nil
	})
	return ok
}
