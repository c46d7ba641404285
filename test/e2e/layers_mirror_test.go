package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// The mirror's port is fixed, so that the template that names it is the same in
// every run and is made once; its address is one of loopback's that nobody else
// in this machine's tests has.
const mirrorPort = "18808"

// mirror is a company's package server, on loopback: gems, and whatever else a
// test adds. Requests for a path that begins with /hang/ are never answered, of
// those that begin with /flaky/ the first ones with 500, and /moved/ leads to a host that is no registry.
type mirror struct {
	Address string

	mu     sync.Mutex
	files  map[string][]byte
	asked  []string
	broken int // answers of 500 that are still to come
}

func newMirror(t *testing.T) *mirror {
	t.Helper()
	m := &mirror{files: map[string][]byte{}}
	var listener net.Listener
	waitFor(t, time.Second, "a free loopback address", func() (ok bool) {
		m.Address = fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(250))
		var err error
		listener, err = net.Listen("tcp", m.Address+":"+mirrorPort)
		return err == nil
	})
	server := &http.Server{Handler: m}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the mirror ended: %v", err)
		}
	}()
	t.Cleanup(func() { server.Close(); <-done })
	return m
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.asked = append(m.asked, r.Method+" "+r.URL.Path)
	content, ok := m.files[r.URL.Path]
	broken := strings.HasPrefix(r.URL.Path, "/flaky/") && m.broken > 0
	if broken {
		m.broken--
	}
	m.mu.Unlock()
	switch {
	case broken:
		http.Error(w, "broken", http.StatusInternalServerError)
	case strings.HasPrefix(r.URL.Path, "/moved/"):
		http.Redirect(w, r, "http://moved.example.com"+r.URL.Path, http.StatusFound)
	case strings.HasPrefix(r.URL.Path, "/hang/"):
		<-r.Context().Done()
	case ok:
		if strings.HasSuffix(r.URL.Path, "/") {
			w.Header().Set("Content-Type", "text/html")
		}
		_, _ = w.Write(content)
	default:
		http.NotFound(w, r)
	}
}

func (m *mirror) put(path string, content []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[path] = content
}

// config is a server configuration with the template "mirrored": the base with
// a company's settings for gem, pip and npm.
func (m *mirror) config(more string) string {
	const hosts = "gems.example.com pip.example.com slow.example.com dead.example.com"
	var fixed, exempt strings.Builder
	for _, h := range strings.Fields(hosts) {
		fmt.Fprintf(&fixed, "    %s: [%s]\n", h, m.Address)
		fmt.Fprintf(&exempt, "    - {host: %s, cidr: %s/32, ports: [%s, 18809]}\n", h, m.Address, mirrorPort)
	}
	return `
egress:
  hosts:
` + fixed.String() + `  exempt:
` + exempt.String() + `registries:
  mirrored:
    gem: [gems.example.com:` + mirrorPort + `]
    pip: ["+pip.example.com:` + mirrorPort + `"]
    npm: ["+slow.example.com:` + mirrorPort + `", "+dead.example.com:18809"]
templates:
  - name: mirrored
    from: base
    env: {PIP_EXTRA_INDEX_URL: "http://pip.example.com:` + mirrorPort + `/simple", PIP_TRUSTED_HOST: pip.example.com}
    files:
      /etc/gemrc: |
        :sources:
        - http://gems.example.com:` + mirrorPort + `/
      /root/.npmrc: |
        @slow:registry=http://slow.example.com:` + mirrorPort + `/hang/
        @dead:registry=http://dead.example.com:18809/
        @evil:registry=http://slow.example.com:` + mirrorPort + `/npm/
        @flaky:registry=http://slow.example.com:` + mirrorPort + `/flaky/
` + more
}

// gemScript makes a gem with a program and the index of a source that has it.
const gemScript = `set -e
mkdir -p /tmp/source/gems /tmp/source/quick/Marshal.4.8 /tmp/gem/bin /tmp/gem/lib
cd /tmp/gem
printf '#!/usr/bin/env ruby\nrequire "atoll_tiny"\nputs ATOLL_TINY\n' > bin/atoll-tiny
echo 'ATOLL_TINY = "tiny"' > lib/atoll_tiny.rb
chmod 755 bin/atoll-tiny
export SOURCE_DATE_EPOCH=1700000000
ruby -rrubygems/package -rzlib -e '
spec = Gem::Specification.new { |s| s.name = "atoll-tiny"; s.version = "1.0"; s.summary = "x"; s.authors = ["x"]; s.files = ["bin/atoll-tiny", "lib/atoll_tiny.rb"]; s.executables = ["atoll-tiny"] }
Gem::Package.build(spec)
dump = Marshal.dump([["atoll-tiny", Gem::Version.new("1.0"), "ruby"]])
%w[specs latest_specs].each { |n| File.binwrite("/tmp/source/#{n}.4.8.gz", Gem::Util.gzip(dump)) }
File.binwrite("/tmp/source/prerelease_specs.4.8.gz", Gem::Util.gzip(Marshal.dump([])))
File.binwrite("/tmp/source/quick/Marshal.4.8/atoll-tiny-1.0.gemspec.rz", Gem.deflate(Marshal.dump(spec)))
' >&2
mv atoll-tiny-1.0.gem /tmp/source/gems/
tar -C /tmp/source -cz . | base64`

// addGem has a sandbox make the gem and puts it on the mirror.
func (m *mirror) addGem(s *server, agent string) {
	s.t.Helper()
	text := s.must(s.session(agent, s.environment(object{"base_template": "base"})), gemScript)
	packed, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		s.t.Fatal(err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		s.t.Fatal(err)
	}
	archive := tar.NewReader(unzipped)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			s.t.Fatal(err)
		}
		m.put(strings.TrimPrefix(h.Name, "."), content)
	}
}

// decode reads a reply that must be JSON.
func decode(t *testing.T, raw string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(raw), into); err != nil {
		t.Errorf("%v in %s", err, raw)
	}
}

// builtAtLast waits until an environment's build is ready. A public registry
// that cannot be reached for a while is no matter of these tests: then new
// sessions have it tried again, as they do for everyone.
func (s *server) builtAtLast(agent, env string) build {
	s.t.Helper()
	again := 0
	for {
		b := s.built(env)
		if b.Status == "ready" {
			return b
		}
		s.again(agent, env, b, &again)
	}
}

// again has a failed build tried again, if it failed for want of a registry.
func (s *server) again(agent, env string, b build, times *int) {
	s.t.Helper()
	*times++
	if b.Error == nil || b.Error.Kind != "registry_unreachable" || *times > 3 {
		s.t.Fatalf("build: %+v %+v", b, b.Error)
	}
	s.t.Logf("again: %s", b.Error.Message)
	// For a while a session is answered the failure without an attempt.
	next := time.Now()
	waitFor(s.t, 2*time.Minute, "another build", func() bool {
		if time.Now().After(next) {
			s.session(agent, env)
			next = time.Now().Add(10 * time.Second)
		}
		s.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &b)
		return b.Status != "failed"
	})
}
