package toolset

import (
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/atoll-run/atoll/internal/egress"
)

func FuzzReadable(f *testing.F) {
	for _, page := range []string{"<h1>a</h1><p>b<a href=/x>c</a><ul><li>d</ul><pre> e\n</pre>", "<script>x", "<table><td>1<td>2", strings.Repeat("<div>", 3000) + "x", "<title>t", "\xff<p", "<a href='http://[::1'>x</a>"} {
		f.Add(page)
	}
	base := &url.URL{Scheme: "https", Host: "web.example.com", Path: "/"}
	f.Fuzz(func(t *testing.T, page string) {
		title, text := readable(t.Context(), strings.NewReader(page), base)
		if !utf8.ValidString(title) || !utf8.ValidString(text) {
			t.Error("not UTF-8")
		}
		// Links are made absolute and marks are added: a page grows by a factor, not by its shape.
		if len(text) > 64*len(page)+64 {
			t.Errorf("%d bytes of text from %d", len(text), len(page))
		}
	})
}

// TestReadableHostile reads pages that are made to be slow or to grow: parser
// and converter may take a bounded amount of memory for a page's byte.
func TestReadableHostile(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "web.example.com", Path: "/"}
	distinct := func(format string) string {
		var b strings.Builder
		for i := range 40_000 {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	fill := func(piece string) string { return strings.Repeat(piece, 1<<20/len(piece)) }
	pages := map[string]string{
		"formats opened again in each block": distinct("<b id=%d>") + fill("<p>a"),
		"links opened again in each block":   distinct("<a href=/%d>") + fill("<p>a"),
		"one long row, many short":           "<table><tr>" + strings.Repeat("<td>a", 9_000) + strings.Repeat("<tr><td>a", 9_000),
		"one wide cell, many narrow":         "<table><tr><td>" + strings.Repeat("a", 1<<19) + strings.Repeat("<tr><td>a", 9_000),
		"tables in tables":                   fill("<table><tr><td>a<td>"),
		"lists in lists":                     strings.Repeat("<ul><li>a", 3_000) + fill("<p>a"),
		"quotes in quotes":                   strings.Repeat("<blockquote>a", 3_000) + fill("<br>a"),
		"text moved before a table":          "<table>" + fill("a<tr>"),
		"tags closed in the wrong order":     fill("<b><i><s></b></i></s><p>"),
		"fences inside code":                 "<pre><code>" + fill("```` "),
	}
	for _, piece := range []string{"<div>", "<ul><li>", "<blockquote>", "<a href=/x>", "<pre>", "<svg>", "<table><tr><td colspan=9999999>", "</a>", "<", "&amp;", "<!--", "<p>a"} {
		pages[piece] = fill(piece)
	}
	for name, page := range pages {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, text := readable(t.Context(), strings.NewReader(page), base)
		runtime.ReadMemStats(&after)
		if name == "<p>a" && !strings.HasSuffix(text, "a\n\n[the rest of the page is left out: it is too long]") {
			t.Errorf("%s: the text does not say that it is cut: %q", name, text[len(text)-100:])
		}
		if len(text) > 16<<20 {
			t.Errorf("%s: %d bytes of text", name, len(text))
		}
		if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 1<<30 {
			t.Errorf("%s: %d MiB allocated", name, allocated>>20)
		}
	}
}

func FuzzSearchReply(f *testing.F) {
	for _, reply := range []string{`{"results":[{"title":"a","url":"http://web.example.com/","snippet":"b"}]}`, `[]`, `{"results":[[],{},null,{"url":{}}]}`, `{"results":[{"url":"https://web.example.com.evil.example.com/"}]}`} {
		f.Add([]byte(reply))
	}
	policy, err := egress.Compile(egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"web.example.com"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		c := Search{Results: "results"}.withDefaults()
		hits, err := c.hits(reply)
		if err != nil {
			return
		}
		at := site{policy: policy}
		for _, h := range hits {
			u, err := at.target(h.link)
			if err == nil && u.Hostname() != "web.example.com" {
				t.Errorf("%q is shown", u)
			}
		}
		if r := showHits(hits, at, c.Count); len(r.Content) == 0 || len(r.Content) > c.Count {
			t.Errorf("%d blocks", len(r.Content))
		}
	})
}

// FuzzTarget holds that what is decided about is where the request would go.
func FuzzTarget(f *testing.F) {
	for _, u := range []string{"http://web.example.com/", "http://WEB.example.com.:80/", "http://web.example.com@evil.example.com/", "http://evil.example.com#@web.example.com/",
		"http://[::ffff:1.2.3.4]/", "http://0x7f.1/", "http://web\u3002example\u3002com/", "http://web.example.com:443/", "https://web.example.com:80"} {
		f.Add(u)
	}
	policy, err := egress.Compile(egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"web.example.com"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := site{policy: policy}.target(raw)
		if err != nil {
			return
		}
		again, perr := url.Parse(u.String())
		if perr != nil || again.Hostname() != "web.example.com" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
			t.Errorf("%q came to %q", raw, u)
		}
	})
}
