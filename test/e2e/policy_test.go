package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/atoll-run/atoll/atolltest"
	"github.com/atoll-run/atoll/internal/egress"
)

// TestSessionPolicy: a session's network is what its environment said when it
// was made, whatever becomes of the environment. The subtests have the numbers
// of the network test matrix.
func TestSessionPolicy(t *testing.T) {
	site := newSite(t)
	for _, name := range []string{"one", "two", "registry"} {
		site.hosts[name] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from "+r.Host) })
	}
	early := fmt.Sprintf("127.%d.%d.%d", 2+rand.IntN(60), rand.IntN(256), 1+rand.IntN(250)) // another address of loopback
	upstream := newEarlyServer(t, early+":443")
	site.elsewhere["early"] = early
	s := newServer(t, site.config()+"registries: {'*': {pip: [registry.example.com]}}\n")
	agent := s.agent()
	networking := func(managers bool, hosts ...string) object {
		return object{"type": "limited", "allowed_hosts": hosts, "allow_package_managers": managers}
	}
	environment := func(n object) string {
		return s.environment(object{"base_template": "slim", "networking": n})
	}
	update := func(env string, n object) {
		s.call("POST", "/v1/environments/"+env, object{"config": object{"type": "cloud", "networking": n}}, nil)
	}
	// reached lists which of the three hosts a session reaches.
	reached := func(session string) string {
		t.Helper()
		r := s.exec(session, `for h in one two registry; do curl -sk --max-time 60 https://$h.example.com/ | grep -o "from $h"; done; true`)
		return strings.Join(strings.Fields(strings.ReplaceAll(r.Stdout, "from ", "")), " ")
	}
	expect := func(t *testing.T, session, want string) {
		t.Helper()
		if got := reached(session); got != want {
			t.Errorf("reached %q, want %q", got, want)
		}
	}

	t.Run("E197", func(t *testing.T) {
		env := environment(networking(false, "one.example.com"))
		before := s.session(agent, env)
		expect(t, before, "one")
		update(env, networking(true, "two.example.com"))
		after := s.session(agent, env)
		expect(t, before, "one")
		expect(t, after, "two registry")
		s.kill9() // and what was written down says the same
		expect(t, before, "one")
		expect(t, after, "two registry")
	})

	t.Run("E198", func(t *testing.T) {
		env := environment(networking(false, "one.example.com"))
		policies := []object{networking(true, "two.example.com"), networking(false, "one.example.com")}
		const sessions = 12
		var updates atomic.Int64
		stop := make(chan struct{})
		var updating, creating sync.WaitGroup
		updating.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					update(env, policies[updates.Add(1)%2])
				}
			}
		})
		ids := make([]string, sessions)
		for half := range 2 { // two clients, one session after the other
			creating.Go(func() {
				for i := half; i < sessions; i += 2 {
					ids[i] = s.session(agent, env)
				}
			})
		}
		creating.Wait()
		close(stop)
		updating.Wait()
		if updates.Load() < 2 {
			t.Errorf("%d updates while the sessions were created", updates.Load())
		}
		got := make([]string, sessions)
		for i, id := range ids {
			creating.Go(func() { got[i] = reached(id) })
		}
		creating.Wait()
		slices.Sort(got)
		t.Logf("%d updates; reached: %q", updates.Load(), got)
		for _, hosts := range got {
			if hosts != "one" && hosts != "two registry" {
				t.Errorf("a session reaches %q: its policy is neither the old one nor the new one", hosts)
			}
		}
	})

	// Early data passes with the rest: the gateway reads one ClientHello.
	t.Run("E072", func(t *testing.T) {
		s.earlyData(t, s.session(agent, environment(networking(false, "early.example.com"))), upstream)
	})

	t.Run("E222", func(t *testing.T) {
		id := s.session(agent, environment(networking(false, "one.example.com")))
		expect(t, id, "one")
		if err := deleteLink(filepath.Join(s.Dir, "networks", "networks", id, "gateway"), "sandbox0"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, 60*time.Second, "the session to be told", func() bool {
			var events string
			s.try("GET", "/v1/sessions/"+id+"/events", nil, &events)
			return strings.Contains(events, `"session.error"`) && strings.Contains(events, "has no network any more")
		})
		if out := s.must(id, "ls -d /workspace"); out != "/workspace" {
			t.Errorf("its files: %s", out)
		}
		if r := s.exec(id, "curl -sk --max-time 5 https://one.example.com/"); r.Code == 0 {
			t.Errorf("without a network: %+v", r)
		}
	})

	// Files are what sessions are given so far.
	t.Run("E203", func(t *testing.T) {
		id := s.session(agent, environment(networking(false)))
		req, err := http.NewRequest("PUT", s.URL+"/atoll/v1/sessions/"+id+"/files?path=/workspace/given", strings.NewReader("is there"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-api-key", atolltest.Key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := s.exec(id, "cat /workspace/given"); resp.StatusCode != 200 || got.Stdout != "is there" {
			t.Errorf("PUT: %d; inside: %+v", resp.StatusCode, got)
		}
		expect(t, id, "")
	})
}

// deleteLink takes a link out of a network namespace.
func deleteLink(path, name string) error {
	return egress.OnThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}
