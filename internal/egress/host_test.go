package egress

import (
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	t.Parallel()
	label63 := strings.Repeat("a", 63)
	name253 := strings.Join([]string{label63, label63, label63, strings.Repeat("b", 61)}, ".")
	good := map[string]string{
		"example.com":              "example.com",
		"EXAMPLE.Com":              "example.com",
		"example.com.":             "example.com",
		"localhost":                "localhost",
		"_dmarc.example.com":       "_dmarc.example.com",
		"r3---sn-x.example.com":    "r3---sn-x.example.com",
		"xn--bcher-kva.example":    "xn--bcher-kva.example",
		"1.2.3.4.example":          "1.2.3.4.example",
		"0x7f.example":             "0x7f.example",
		"1e100.net":                "1e100.net",
		"a.0xg":                    "a.0xg",
		label63 + ".example":       label63 + ".example",
		name253:                    name253,
		name253 + ".":              name253,
		"host.123abc":              "host.123abc",
		"3com":                     "3com",
		"a-b.example":              "a-b.example",
		"XN--BCHER-KVA.example":    "xn--bcher-kva.example",
		"very.long.chain.of.names": "very.long.chain.of.names",
	}
	for in, want := range good {
		got, err := Canonical(in)
		if err != nil || got.String() != want {
			t.Errorf("Canonical(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	bad := []string{
		"", ".", "..", "example.com..", ".example.com", "a..b", "-a.example", "a-.example", "exa mple.com", "a\x00b.example",
		"attacker.example\x00.allowed.example", "[::1]", "[example.com]", "example.com:443", "user@example.com", "example.com/",
		`a\b.example`, "a%2e.example", "ex\u00e4mple.com", "\u0435xample.com", "a\u3002b", "a\nb", "a\x1b[31mb", "*.example.com", "*",
		label63 + "a.example", name253 + "b", strings.Repeat("a.", 200),
		// E021, E165: what an address parser might take.
		"127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0x7f000001", "0x", "1.2.3.0x4", "1.2.3.4.", "0", "a.1", "a.0x1f", "::1",
		// E162: encoded labels that do not come back as they were.
		"xn--.example", "xn--abc-.example", "xn--\x80.example", "xn--0000000000h.example",
	}
	for _, in := range bad {
		if got, err := Canonical(in); err == nil {
			t.Errorf("Canonical(%q) = %q; want an error", in, got)
		}
	}
}

// E156–E162: what a list may hold.
func TestParseEntry(t *testing.T) {
	t.Parallel()
	good := map[string]struct {
		host     string
		wildcard bool
	}{
		"example.com":           {"example.com", false},
		"EXAMPLE.com":           {"example.com", false}, // E156
		"example.com.":          {"example.com", false}, // E160
		"*.example.com":         {"example.com", true},
		"*.github.io":           {"github.io", true}, // E159: a private suffix
		"*.internal":            {"internal", true},
		"localhost":             {"localhost", false},
		"b\u00fccher.example":   {"xn--bcher-kva.example", false}, // E161
		"*.B\u00dcCHER.example": {"xn--bcher-kva.example", true},
		"stra\u00dfe.example":   {"xn--strae-oqa.example", false}, // not "strasse"
		"\u0435xample.com":      {"xn--xample-2of.com", false},    // E162: a look-alike is another name
		"r3---x.example.com":    {"r3---x.example.com", false},    // E164
		"my_host.example.com":   {"my_host.example.com", false},
	}
	for in, want := range good {
		got, err := ParseEntry(in)
		if err != nil || got.Host.String() != want.host || got.Wildcard != want.wildcard || got.Raw != in {
			t.Errorf("ParseEntry(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	const start = "`allowed_hosts` entry "
	bad := map[string]string{
		// E157: the recorded words.
		"https://example.com": `"https://example.com" contains a URL scheme. Entries must be bare hostnames like "google.com".`,
		"example.com:443":     `"example.com:443" contains a port. Entries must be bare hostnames without ports.`,
		// E158: our own.
		"http://user@example.com:1/":         `"http://user@example.com:1/" contains a URL scheme.`,
		"mailto:someone":                     `"mailto:someone" contains a URL scheme.`,
		"example.com:":                       `"example.com:" contains a port.`,
		"1.2.3.4:80":                         `"1.2.3.4:80" contains a port.`,
		"example.com/path":                   `"example.com/path" contains a path.`,
		"example.com?x":                      `"example.com?x" contains a path.`,
		"user@example.com":                   `"user@example.com" contains user information.`,
		"127.0.0.1":                          `"127.0.0.1" contains an IP address.`,
		"::1":                                `"::1" contains an IP address.`,
		"[::1]":                              `"[::1]" contains an IP address.`,
		"10.0.0.0/8":                         `"10.0.0.0/8" contains an IP address.`,
		"[example.com]":                      `"[example.com]" contains brackets.`,
		"*":                                  `"*" contains a bare wildcard.`,
		"*.":                                 `"*." contains an invalid hostname`,
		"**.x":                               `"**.x" contains a wildcard outside its first label.`,
		"foo.*.com":                          `"foo.*.com" contains a wildcard outside its first label.`,
		"*foo.com":                           `"*foo.com" contains a wildcard outside its first label.`,
		"*.*.example.com":                    `"*.*.example.com" contains a wildcard outside its first label.`,
		"":                                   `"" contains no hostname.`,
		" example.com":                       `" example.com" contains a space`,
		"exam ple.com":                       `"exam ple.com" contains a space`,
		"a\x00b.example":                     `"a\x00b.example" contains a space, a control character`,
		"a\x1b[31m":                          `"a\x1b[31m" contains a space, a control character`,
		"a\xffb.example":                     `"a\xffb.example" contains a space, a control character or invalid UTF-8`,
		"*.com":                              `"*.com" contains a wildcard over a public suffix.`, // E159
		"*.co.uk":                            `"*.co.uk" contains a wildcard over a public suffix.`,
		"*.127.0.0.1":                        `"*.127.0.0.1" contains an invalid hostname`,
		"2130706433":                         `"2130706433" contains an invalid hostname`, // E165
		"example.0x1":                        `"example.0x1" contains an invalid hostname`,
		"example.com..":                      `"example.com.." contains an invalid hostname`,
		"\uff0a.example.com":                 `"\uff0a.example.com" contains an invalid`,
		"\uff11.2.3.4":                       `"\uff11.2.3.4" contains an invalid hostname`,
		"a\u202eb.example":                   `"a\u202eb.example" contains an invalid internationalized hostname`,
		strings.Repeat("a", 64) + ".example": `.example" contains an invalid hostname`, // E164
	}
	for in, want := range bad {
		_, err := ParseEntry(in)
		if err == nil {
			t.Errorf("ParseEntry(%q): no error", in)
			continue
		}
		got := err.Error()
		if !strings.HasPrefix(got, start) || !strings.Contains(got, want) {
			t.Errorf("ParseEntry(%q) = %s\nwant … %s", in, got, want)
		}
		for i := 0; i < len(got); i++ {
			if got[i] < 0x20 || got[i] > 0x7e {
				t.Errorf("ParseEntry(%q): byte %#x in the error", in, got[i])
			}
		}
	}
}
