package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/outbound"
)

// registry is where one of the host's own package managers downloads from.
type registry struct{ manager, url string }

// askings are how the host's package managers are asked where they download
// from. Nothing is assumed: a manager that is absent or says nothing has no
// entry. Each prints URLs, perhaps among other words.
var askings = [...]struct {
	manager string
	command []string
}{
	{"apt", []string{"apt-get", "indextargets", "--format", "$(SITE)"}},
	{"pip", []string{"python3", "-m", "pip", "config", "list"}},
	// Without a setting pip uses a default of its own, which only its code knows.
	{"pip", []string{"python3", "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"}},
	{"npm", []string{"npm", "config", "get", "registry"}},
	{"go", []string{"go", "env", "GOPROXY"}},
	{"gem", []string{"gem", "sources", "--list"}},
}

// hostRegistries asks the host's own tools. The first answer of a manager that
// has a URL counts.
func hostRegistries(ctx context.Context) []registry {
	var out []registry
	for _, ask := range askings {
		if slices.ContainsFunc(out, func(r registry) bool { return r.manager == ask.manager }) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		answer, err := exec.CommandContext(ctx, ask.command[0], ask.command[1:]...).Output()
		cancel()
		if err != nil {
			continue
		}
		for _, found := range findURLs(string(answer), ask.manager) {
			if r := (registry{ask.manager, found}); !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// findURLs picks the http and https URLs out of a tool's words, without what
// is secret in them.
func findURLs(text, manager string) []string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if manager == "pip" && strings.Contains(line, "=") && !strings.Contains(strings.ToLower(line), "index") {
			continue // a proxy or a certificate, not an index
		}
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t'\",|=[]", r) }) {
			u, err := url.Parse(word)
			if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				continue
			}
			u.User, u.RawQuery, u.Fragment = nil, "", ""
			if !slices.Contains(out, u.String()) {
				out = append(out, u.String())
			}
		}
	}
	return out
}

// checkRegistries sends each registry a HEAD request, through the proxy of the
// environment if there is one. Any HTTP answer will do.
func checkRegistries(ctx context.Context) (string, error) {
	all := hostRegistries(ctx)
	if len(all) == 0 {
		return "", fmt.Errorf("no package manager of this host names one: %w", errSkip)
	}
	client := outbound.New(outbound.Config{Timeout: 20 * time.Second})
	words, failures := make([]string, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, r := range all {
		asked.Go(func() {
			u, err := url.Parse(r.url)
			if err == nil {
				err = answers(ctx, client, r.url)
			}
			if err != nil {
				failures[i] = fmt.Errorf("%s: %w", r.manager, err)
				return
			}
			words[i] = r.manager + " " + u.Host
		})
	}
	asked.Wait()
	if err := errors.Join(failures...); err != nil {
		return "", errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	slices.Sort(words)
	return "answering: " + strings.Join(slices.Compact(words), ", "), nil
}

func answers(ctx context.Context, client *http.Client, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, address, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	switch {
	case outbound.Refused(err) != nil:
		return nil // a redirect is an answer too
	case err != nil:
		return err
	}
	return res.Body.Close()
}

// checkResolver resolves the names of the registries that the host's tools
// use; without any it only looks for a server to ask.
func checkResolver(ctx context.Context) (string, error) {
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return "", fmt.Errorf("reading the resolver's settings: %w", err)
	}
	if !strings.Contains(string(conf), "nameserver") {
		return "", errors.New("/etc/resolv.conf names no server")
	}
	var names []string
	for _, r := range hostRegistries(ctx) {
		if u, err := url.Parse(r.url); err == nil && net.ParseIP(u.Hostname()) == nil && !slices.Contains(names, u.Hostname()) {
			names = append(names, u.Hostname())
		}
	}
	if len(names) == 0 {
		return "", fmt.Errorf("no registry is known whose name could be resolved: %w", errSkip)
	}
	resolver := &net.Resolver{PreferGo: true} // as the gateway does
	for _, name := range names {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := resolver.LookupNetIP(ctx, "ip", name+".")
		cancel()
		if err != nil {
			return "", fmt.Errorf("resolving a registry's name: %w", err)
		}
	}
	return "resolved " + strings.Join(names, ", "), nil
}

// checkAuthorities tells which certificates beyond the distribution's go into
// templates.
func checkAuthorities(context.Context) (string, error) {
	extra, err := image.ExtraAuthorities("")
	if err != nil {
		return "", err
	}
	if len(extra) == 0 {
		return "none beyond the distribution's", nil
	}
	var names []string
	for _, a := range extra {
		names = append(names, a.Subject)
	}
	return fmt.Sprintf("%d beyond the distribution's go into templates: %s", len(extra), strings.Join(names, "; ")), nil
}
