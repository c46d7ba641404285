package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// syncBuffer is written by a process while the test reads.
type syncBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// TestReload changes the operator's settings under a running sandbox: what they
// take away is closed at once, what they give works at once, and a file that is
// wrong changes nothing.
func TestReload(t *testing.T) {
	held := make(chan struct{}, 1)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello from the site")
		if r.URL.Path == "/slow" {
			w.(http.Flusher).Flush()
			held <- struct{}{}
			<-r.Context().Done()
		}
	}))
	defer site.Close()
	port := site.URL[strings.LastIndex(site.URL, ":")+1:]
	config := func(more string) string {
		return `
egress:
  hosts: {site.example.com: [127.0.0.1], pip.example.com: [127.0.0.1]}
  exempt: [{host: site.example.com, cidr: 127.0.0.1/32, ports: [` + port + `]}, {host: pip.example.com, cidr: 127.0.0.1/32, ports: [` + port + `]}]
` + more
	}
	open := "  open_ports: [{host: '*.example.com', ports: [" + port + "]}]\n"
	file := filepath.Join(t.TempDir(), "atoll.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(config(open))
	s := newServer(t, "")
	s.Stop(syscall.SIGTERM)
	s.Args = append(s.Args, "--config", file)
	s.Start()
	env := s.environment(object{"base_template": "slim", "networking": object{
		"type": "limited", "allowed_hosts": []string{"site.example.com"}, "allow_package_managers": true,
	}})
	id := s.session(s.agent(), env)
	fetch := func(host string) bool {
		t.Helper()
		r := s.exec(id, "curl -s --max-time 20 http://"+host+":"+port+"/")
		return r.Code == 0 && strings.Contains(r.Stdout, "hello from the site")
	}
	if !fetch("site.example.com") {
		t.Fatal("the site is not reached")
	}
	if fetch("pip.example.com") {
		t.Fatal("a host that is not listed is reached")
	}

	// The registries: pip's is another one now.
	write(config(open) + "registries: {'*': {pip: ['pip.example.com:" + port + "']}}\nlimits: {processes: 900}\n")
	if out := s.mustAtoll("reload"); !strings.Contains(out, "of 1 sessions changed") || !strings.Contains(out, "limits") {
		t.Errorf("reload said %q", out)
	}
	if !fetch("pip.example.com") {
		t.Error("the new registry is not reached")
	}

	for name, spoil := range map[string]func(){
		"invalid":    func() { write("egress: {deny_cidrs: [nonsense], exmept: []}\n") },
		"unreadable": func() { _ = os.Remove(file) },
	} {
		spoil()
		code, _, stderr := s.atoll("", "reload")
		if code != 1 || !strings.Contains(stderr, "exmept") && !strings.Contains(stderr, "no such file") {
			t.Errorf("%s: exit %d, %q", name, code, stderr)
		}
		if !fetch("site.example.com") || !fetch("pip.example.com") {
			t.Errorf("%s: something is not reached any more", name)
		}
	}

	follow := s.cli("egress", id, "--follow", "--denied")
	var followed syncBuffer
	follow.Stdout = &followed
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}

	// A host is blocked while a download from it runs.
	ended := make(chan result, 1)
	go func() { ended <- s.exec(id, "curl -sN --max-time 100 http://site.example.com:"+port+"/slow") }()
	select {
	case <-held:
	case <-time.After(60 * time.Second):
		t.Fatal("the download did not begin")
	}
	write(config(open + "  block_hosts: [site.example.com]\n"))
	s.mustAtoll("reload")
	select {
	case r := <-ended:
		if r.Code == 0 {
			t.Errorf("the download ended well: %+v", r)
		}
	case <-time.After(30 * time.Second):
		t.Error("the download goes on")
	}
	if fetch("site.example.com") || fetch("pip.example.com") {
		t.Error("what was taken away is reached")
	}
	if out := s.mustAtoll("egress", id, "--denied"); !strings.Contains(out, "policy_changed") || !strings.Contains(out, "blocklisted") {
		t.Errorf("records:\n%s", out)
	}
	waitFor(t, 30*time.Second, "what is followed", func() bool {
		out := followed.String()
		return strings.Contains(out, "name_not_allowed") && strings.Contains(out, "policy_changed") && strings.Contains(out, "blocklisted")
	})
	_ = follow.Process.Signal(os.Interrupt)
	if err := follow.Wait(); err != nil || strings.Contains(followed.String(), " allowed ") {
		t.Errorf("following ended with %v after\n%s", err, followed.String())
	}

	// A signal does it too, and a restart keeps what holds.
	write(config(open))
	if err := s.Process().Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 60*time.Second, "the site to be reached again", func() bool { return fetch("site.example.com") })
	s.kill9()
	if !fetch("site.example.com") || fetch("pip.example.com") {
		t.Error("after a restart the policy is another one")
	}
}
