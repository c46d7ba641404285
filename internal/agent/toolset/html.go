package toolset

import (
	"bytes"
	"context"
	"io"
	"net/url"
	"strings"

	"github.com/JohannesKaufmann/html-to-markdown/v2/converter"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/base"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/commonmark"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/strikethrough"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/table"
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// Bounds on the part of a page that is turned into Markdown. The HTML parser
// and the converter build trees, and both can be made to take far more memory
// and time than the page has bytes. What lies beyond a bound is left out.
const (
	maxReadable  = 2 << 20 // bytes of the simplified page
	maxElements  = 100_000 // start tags that are kept
	maxColumns   = 64      // cells of one row: the converter gives every row of a table as many as the longest has
	maxCells     = 20_000  // cells of all tables
	maxLinkBytes = 2048    // of a link's target
)

// kind says what an element may do to the size of the trees.
type kind int

const (
	flatElement   kind = iota + 1 // closes those of its kind that are open, or holds nothing
	blockElement                  // may lie in others to any depth
	indentElement                 // a block that sets off each line of what it holds: the converter copies its text once more
	formatElement                 // HTML's parser opens it again in each block that begins inside it
	hiddenElement                 // holds nothing for readers
)

// maxOpen bounds how many elements of a kind are open at a time. The parser
// refuses a page in which 512 are, and adds up to three for each of ours.
var maxOpen = map[kind]int{blockElement: 48, indentElement: 8, formatElement: 4}

// kinds holds the elements that are looked at; of others only the text is kept.
var kinds = func() map[atom.Atom]kind {
	m := map[atom.Atom]kind{}
	for k, names := range map[kind][]atom.Atom{
		flatElement: {atom.P, atom.Li, atom.Dt, atom.Dd, atom.Br, atom.Hr, atom.Tr, atom.Td, atom.Th, atom.Thead, atom.Tbody, atom.Tfoot, atom.Caption},
		blockElement: {atom.Pre, atom.Table, atom.Div, atom.Section, atom.Article, atom.Header, atom.Footer, atom.Main, atom.Nav, atom.Aside, atom.Figure,
			atom.Figcaption, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6},
		indentElement: {atom.Ul, atom.Ol, atom.Dl, atom.Blockquote},
		formatElement: {atom.A, atom.B, atom.Strong, atom.I, atom.Em, atom.Code, atom.S, atom.Del},
		hiddenElement: {atom.Script, atom.Style, atom.Noscript, atom.Template, atom.Svg, atom.Iframe, atom.Object, atom.Select, atom.Canvas},
	} {
		for _, name := range names {
			m[name] = k
		}
	}
	return m
}()

// readable turns a page into Markdown and reports its title, both valid UTF-8.
// Links are made absolute with the page's address; links that lead to no web
// page keep their text only. What a page hides from readers is left out.
func readable(ctx context.Context, page io.Reader, address *url.URL) (title, text string) {
	s := &simplifier{base: address, open: map[atom.Atom]int{}, openKind: map[kind]int{}, dropped: map[atom.Atom]int{}}
	whole := s.read(page)
	title = strings.Join(strings.Fields(strings.ToValidUTF8(s.title.String(), "\uFFFD")), " ")
	markdown, err := markdownConverter().ConvertReader(&s.out, converter.WithContext(ctx))
	if err != nil {
		return title, ""
	}
	text = strings.ToValidUTF8(strings.TrimSpace(string(markdown)), "\uFFFD")
	if !whole {
		text += "\n\n[the rest of the page is left out: it is too long]"
	}
	return title, text
}

// markdownConverter makes a converter. Nothing is escaped: a model reads the
// text, and a backslash or an entity inside an identifier would be copied into
// code.
func markdownConverter() *converter.Converter {
	c := converter.NewConverter(converter.WithEscapeMode(converter.EscapeModeDisabled), converter.WithPlugins(
		base.NewBasePlugin(), strikethrough.NewStrikethroughPlugin(),
		commonmark.NewCommonmarkPlugin(commonmark.WithListEndComment(false), commonmark.WithLinkEmptyHrefBehavior(commonmark.LinkBehaviorSkip)),
		table.NewTablePlugin(table.WithHeaderPromotion(true), table.WithCellPaddingBehavior(table.CellPaddingBehaviorMinimal))))
	// The base plugin writes angle brackets as entities and has no setting
	// for it: they pass as two code points that no text may contain.
	replace := func(pairs ...string) converter.HandleTextTransformFunc {
		r := strings.NewReplacer(pairs...)
		return func(_ converter.Context, content string) string { return r.Replace(content) }
	}
	c.Register.TextTransformer(replace("<", "\uFDD0", ">", "\uFDD1"), converter.PriorityEarly)
	c.Register.TextTransformer(replace("\uFDD0", "<", "\uFDD1", ">"), converter.PriorityLate)
	return c
}

// A simplifier copies a page token by token, with the elements that have a form
// in Markdown and nothing else, within the bounds above.
type simplifier struct {
	base     *url.URL
	out      bytes.Buffer
	title    strings.Builder
	hidden   []atom.Atom       // open elements whose content is left out, outermost first
	open     map[atom.Atom]int // elements that were copied and not closed
	openKind map[kind]int      // the same, by their kind
	dropped  map[atom.Atom]int // elements that were left out for their depth and not closed
	elements int
	cells    int // of all tables
	columns  int // cells since the last row began
	inTitle  bool
}

// read copies the page until its end, a token of more than 1 MiB, or a bound,
// and tells whether it came to the end.
func (s *simplifier) read(page io.Reader) bool {
	tokens := html.NewTokenizer(page)
	tokens.SetMaxBuf(1 << 20)
	for s.out.Len() < maxReadable && s.elements < maxElements {
		switch tokens.Next() {
		case html.ErrorToken:
			return tokens.Err() == io.EOF
		case html.TextToken:
			s.text(tokens.Text())
		case html.StartTagToken:
			s.start(tokens.Token())
		case html.SelfClosingTagToken:
			if t := tokens.Token(); kinds[t.DataAtom] != hiddenElement {
				s.start(t)
			}
		case html.EndTagToken:
			name, _ := tokens.TagName()
			s.end(atom.Lookup(name))
		}
	}
	return false
}

func (s *simplifier) text(b []byte) {
	switch {
	case s.inTitle:
		s.title.Write(b[:min(len(b), max(0, 1024-s.title.Len()))])
	case len(s.hidden) == 0:
		s.out.WriteString(html.EscapeString(string(b)))
	}
}

func (s *simplifier) start(t html.Token) {
	name := t.DataAtom
	switch k := kinds[name]; {
	case k == hiddenElement:
		if len(s.hidden) < 1000 {
			s.hidden = append(s.hidden, name)
		}
	case len(s.hidden) > 0:
	case name == atom.Title:
		s.inTitle = s.title.Len() == 0
	case name == atom.Img:
		if alt := strings.Join(strings.Fields(attribute(t, "alt")), " "); alt != "" {
			s.out.WriteString(html.EscapeString("[image: " + alt + "]"))
		}
	case k == flatElement:
		s.flat(name)
	case k != 0:
		if s.openKind[k] >= maxOpen[k] {
			s.dropped[name]++
			return
		}
		s.open[name]++
		s.openKind[k]++
		s.copyStart(name, s.attributes(t))
	}
}

// flat copies the start of an element that holds no other of its kind.
func (s *simplifier) flat(name atom.Atom) {
	switch name {
	case atom.Tr:
		s.columns = 0
	case atom.Td, atom.Th:
		s.cells++
		s.columns++
		if s.cells > maxCells || s.columns > maxColumns {
			s.out.WriteByte(' ')
			return
		}
	}
	s.copyStart(name, "")
}

// attributes are those of an element that mean something in Markdown.
func (s *simplifier) attributes(t html.Token) string {
	switch t.DataAtom {
	case atom.A:
		if target := s.target(attribute(t, "href")); target != "" {
			return ` href="` + html.EscapeString(target) + `"`
		}
	case atom.Code, atom.Pre: // language-go and the like
		if class := attribute(t, "class"); class != "" && len(class) < 100 {
			return ` class="` + html.EscapeString(class) + `"`
		}
	}
	return ""
}

func (s *simplifier) copyStart(name atom.Atom, attributes string) {
	s.elements++
	s.out.WriteString("<" + name.String() + attributes + ">")
}

// target is the absolute address of a link, or empty if it leads to no web page
// or to a place on this one.
func (s *simplifier) target(href string) string {
	if href = strings.TrimSpace(href); href == "" || strings.HasPrefix(href, "#") || len(href) >= maxLinkBytes {
		return ""
	}
	u, err := s.base.Parse(href)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return ""
	}
	return u.String()
}

func (s *simplifier) end(name atom.Atom) {
	if n := len(s.hidden); n > 0 {
		if s.hidden[n-1] == name {
			s.hidden = s.hidden[:n-1]
		}
		return
	}
	switch k := kinds[name]; {
	case name == atom.Title:
		s.inTitle = false
	case k == flatElement:
		s.out.WriteString("</" + name.String() + ">")
	case s.dropped[name] > 0:
		s.dropped[name]--
	case s.open[name] > 0:
		s.open[name]--
		s.openKind[k]--
		s.out.WriteString("</" + name.String() + ">")
	}
}

// attribute is the value of a token's attribute, or empty.
func attribute(t html.Token, name string) string {
	for _, a := range t.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
