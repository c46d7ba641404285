package e2e

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	layers "github.com/google/go-containerregistry/pkg/v1/tarball"
)

// thirdParty puts an image on a container registry: the small template with
// apt pointed at a host that nobody exempted. It returns the image's reference.
func (s *server) thirdParty(t *testing.T) string {
	t.Helper()
	var slim templateInfo
	decode(t, s.mustAtoll("template", "show", "--json", "slim"), &slim)
	dir := t.TempDir()
	sources := filepath.Join(dir, "etc/apt/sources.list")
	if err := os.MkdirAll(filepath.Dir(sources), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sources, []byte(aptSource("inside.example.com")), 0o644); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(newContainerRegistry(t)+"/third/party:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	image := empty.Image
	for _, root := range []string{filepath.Join(s.Cache, "bases", slim.Digest, "rootfs"), dir} {
		layer, err := layers.LayerFromOpener(func() (io.ReadCloser, error) { return tarOf(root) }, layers.WithCompressionLevel(0))
		if err != nil {
			t.Fatal(err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func newContainerRegistry(t *testing.T) string {
	r := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(r.Close)
	return r.Listener.Addr().String()
}

// tarOf streams a directory.
func tarOf(dir string) (io.ReadCloser, error) {
	cmd := exec.Command("tar", "-C", dir, "--numeric-owner", "--sort=name", "-c", ".")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &process{out, cmd}, cmd.Start()
}

// process is the output of one; closing it waits for its end.
type process struct {
	io.ReadCloser
	cmd *exec.Cmd
}

func (p *process) Close() error {
	_, _ = io.Copy(io.Discard, p.ReadCloser)
	return p.cmd.Wait()
}

func aptSource(host string) string {
	return "deb [trusted=yes] http://" + host + ":" + mirrorPort + "/debian trixie main\n"
}

// templateInfo is what the command line tells of a template.
type templateInfo struct {
	Digest     string
	Managers   map[string]string
	Warnings   []string
	Registries []struct {
		Manager, Host, How string
		Port               int
	}
}

func (s *server) template(t *testing.T, config, name string) (info templateInfo) {
	t.Helper()
	decode(t, s.mustAtoll("template", "show", "--config", config, "--json", name), &info)
	return info
}

// house is the base template with every manager pointed at the company's
// registry, and one more template whose apt asks this host.
func houseConfig(m *mirror, third, rebuilt string) string {
	fixed, exempt := "", ""
	for _, host := range []string{"house", "one", "two", "inside"} {
		fixed += "    " + host + ".example.com: [" + m.Address + "]\n"
		if host != "inside" {
			exempt += "    - {host: " + host + ".example.com, cidr: " + m.Address + "/32, ports: [" + mirrorPort + "]}\n"
		}
	}
	const at = "http://house.example.com:" + mirrorPort
	return "egress:\n  hosts:\n" + fixed + "  exempt:\n" + exempt + `
templates:
  - name: third
    oci: {ref: ` + third + `, plain_http: true}
  - name: rebuilt
    from: slim
    files: {/etc/apt/sources.list: "` + strings.TrimSpace(aptSource(rebuilt)) + `\n"}
  - name: house
    from: base
    env: {GOPROXY: "` + at + `/go", GOSUMDB: "off"}
    files:
      /etc/apt/sources.list: "` + strings.TrimSpace(aptSource("house.example.com")) + `\n"
      /etc/pip.conf: "[global]\nindex-url = ` + at + `/simple\ntrusted-host = house.example.com\nretries = 0\n"
      /root/.npmrc: "registry=` + at + `/npm/\nfetch-retries=0\n"
      /etc/gemrc: ":sources:\n- ` + at + `/\n"
      /root/.cargo/config.toml: "[source.crates-io]\nreplace-with = \"house\"\n[source.house]\nregistry = \"sparse+` + at + `/cargo/\"\n[net]\nretry = 0\n"
`
}

// TestTemplateRegistries: what allow_package_managers opens is what a template's
// own managers say, whoever made the template. The subtests have the numbers of
// the network test matrix.
func TestTemplateRegistries(t *testing.T) {
	m := newMirror(t)
	m.put("/hello", []byte("hello from the mirror"))
	file := filepath.Join(t.TempDir(), "atoll.yaml")
	s := newServer(t, "")
	s.Args = append(s.Args, "--config", file)
	agent := s.agent()
	s.must(s.session(agent, s.environment(object{"base_template": "slim"})), "true") // it is built
	third := s.thirdParty(t)
	configured := func(rebuilt string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(houseConfig(m, third, rebuilt)), 0o600); err != nil {
			t.Fatal(err)
		}
		s.Stop(syscall.SIGTERM)
		s.Start()
	}
	configured("one.example.com")
	// opened makes a session with the template's registries and nothing else.
	environment := func(template string) string {
		return s.environment(object{"base_template": template, "networking": object{"type": "limited", "allow_package_managers": true}})
	}
	reached := func(session, host string) bool {
		t.Helper()
		r := s.exec(session, "curl -s --max-time 60 http://"+host+".example.com:"+mirrorPort+"/hello")
		return r.Code == 0 && r.Stdout == "hello from the mirror"
	}

	t.Run("E278", func(t *testing.T) {
		id := s.session(agent, environment("third"))
		if reached(id, "inside") {
			t.Error("an internal host is reached because an image named it")
		}
		var records struct{ Data []egressRecord }
		s.call("GET", "/atoll/v1/sessions/"+id+"/egress?verdict=refused", nil, &records)
		if len(records.Data) != 1 || records.Data[0].Host != "inside.example.com" || records.Data[0].Reason != "address_not_public" {
			t.Errorf("records: %+v", records.Data)
		}
		info := s.template(t, file, "third")
		if len(info.Registries) != 1 || info.Registries[0].Host != "inside.example.com" {
			t.Errorf("registries: %+v", info.Registries)
		}
		if all := strings.Join(info.Warnings, "\n"); !strings.Contains(all, "inside.example.com port "+mirrorPort) || !strings.Contains(all, "egress.exempt") {
			t.Errorf("warnings: %s", all)
		}
	})

	t.Run("E202", func(t *testing.T) {
		env := environment("rebuilt")
		before := s.session(agent, env)
		expect := func(session, yes, no string) {
			t.Helper()
			if !reached(session, yes) || reached(session, no) {
				t.Errorf("%s: reached %s: %t, %s: %t", session, yes, reached(session, yes), no, reached(session, no))
			}
		}
		expect(before, "one", "two")
		configured("two.example.com")
		// An environment keeps the version it was built on until it is built anew.
		expect(s.session(agent, env), "one", "two")
		s.call("POST", "/atoll/v1/environments/"+env+"/build", nil, nil)
		if b := s.built(env); b.Status != "ready" {
			t.Fatalf("build: %+v", b)
		}
		after := s.session(agent, env)
		expect(after, "two", "one")
		expect(before, "one", "two")
		s.mustAtoll("reload") // compiles the policies of all sessions again
		expect(after, "two", "one")
		expect(before, "one", "two")
	})

	s.must(s.session(agent, environment("house")), "true")
	house := s.template(t, file, "house")
	managers := []string{"apt", "cargo", "gem", "go", "npm", "pip"}
	t.Run("E279", func(t *testing.T) {
		asked := map[string]bool{}
		for _, r := range house.Registries {
			if r.Host != "house.example.com" {
				t.Errorf("learned %+v", r)
			}
			asked[r.Manager] = true
		}
		for _, manager := range managers {
			if !asked[manager] {
				t.Errorf("%s has no registry: %+v", manager, house)
			}
		}
	})
	t.Run("E280", func(t *testing.T) {
		// The company's registry has no packages: every probe fails.
		for _, manager := range managers {
			if !slices.ContainsFunc(house.Warnings, func(w string) bool { return strings.HasPrefix(w, manager+" probe: ") }) {
				t.Errorf("no warning says that the probe of %s failed: %q", manager, house.Warnings)
			}
		}
		for _, r := range house.Registries {
			if r.How != "asked" {
				t.Errorf("%+v", r)
			}
		}
		for _, r := range s.template(t, file, "rebuilt").Registries {
			if r.Manager != "apt" {
				t.Errorf("the template has no %s: %+v", r.Manager, r)
			}
		}
	})
}
