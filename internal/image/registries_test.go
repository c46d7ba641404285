package image

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestRegistryParsers(t *testing.T) {
	t.Parallel()
	show := func(regs []Registry, err error) string {
		var out []string
		for _, r := range tidyRegistries(regs) {
			s := r.Host
			if r.Port != 0 {
				s += ":" + strconv.Itoa(r.Port)
			}
			out = append(out, s)
		}
		if err != nil {
			out = append(out, "error")
		}
		return strings.Join(out, " ")
	}
	pip := func(out string) ([]Registry, error) {
		regs, index := parsePipConfig(out)
		if index {
			regs = append(regs, Registry{Host: "zz-index"})
		}
		return regs, nil
	}
	plain := func(parse func(string) []Registry) func(string) ([]Registry, error) {
		return func(s string) ([]Registry, error) { return parse(s), nil }
	}
	for _, c := range []struct {
		parse    func(string) ([]Registry, error)
		in, want string
	}{
		{plain(parseAptSites), "'http://Deb.Example.com/debian/dists/x/InRelease' a 0 \n'https://b.example.com:8443/x' b 0 \n'file:/srv/x' c 0\nW: words\n", "b.example.com:8443 deb.example.com"},
		{plain(parseAptProxies), "Acquire::http::Proxy \"http://p.example.com:3128/\";\nAcquire::https::Proxy::x \"DIRECT\";\n", "p.example.com:3128"},
		{pip, "global.index-url='https://u:secret@pip.example.com/simple'\nglobal.proxy='http://proxy.example.com:8080'\nglobal.find-links='/wheels'\n", "zz-index pip.example.com proxy.example.com:8080"},
		{pip, "install.extra-index-url='\\nhttps://a.example.com\\nhttps://b.example.com'\n:env:.cert='/x'\n", "a.example.com b.example.com"},
		{parseNpmConfig, `{"registry":"https://npm.example.com/","@a:registry":"https://s.example.com","https-proxy":"http://p.example.com:3128","ca":null}`, "npm.example.com p.example.com:3128 s.example.com"},
		{parseNpmConfig, "npm ERR!", "error"},
		{parseGoEnv, `{"GOPROXY":"https://one.example.com|https://two.example.com/x,direct","GOSUMDB":"sum.example.com+key"}`, "one.example.com sum.example.com two.example.com"},
		{parseGoEnv, `{"GOPROXY":"off","GOSUMDB":"off"}`, ""},
		{parseGoEnv, `{"GOPROXY":"direct","GOSUMDB":"sum.example.com https://mirror.example.com/sum"}`, "mirror.example.com"},
		{plain(parseCargoConfig), "[source.crates-io]\nreplace-with = 'm'\n[source.m]\nregistry = \"sparse+https://cargo.example.com/index/\"\n[http]\nproxy = \"http://p.example.com:3128\"\n[registries]\nx.index = \"https://x.example.com/i\"\n# registry = \"https://no.example.com\"\n", "cargo.example.com p.example.com:3128 x.example.com"},
		{plain(parseGemSources), "*** CURRENT SOURCES ***\n\nhttps://gems.example.com/\nhttp://10.0.0.1:9292\n", "10.0.0.1:9292 gems.example.com"},
	} {
		if got := show(c.parse(c.in)); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

// TestRegistryOverrides: the operator replaces what was learned or adds to it,
// for one template or for all; the template's own settings decide.
func TestRegistryOverrides(t *testing.T) {
	t.Parallel()
	learned := []Registry{{Manager: "pip", Host: "a.example.com", How: "asked"}, {Manager: "pip", Host: "files.example.com", How: "observed"}, {Manager: "npm", Host: "n.example.com", How: "asked"}}
	sets, err := parseOverrides(map[string]map[string][]string{
		"*":     {"pip": {"all.example.com"}, "npm": {"+more.example.com:8443"}},
		"own":   {"pip": {"+own.example.com"}},
		"none":  {"npm": {}},
		"mixed": {"pip": {"x.example.com", "+y.example.com:81"}},
	}, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for template, want := range map[string]string{
		"other": "npm more.example.com:8443 operator, npm n.example.com:0 asked, pip all.example.com:0 operator",
		"own":   "npm more.example.com:8443 operator, npm n.example.com:0 asked, pip a.example.com:0 asked, pip files.example.com:0 observed, pip own.example.com:0 operator",
		"none":  "pip all.example.com:0 operator",
		"mixed": "npm more.example.com:8443 operator, npm n.example.com:0 asked, pip x.example.com:0 operator, pip y.example.com:81 operator",
	} {
		var got []string
		for _, r := range applyOverrides(learned, sets[template], sets["*"]) {
			got = append(got, fmt.Sprintf("%s %s:%d %s", r.Manager, r.Host, r.Port, r.How))
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: got %s\nwant %s", template, text, want)
		}
	}
	_, err = parseOverrides(map[string]map[string][]string{"nope": {"conda": {"x.example.com"}}, "*": {"pip": {"https://x.example.com/"}}}, func(name string) bool { return name != "nope" })
	for _, part := range []string{`no template "nope"`, `no package manager "conda"`, `"https://x.example.com/" is not a host name`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %s: %v", part, err)
		}
	}
}

func FuzzHostRegistry(f *testing.F) {
	for _, s := range []string{"a.example.com", "A:443", "[::1]:80", "a_b:99999", "é.example.com", "a..b", "x@y", "*.example.com"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := hostRegistry("pip", s, "asked")
		if !ok {
			return
		}
		if r.Host == "" || r.Host != strings.ToLower(r.Host) || strings.ContainsAny(r.Host, " /@*\n") || r.Port < 0 || r.Port > 65535 || r.Port == 443 {
			t.Errorf("%q became %+v", s, r)
		}
	})
}

// TestLearnSlim asks the real tools of slim, in a plain chroot on this machine's network.
func TestLearnSlim(t *testing.T) {
	needRoot(t)
	name := "slim"
	if n := os.Getenv("ATOLL_TEST_TEMPLATES"); n != "" {
		name = n
	}
	ts, err := NewTemplates(TemplatesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ts.Show(name)
	if err != nil {
		t.Fatal(err)
	}
	box, err := openChroot(t, &boxHooks{})(t.Context(), BoxSpec{Layers: []string{b.Dir}, Env: b.Env, Observe: true})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close(t.Context())
	l := &learner{box: box, p: safeProgress{logProgress{t}}, out: learned{Managers: map[string]string{}, Runtimes: map[string]string{}}}
	if err := l.all(t.Context(), m.Declaration.Runtimes); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", l.out)
	if l.out.Managers["apt"] == "" || len(l.out.Registries) == 0 || l.out.Runtimes["python"] == "" || l.out.Runtimes["curl"] == "" {
		t.Errorf("learned %+v", l.out)
	}
}
