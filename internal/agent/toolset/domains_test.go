package toolset

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
)

func unrestricted(t testing.TB) *egress.Policy {
	t.Helper()
	p, err := egress.Compile(egress.Spec{Mode: egress.ModeUnrestricted})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// One address in many spellings, and one entry in many spellings: the list
// decides about what is meant.
func TestListsComparePlainForms(t *testing.T) {
	t.Parallel()
	policy := unrestricted(t)
	for _, tt := range []struct {
		entry, url string
		covered    bool
	}{
		{"docs.example.com", "http://docs.example.com/", true},
		{"DOCS.Example.COM.", "http://docs.example.com./x", true},
		{"docs.example.com", "http://a.docs.example.com/x", true},
		{"docs.example.com", "http://notdocs.example.com/", false},
		{"bücher.example.com", "http://xn--bcher-kva.example.com/", true},
		{"xn--bcher-kva.example.com", "http://B%C3%9Ccher.example.com/", true},

		{"203.0.113.5", "http://203.0.113.5/", true},
		{"203.0.113.5", "http://203.0.113.5:8080/x", true},
		{"203.0.113.5", "http://[::ffff:203.0.113.5]/", true},
		{"203.0.113.5", "http://[::ffff:cb00:7105]/", true},
		{"::ffff:203.0.113.5", "http://203.0.113.5/", true},
		{"203.0.113.5", "http://203.0.113.50/", false},
		{"[2606:4700:4700::1111]", "http://[2606:4700:4700:0:0:0:0:1111]/", true},
		{"2606:4700:4700:0:0::1111", "https://[2606:4700:4700::1111]/", true},
		{"docs.example.com", "http://203.0.113.5/", false},

		{"docs.example.com/private", "http://docs.example.com/private", true},
		{"docs.example.com/private", "http://docs.example.com/private/a?b", true},
		{"docs.example.com/private/", "http://docs.example.com/private", true},
		{"docs.example.com/private", "http://docs.example.com/privateer", false},
		{"docs.example.com/private", "http://docs.example.com/public/../private/a", true},
		{"docs.example.com/private", "http://docs.example.com/public/%2e%2E/private/a", true},
		{"docs.example.com/private", "http://docs.example.com/./private/a", true},
		{"docs.example.com/private", "http://docs.example.com/%70riv%61te/a", true},
		{"docs.example.com/private", "http://docs.example.com/private/../public", false},
		{"docs.example.com/private", "http://docs.example.com/private/%2e%2e/public", false},
		{"docs.example.com/%70rivate", "http://docs.example.com/private", true},
		{"docs.example.com/a/../private", "http://docs.example.com/private", true},
		{"docs.example.com/a%7eb", "http://docs.example.com/a~b", true},
		{"docs.example.com/a%c3%a9", "http://docs.example.com/a%C3%A9", true},
		{"docs.example.com/", "http://docs.example.com/anything", true},
	} {
		at := site{policy: policy, blocked: []string{tt.entry}}
		if _, err := at.target(tt.url); (err != nil) != tt.covered {
			t.Errorf("blocked %s: %s: %v", tt.entry, tt.url, err)
		}
		at = site{policy: policy, allowed: []string{tt.entry}}
		if _, err := at.target(tt.url); (err == nil) != tt.covered {
			t.Errorf("allowed %s: %s: %v", tt.entry, tt.url, err)
		}
	}
	// What some servers read in one way and some in another is refused by both lists.
	for _, path := range []string{"/private/..%2fpublic", "/private%2f..%2fpublic", "/public/..%2fprivate", "//private/x", `/public/..%5cprivate`} {
		for name, at := range map[string]site{"blocked": {policy: policy, blocked: []string{"docs.example.com/private"}}, "allowed": {policy: policy, allowed: []string{"docs.example.com/public"}}} {
			if _, err := at.target("http://docs.example.com" + path); err == nil && (name == "allowed" || !strings.HasPrefix(path, "/private%2f")) {
				t.Errorf("%s: %s passes", name, path)
			}
		}
	}
}

// A refusal by the tool's own lists, or by the policy, is told and not dialled.
func TestRefusalIsNotDialled(t *testing.T) {
	t.Parallel()
	limited, err := egress.Compile(egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		policy           *egress.Policy
		allowed, blocked []string
		url, told        string
	}{
		{unrestricted(t), []string{"docs.example.com"}, nil, "http://203.0.113.5/", "203.0.113.5:80 allowed_domains"},
		{unrestricted(t), []string{"docs.example.com"}, nil, "https://[2606:4700:4700::1111]:8443/", "[2606:4700:4700::1111]:8443 allowed_domains"},
		{unrestricted(t), nil, []string{"203.0.113.5"}, "http://203.0.113.5/", "203.0.113.5:80 blocked_domains"},
		{unrestricted(t), nil, []string{"docs.example.com"}, "https://docs.example.com/", "docs.example.com:443 blocked_domains"},
		{unrestricted(t), []string{"docs.example.com"}, nil, "https://other.example.com/", "other.example.com:443 allowed_domains"},
		{unrestricted(t), nil, nil, "http://[fe80::1%25eth0]/", "[fe80::1%eth0]:80 "},
		{limited, nil, nil, "http://203.0.113.5/", "203.0.113.5:80 "},
		{limited, nil, nil, "https://no.example.com/", "no.example.com:443 "},
		{nil, nil, nil, "https://no.example.com/", "no.example.com:443 "},
	} {
		set, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		var dialled, told []string
		s := set.Open(SessionConfig{ID: "sesn_test", Web: tt.policy,
			DialWeb: func(_ context.Context, _, address string) (net.Conn, error) {
				dialled = append(dialled, address)
				return nil, errors.New("dialled")
			},
			RefuseWeb: func(address, list string) { told = append(told, address+" "+list) }})
		input, err := json.Marshal(map[string]string{"url": tt.url})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.fetch(t.Context(), Call{ID: "sevt_1", Name: api.ToolWebFetch, Input: input}, api.ToolConfig{AllowedDomains: tt.allowed, BlockedDomains: tt.blocked})
		if err != nil || !r.IsError || len(dialled) != 0 || !slices.Equal(told, []string{tt.told}) {
			t.Errorf("%s: error %t %v, dialled %q, told %q, want %q", tt.url, r.IsError, err, dialled, told, tt.told)
		}
		_ = s.Close()
	}
}

// FuzzPlainPath: the plain form of a path is its own plain form, is what is sent,
// and has no dot segment left.
func FuzzPlainPath(f *testing.F) {
	for _, path := range []string{"", "/", "/a/../b", "/%2e%2e/a", "/a%2fb", "/%zz", "/a/.", "/..", "/%E4/%61", "//a", `/a\..\b`, "/%", "/%2"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.Parse("http://docs.example.com/" + path)
		if err != nil || u.Host != "docs.example.com" {
			return
		}
		plain := plainPath(u.EscapedPath())
		if again := plainPath(plain); again != plain {
			t.Errorf("%q is %q, and that is %q", path, plain, again)
		}
		for segment := range strings.SplitSeq(plain, "/") {
			if segment == "." || segment == ".." {
				t.Errorf("%q keeps a dot segment: %q", path, plain)
			}
		}
		at := site{policy: unrestricted(t)}
		if err := at.check(u); err != nil {
			t.Errorf("%q: %v", path, err)
		}
		if sent := u.EscapedPath(); sent != plain {
			t.Errorf("%q is compared as %q and sent as %q", path, plain, sent)
		}
	})
}
