package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// urlRegistry takes the host and port of a registry's URL. Anything that is not an http or https URL has none.
func urlRegistry(manager, raw, how string) (Registry, bool) {
	u, err := url.Parse(strings.TrimPrefix(strings.TrimSpace(raw), "sparse+"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return Registry{}, false
	}
	return hostRegistry(manager, u.Host, how)
}

// hostRegistry takes "host" or "host:port". Ports 80 and 443 are 0, the default.
func hostRegistry(manager, hostport, how string) (Registry, bool) {
	u := url.URL{Host: hostport}
	host, port := strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), 0
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return Registry{}, false
		}
		port = int(n)
	}
	if port == 80 || port == 443 {
		port = 0
	}
	if !hostPattern.MatchString(host) || len(host) > 253 {
		if _, err := netip.ParseAddr(host); err != nil {
			return Registry{}, false
		}
	}
	return Registry{Manager: manager, Host: host, Port: port, How: how}, true
}

var hostPattern = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*$`)

func urlRegistries(manager string, raws ...string) []Registry {
	var out []Registry
	for _, raw := range raws {
		if r, ok := urlRegistry(manager, raw, "asked"); ok {
			out = append(out, r)
		}
	}
	return out
}

// parseAptSites reads what "apt-get --print-uris update" would fetch: quoted URLs, one a line.
func parseAptSites(out string) []Registry {
	var urls []string
	for line := range strings.Lines(out) {
		if u, _, ok := strings.Cut(strings.TrimPrefix(line, "'"), "'"); ok {
			urls = append(urls, u)
		}
	}
	return tidyRegistries(urlRegistries("apt", urls...))
}

var aptProxyLine = regexp.MustCompile(`(?m)^Acquire::(?:https?|ftp)::Proxy(?:::[^ ]+)? "([^"]+)";`)

// parseAptProxies reads the proxies of "apt-config dump".
func parseAptProxies(out string) []Registry {
	var urls []string
	for _, m := range aptProxyLine.FindAllStringSubmatch(out, -1) {
		urls = append(urls, m[1])
	}
	return urlRegistries("apt", urls...)
}

// parsePipConfig reads "pip config list". index tells whether it names an index, so that pip's own default does not
// count.
func parsePipConfig(out string) (regs []Registry, index bool) {
	for line := range strings.Lines(out) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		switch key = key[strings.LastIndexByte(key, '.')+1:]; key {
		case "index-url", "extra-index-url", "find-links", "proxy":
			value = strings.ReplaceAll(strings.Trim(value, `'"`), `\n`, " ")
			got := urlRegistries("pip", strings.Fields(value)...)
			index = index || key == "index-url" && len(got) > 0
			regs = append(regs, got...)
		}
	}
	return regs, index
}

// parseNpmConfig reads "npm config list --json": the registry, those of scopes, and proxies.
func parseNpmConfig(out string) ([]Registry, error) {
	var conf map[string]any
	if err := json.Unmarshal([]byte(out), &conf); err != nil {
		return nil, fmt.Errorf("reading npm's configuration: %w", err)
	}
	var urls []string
	for k, v := range conf {
		s, ok := v.(string)
		if ok && (k == "registry" || strings.HasSuffix(k, ":registry") || k == "proxy" || k == "https-proxy") {
			urls = append(urls, s)
		}
	}
	return urlRegistries("npm", urls...), nil
}

// parseGoEnv reads "go env -json GOPROXY GOSUMDB". Fetching direct from code hosts is not a registry.
func parseGoEnv(out string) ([]Registry, error) {
	var env struct{ GOPROXY, GOSUMDB string }
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		return nil, fmt.Errorf("reading go's environment: %w", err)
	}
	regs := urlRegistries("go", strings.FieldsFunc(env.GOPROXY, func(r rune) bool { return r == ',' || r == '|' })...)
	switch f := strings.Fields(env.GOSUMDB); {
	case len(f) == 0 || f[0] == "off":
	case len(f) > 1:
		regs = append(regs, urlRegistries("go", f[1])...)
	default:
		name, _, _ := strings.Cut(f[0], "+")
		if r, ok := hostRegistry("go", name, "asked"); ok {
			regs = append(regs, r)
		}
	}
	return regs, nil
}

var cargoURL = regexp.MustCompile(`(?m)^\s*(?:(?:[A-Za-z0-9_."-]+\.)?(?:registry|index|proxy))\s*=\s*["']((?:sparse\+)?https?://[^"']+)["']`)

// parseCargoConfig reads the registries, sources and proxies of cargo's configuration files. Its built-in index is
// not in them: a probe shows that.
func parseCargoConfig(out string) []Registry {
	var urls []string
	for _, m := range cargoURL.FindAllStringSubmatch(out, -1) {
		urls = append(urls, m[1])
	}
	return urlRegistries("cargo", urls...)
}

// parseGemSources reads "gem sources --list".
func parseGemSources(out string) []Registry { return urlRegistries("gem", strings.Fields(out)...) }

// tidyRegistries sorts, and drops what is there already by a better way of knowing.
func tidyRegistries(in []Registry) []Registry {
	rank := map[string]int{"operator": 0, "asked": 1, "observed": 2}
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b Registry) int {
		return cmp.Or(strings.Compare(a.Manager, b.Manager), strings.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port), cmp.Compare(rank[a.How], rank[b.How]))
	})
	return slices.CompactFunc(out, func(a, b Registry) bool {
		return a.Manager == b.Manager && a.Host == b.Host && a.Port == b.Port
	})
}

// parseOverrides checks the operator's registries: template → manager → hosts. The How of an added one ("+host") is
// "operator+" until it is applied.
func parseOverrides(in map[string]map[string][]string, known func(string) bool) (map[string]map[string][]Registry, error) {
	out := map[string]map[string][]Registry{}
	var errs []error
	for template, managers := range in {
		if template != "*" && !known(template) {
			errs = append(errs, fmt.Errorf("registries: no template %q", template))
		}
		out[template] = map[string][]Registry{}
		for manager, hosts := range managers {
			if !slices.Contains(managerOrder[:], manager) {
				errs = append(errs, fmt.Errorf("registries: no package manager %q: there are %s", manager, strings.Join(managerOrder[:], ", ")))
			}
			out[template][manager] = []Registry{}
			for _, h := range hosts {
				how := "operator"
				bare, added := strings.CutPrefix(h, "+")
				if added {
					how = "operator+"
				}
				r, ok := hostRegistry(manager, bare, how)
				if !ok {
					errs = append(errs, fmt.Errorf("registries: %s: %q is not a host name with an optional port", manager, h))
					continue
				}
				out[template][manager] = append(out[template][manager], r)
			}
		}
	}
	return out, errors.Join(errs...)
}

// applyOverrides replaces or adds to the learned registries. The first set that names a manager decides for it.
func applyOverrides(learned []Registry, sets ...map[string][]Registry) []Registry {
	out := slices.Clone(learned)
	for _, manager := range managerOrder {
		for _, set := range sets {
			own, ok := set[manager]
			if !ok {
				continue
			}
			adds := len(own) > 0 && !slices.ContainsFunc(own, func(r Registry) bool { return r.How == "operator" })
			if !adds {
				out = slices.DeleteFunc(out, func(r Registry) bool { return r.Manager == manager })
			}
			for _, r := range own {
				r.How = "operator"
				out = append(out, r)
			}
			break
		}
	}
	return tidyRegistries(out)
}
