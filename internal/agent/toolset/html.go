package toolset

import (
	"io"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxReadable bounds the text that is made of one page, in bytes.
const maxReadable = 2 << 20

// readable turns a page into text with the marks of Markdown for headings,
// lists, links and code, and reports its title. It looks at one token after the
// other and builds no tree: no page makes it slow or large. What a page hides
// from readers (scripts, styles) is left out.
func readable(page io.Reader, base *url.URL) (title, text string) {
	r := &reader{base: base}
	tokens := html.NewTokenizer(page)
	tokens.SetMaxBuf(1 << 20) // of one token
	for r.out.Len() < maxReadable {
		switch tokens.Next() {
		case html.ErrorToken: // the end, or a token that is too long
			return r.finish()
		case html.TextToken:
			r.text(string(tokens.Text()))
		case html.StartTagToken:
			r.start(tokens.Token(), false)
		case html.SelfClosingTagToken:
			r.start(tokens.Token(), true)
		case html.EndTagToken:
			name, _ := tokens.TagName()
			r.end(atom.Lookup(name))
		}
	}
	return r.finish()
}

// reader is the state of one page that is being read.
type reader struct {
	base   *url.URL
	out    strings.Builder
	title  strings.Builder
	hidden []atom.Atom // elements that are left out and not closed yet
	inside atom.Atom   // title, or zero
	pre    int         // open pre elements
	links  []string    // targets of the open links, innermost last; at most maxLinkDepth
	breaks int         // newlines that go before the next text
	space  bool        // a space goes before the next text
}

const maxLinkDepth = 16

// skipped elements hold nothing for readers.
var skipped = []atom.Atom{atom.Script, atom.Style, atom.Noscript, atom.Template, atom.Svg, atom.Iframe, atom.Object, atom.Select, atom.Canvas}

func (r *reader) text(s string) {
	switch {
	case r.inside == atom.Title:
		if r.title.Len() < 1024 {
			r.title.WriteString(s)
		}
	case len(r.hidden) > 0:
	case r.pre > 0:
		r.write(s)
	default:
		words := strings.Fields(s)
		if len(words) == 0 {
			r.space = r.space || s != ""
			return
		}
		r.space = r.space || strings.TrimLeft(s, " \t\r\n\f") != s
		r.write(strings.Join(words, " "))
		r.space = strings.TrimRight(s, " \t\r\n\f") != s
	}
}

// write puts out what was held back, then s.
func (r *reader) write(s string) {
	switch {
	case r.out.Len() == 0:
	case r.breaks > 0:
		r.out.WriteString(strings.Repeat("\n", min(r.breaks, 2)))
	case r.space:
		r.out.WriteByte(' ')
	}
	r.breaks, r.space = 0, false
	r.out.WriteString(s)
}

// glue writes s right behind what is there.
func (r *reader) glue(s string) {
	if r.breaks == 0 {
		r.out.WriteString(s)
	}
}

func (r *reader) line(n int) { r.breaks = max(r.breaks, n) }

func (r *reader) start(t html.Token, closed bool) {
	if slices.Contains(skipped, t.DataAtom) {
		if !closed && len(r.hidden) < 1000 {
			r.hidden = append(r.hidden, t.DataAtom)
		}
		return
	}
	if len(r.hidden) > 0 {
		return
	}
	switch t.DataAtom {
	case atom.Title:
		if r.title.Len() == 0 && !closed {
			r.inside = atom.Title
		}
	case atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6:
		r.line(2)
		r.write(strings.Repeat("#", int(t.Data[1]-'0')))
		r.space = true
	case atom.Li:
		r.line(1)
		r.write("-")
		r.space = true
	case atom.Br:
		r.line(1)
	case atom.Hr:
		r.line(2)
		r.write("---")
		r.line(2)
	case atom.Pre:
		r.line(2)
		r.write("```\n")
		r.pre++
	case atom.Code:
		if r.pre == 0 {
			r.write("`")
		}
	case atom.Td, atom.Th:
		r.space = true
	case atom.Img:
		if alt := strings.Join(strings.Fields(attribute(t, "alt")), " "); alt != "" {
			r.write("[image: " + alt + "]")
		}
	case atom.A:
		if !closed {
			r.openLink(attribute(t, "href"))
		}
	default:
		r.block(t.DataAtom)
	}
}

// openLink remembers a link's target; what is no place to go is none.
func (r *reader) openLink(href string) {
	if len(r.links) >= maxLinkDepth {
		return
	}
	target := ""
	if u, err := r.base.Parse(strings.TrimSpace(href)); err == nil && href != "" && !strings.HasPrefix(href, "#") && (u.Scheme == "https" || u.Scheme == "http") && len(href) < 2048 {
		target = u.String()
		r.write("[")
	}
	r.links = append(r.links, target)
}

func (r *reader) end(name atom.Atom) {
	if n := len(r.hidden); n > 0 {
		if r.hidden[n-1] == name {
			r.hidden = r.hidden[:n-1]
		}
		return
	}
	switch name {
	case atom.Title:
		r.inside = 0
	case atom.Pre:
		if r.pre > 0 {
			r.pre--
			r.breaks = 0
			r.write("\n```")
			r.line(2)
		}
	case atom.Code:
		if r.pre == 0 {
			r.glue("`")
		}
	case atom.Td, atom.Th:
		r.glue(" |")
		r.space = true
	case atom.A:
		if n := len(r.links); n > 0 {
			if target := r.links[n-1]; target != "" {
				r.glue("](" + target + ")")
			}
			r.links = r.links[:n-1]
		}
	case atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6:
		r.line(2)
	default:
		r.block(name)
	}
}

// block begins a new line or paragraph where an element does.
func (r *reader) block(name atom.Atom) {
	switch name {
	case atom.P, atom.Ul, atom.Ol, atom.Table, atom.Blockquote, atom.Article, atom.Section, atom.Header, atom.Footer, atom.Main, atom.Nav, atom.Figure, atom.Dl:
		r.line(2)
	case atom.Div, atom.Li, atom.Tr, atom.Dt, atom.Dd, atom.Form, atom.Aside, atom.Option, atom.Figcaption, atom.Details, atom.Summary:
		r.line(1)
	}
}

func (r *reader) finish() (title, text string) {
	return strings.Join(strings.Fields(strings.ToValidUTF8(r.title.String(), "\uFFFD")), " "), strings.ToValidUTF8(strings.TrimSpace(r.out.String()), "\uFFFD")
}

func attribute(t html.Token, name string) string {
	for _, a := range t.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
