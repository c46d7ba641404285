package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// valid is a configuration that is accepted as it is.
func valid(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{Listen: "127.0.0.1:8400", Data: filepath.Join(dir, "data"), Cache: filepath.Join(dir, "cache"), LogLevel: "info"}
}

func TestConfigFile(t *testing.T) {
	t.Parallel()
	cfg := valid(t)
	err := cfg.parse("atoll.yaml", []byte(`
templates:
  - name: team
    from: slim
    debian: {packages: [jq]}
registries:
  "*": {npm: [npm.example.com], pip: ["+pip.example.com:8443"]}
egress:
  exempt: [{host: npm.example.com, cidr: 10.1.2.0/24, ports: [443]}]
  deny_cidrs: [203.0.113.0/24]
  block_hosts: ["*.ads.example.com"]
limits: {memory: 512MiB, cpus: 1.5, processes: 100, disk: 2GiB}
packages: {manager_timeout: 15m, max_age: 24h, max_parallel: 2}
`))
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	want := LimitsConfig{Memory: 512 << 20, CPUs: 1.5, Processes: 100, Disk: 2 << 30}
	if diff := cmp.Diff(want, cfg.Limits); diff != "" {
		t.Error(diff)
	}
	if got := time.Duration(cfg.Packages.ManagerTimeout); got != 15*time.Minute {
		t.Errorf("manager_timeout: got %v", got)
	}
	if err := cfg.parse("atoll.yaml", []byte("sessions: {hibernate_after: never}\n")); err != nil || cfg.Sessions.HibernateAfter >= 0 {
		t.Errorf("hibernate_after: got %v, %v", cfg.Sessions.HibernateAfter, err)
	}
	if cfg.Templates[0].Name != "team" || cfg.Egress.Exempt[0].Ports[0] != 443 {
		t.Errorf("got %+v", cfg)
	}
}

// TestConfigRefusals gives configurations that are wrong, and what has to be
// said about each: everything at once.
func TestConfigRefusals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		yaml string
		set  func(*Config)
		want []string
	}{
		"unknown fields, all of them": {yaml: "limit: {}\negress: {exmept: []}\n", want: []string{"limit", "exmept"}},
		"two documents":               {yaml: "limits: {}\n---\nlimits: {}\n", want: []string{"more than one document"}},
		"not YAML":                    {yaml: "limits: [", want: []string{"atoll.yaml"}},
		"sizes and spans":             {yaml: "limits: {memory: 5GB, disk: -1}\npackages: {max_age: 1d}\n", want: []string{"5GB", "-1", "1d"}},
		"a hibernation that is none":  {yaml: "sessions: {hibernate_after: 10ms}\n", want: []string{"10ms", "never"}},
		"host":                        {yaml: "host: {disk_overcommit: 0.5, processes: -1}\n", want: []string{"host.disk_overcommit", "host.processes"}},
		"host of no number":           {yaml: "host: {disk_overcommit: .nan}\n", want: []string{"host.disk_overcommit"}},
		"too small":                   {yaml: "limits: {memory: 1MiB, disk: 1MiB, cpus: -1, processes: -1}\n", want: []string{"limits.memory", "limits.disk", "limits.cpus", "limits.processes"}},
		"too little for requests":     {yaml: "http: {memory: 1MiB}\n", want: []string{"http.memory"}},
		"origins": {yaml: "http: {origins: ['*', 'https://app.example.com/', 'http://localhost:5173', 'app.example.com']}\n",
			want: []string{`http.origins[0]: "*": it would let every web page in`, `http.origins[1]`, "write https://app.example.com", `http.origins[3]`, "like https://app.example.com"}},
		"a size that overflows": {yaml: "limits: {memory: 9223372036854775807KiB}\n", want: []string{"is not a size"}},
		"egress":                {yaml: "egress: {exempt: [{host: a b, cidr: x, ports: [0]}], deny_cidrs: [y], block_hosts: ['*']}\n", want: []string{"exempt[0]: host", "exempt[0]: cidr", "exempt[0]: ports", "deny_cidrs[0]", "block_hosts[0]"}},
		"ports, ech, limits of egress": {yaml: "egress: {block_ports: [0], open_ports: [{host: '*', ports: [443, 25]}, {host: a.example.com}], ech: maybe, limits: {names: 200000, idle_timeout: 48h, hello_size: 1KiB}}\n",
			want: []string{"block_ports[0]", "open_ports[0]", "443 is open", "25 takes an exemption", "open_ports[1]: no port", "egress.ech", "limits.names", "limits.idle_timeout", "hello_size"}},
		"a manager nobody knows":       {yaml: "registries: {'*': {brew: [a.example.com]}}\n", want: []string{"brew"}},
		"a template without a source":  {yaml: "templates: [{name: x}]\n", want: []string{"exactly one of debian, oci and tarball"}},
		"an authority's file":          {yaml: "ca_file: /does/not/exist\n", want: []string{"ca_file"}},
		"a model that is nowhere":      {yaml: "model: {base_url: 'ftp://x', key_header: cookie, headers: {'a b': c}, max_tokens: -1}\n", want: []string{"model.base_url", "key_header", "headers", "max_tokens"}},
		"a key in an address":          {yaml: "model: {base_url: 'https://user:secret@models.example.com'}\n", want: []string{"model.base_url: \"…\""}},
		"a reply without room":         {yaml: "model: {base_url: 'https://models.example.com', max_tokens: 5, context_window: 5}\n", want: []string{"must be less than context_window"}},
		"a search without its key":     {yaml: "agent: {web_search: {url: 'https://search.example.com/?q={query}&k={key}'}}\n", want: []string{"agent.web_search", "url: there is no key"}},
		"agents without bounds":        {yaml: "agent: {max_requests: -1, max_retries: -1}\n", want: []string{"agent.max_requests", "agent.max_retries"}},
		"listen, level, format":        {set: func(c *Config) { c.Listen, c.LogLevel, c.LogFormat = "8400", "loud", "xml" }, want: []string{"listen", "log-level", "log-format"}},
		"a port that is none":          {set: func(c *Config) { c.Listen = "127.0.0.1:http" }, want: []string{"not a port"}},
		"a short key":                  {set: func(c *Config) { c.APIKey = "x" }, want: []string{"ATOLL_API_KEY"}},
		"data inside the cache":        {set: func(c *Config) { c.Data = c.Cache + "/data" }, want: []string{"must not be inside"}},
		"data and cache are the same":  {set: func(c *Config) { c.Data = c.Cache }, want: []string{"must not be inside"}},
		"a negative number of builds":  {yaml: "packages: {max_parallel: -1}\n", want: []string{"max_parallel"}},
		"a registry that is no host":   {yaml: "registries: {'*': {npm: ['https://npm.example.com/x']}}\n", want: []string{"npm"}},
		"a template declared twice":    {yaml: "templates: [{name: x, from: slim}, {name: x, from: slim}]\n", want: []string{"declared twice"}},
		"registries of no template":    {yaml: "registries: {nothing: {npm: [a.example.com]}}\n", want: []string{"nothing"}},
		"a template from nowhere":      {yaml: "templates: [{name: x, from: nowhere}]\n", want: []string{"nowhere"}},
		"a number where a list should": {yaml: "templates: 3\nregistries: 4\n", want: []string{"line 1", "line 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := valid(t)
			err := cfg.parse("atoll.yaml", []byte(test.yaml))
			if err == nil {
				if test.set != nil {
					test.set(&cfg)
				}
				err = cfg.validate()
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in:\n%v", want, err)
				}
			}
		})
	}
}

// TestKeysOfOthers: a key comes from its variable, else from its file, and never from the
// configuration itself.
func TestKeysOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, empty := filepath.Join(dir, "key"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(file, []byte(" from-file\n"), 0o600), os.WriteFile(empty, []byte("\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ file, variable, want, refusal string }{
		{"", "", "", ""}, {file, "", "from-file", ""}, {file, "from-variable", "from-variable", ""}, {"", " v ", "v", ""},
		{empty, "", "", "key_file"}, {filepath.Join(dir, "missing"), "", "", "key_file"},
	} {
		cfg := valid(t)
		cfg.Model.KeyFile, cfg.Agent.WebSearch.KeyFile = test.file, test.file
		getenv := func(name string) string {
			return map[string]string{"ATOLL_MODEL_KEY": test.variable, "ATOLL_SEARCH_KEY": test.variable}[name]
		}
		for name, err := range map[string]error{"model.": cfg.Model.resolve(getenv), "agent.web_search.": cfg.Agent.WebSearch.resolve(getenv)} {
			if (err != nil) != (test.refusal != "") || err != nil && !strings.Contains(err.Error(), name+test.refusal) {
				t.Errorf("%+v: %v", test, err)
			}
		}
		cfg.Agent.WebSearch.URL = "https://search.example.com/?q={query}"
		if got := cfg.Agent.WebSearch.search().Key; cfg.Model.key != test.want || got != test.want {
			t.Errorf("%+v: the model's key is %q, that of the search %q", test, cfg.Model.key, got)
		}
	}
}

// TestRoots: what goes into templates is believed by the server's web tools.
func TestRoots(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := valid(t)
	if roots, err := cfg.roots(); roots != nil || err != nil {
		t.Errorf("without a file: %v, %v", roots, err)
	}
	cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(cfg.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := cfg.roots()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Error(err)
	}
	if host, err := x509.SystemCertPool(); err != nil || roots.Equal(host) {
		t.Errorf("the pool is the host's: %v", err)
	}
}

// TestConfigurationDocument holds docs/configuration.md to the struct: every
// field of the file and every variable has its row, and no row is left over.
func TestConfigurationDocument(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(content)) {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			documented[name] = true
		}
	}
	want := map[string]bool{"ATOLL_API_KEY": true, "ATOLL_URL": true, "ATOLL_MODEL_URL": true, "ATOLL_MODEL_KEY": true, "ATOLL_SEARCH_KEY": true}
	fieldNames(reflect.TypeFor[Config](), "", want)
	for _, flags := range []reflect.Type{reflect.TypeFor[serveCmd](), reflect.TypeFor[clientFlags]()} {
		settingNames(flags, want)
	}
	if diff := cmp.Diff(want, documented); diff != "" {
		t.Errorf("docs/configuration.md and the settings differ (-settings +document):\n%s", diff)
	}
}

// fieldNames adds the path of each YAML field that is not a group of others.
func fieldNames(typ reflect.Type, prefix string, into map[string]bool) {
	for i := range typ.NumField() {
		field := typ.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name == "-" || name == "" {
			continue
		}
		kind := field.Type
		if kind.Kind() == reflect.Slice && kind.Elem().PkgPath() == typ.PkgPath() {
			kind = kind.Elem()
		}
		if kind.Kind() == reflect.Struct && kind.PkgPath() == typ.PkgPath() {
			fieldNames(kind, prefix+name+".", into)
			continue
		}
		into[prefix+name] = true
	}
}

func settingNames(typ reflect.Type, into map[string]bool) {
	for i := range typ.NumField() {
		field := typ.Field(i)
		if field.Anonymous {
			settingNames(field.Type, into)
		}
		if name := field.Tag.Get("setting"); name != "" {
			into[name] = true
		}
	}
}

// TestConfigFileMutated reads files that are nearly right; none may panic. It is
// no fuzz target, because this package holds gVisor, which Go cannot instrument.
func TestConfigFileMutated(t *testing.T) {
	t.Parallel()
	const parts = " \n\t:-[]{},\"'&*!|>%#?0.eGiB/\x00\xff"
	random := mrand.New(mrand.NewPCG(1, 2)) // the same files each time
	for _, seed := range []string{
		"limits: {memory: 1GiB, cpus: 1.5}\n",
		"templates: [{name: x, from: slim}]\negress: {deny_cidrs: [10.0.0.0/8], hosts: {a.example.com: [192.0.2.1]}}\n",
		"packages: {max_age: 1h, quota: 2TiB}\n---\n",
		"registries:\n  '*':\n    pip: [+files.example.com:8080]\n",
	} {
		for range 3000 {
			content := []byte(seed)
			for range 1 + random.IntN(4) {
				at := random.IntN(len(content) + 1)
				part := parts[random.IntN(len(parts))]
				if at < len(content) && random.IntN(2) == 0 {
					content[at] = part
				} else {
					content = slices.Insert(content, at, part)
				}
			}
			cfg := Config{Listen: "127.0.0.1:0", Data: "/nowhere/data", Cache: "/nowhere/cache", LogLevel: "info"}
			if cfg.parse("mutated", content) == nil && cfg.CAFile == "" {
				_ = cfg.validate() // refused or not: it must not panic
			}
		}
	}
}
