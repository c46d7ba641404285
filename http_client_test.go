package atoll_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// httpMakers says in which files what may be made. Redirects are followed by
// http.Client, so there is one that makes them; a transport follows none, but
// one that carries credentials belongs to a client of that constructor.
var httpMakers = map[string][]string{
	"http.Client":    {"internal/outbound/outbound.go"},
	"http.Transport": {"internal/outbound/outbound.go", "internal/agent/toolset/web.go" /* behind the egress guard */, "internal/egress/httpgate.go" /* a sandbox's own requests, passed on */},
}

// ownClients are what libraries make HTTP clients of their own in, and the field
// that gives them ours.
var ownClients = map[string]string{
	"mcp.StreamableClientTransport": "HTTPClient",
	"mcp.SSEClientTransport":        "HTTPClient",
	"websocket.DialOptions":         "HTTPClient",
}

// givenClients are calls that use a client of the library's own unless another
// call among their arguments gives them one.
var givenClients = map[string]string{
	"anthropic.NewClient": "option.WithHTTPClient",
	"remote.Image":        "remote.WithTransport",
	"remote.Get":          "remote.WithTransport",
	"remote.Index":        "remote.WithTransport",
	"remote.Layer":        "remote.WithTransport",
	"remote.Head":         "remote.WithTransport",
}

// TestHTTPClients parses every Go file that is part of the program. It fails
// where a client could follow a redirect with a key or a conversation.
func TestHTTPClients(t *testing.T) {
	t.Parallel()
	read := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			// Under test/ and in packages ending in "test" are programs of the tests.
			if name != "." && (strings.HasPrefix(d.Name(), ".") || name == "test" || strings.HasSuffix(d.Name(), "test") || slices.Contains([]string{"testdata", "node_modules", "bin"}, d.Name())) {
				return fs.SkipDir
			}
			return nil
		case path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			return err
		}
		read++
		for _, f := range foundClients(files, filepath.ToSlash(name), file) {
			t.Error(f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if read < 100 {
		t.Errorf("only %d files were read", read)
	}
}

// foundClients tells what is wrong in one file.
func foundClients(files *token.FileSet, name string, file *ast.File) []string {
	var out []string
	say := func(n ast.Node, text string) { out = append(out, files.Position(n.Pos()).String()+": "+text) }
	names := importNames(file)
	made := func(n ast.Node, typ ast.Expr) {
		switch of := typ.(type) { // their elements may leave their type out
		case *ast.ArrayType:
			typ = of.Elt
		case *ast.MapType:
			typ = of.Value
		}
		q := qualified(names, typ)
		if allowed, ok := httpMakers[q]; ok && !slices.Contains(allowed, name) {
			say(n, q+" is made here; make clients with outbound.New")
		}
	}
	given := map[string]bool{} // calls in this file
	ast.Inspect(file, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			given[qualified(names, c.Fun)] = true
		}
		return true
	})
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			made(n, n.Type)
			if field := ownClients[qualified(names, n.Type)]; field != "" && !hasField(n, field) {
				say(n, qualified(names, n.Type)+" without "+field+" uses a client of its own")
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "new" && len(n.Args) == 1 {
				made(n, n.Args[0])
			}
			if q := qualified(names, n.Fun); givenClients[q] != "" && !given[givenClients[q]] {
				say(n, q+" without "+givenClients[q]+" uses a client of its own")
			}
		case *ast.ValueSpec: // var c http.Client
			if n.Type != nil {
				made(n, n.Type)
			}
		case *ast.Field: // a struct's field that is a client, not a pointer to one
			made(n, n.Type)
		case *ast.SelectorExpr:
			switch q := qualified(names, n); q {
			case "http.DefaultClient", "http.DefaultTransport", "http.Get", "http.Head", "http.Post", "http.PostForm":
				say(n, q+" follows redirects with everything; make clients with outbound.New")
			}
		}
		return true
	})
	return out
}

// importNames is what the packages of interest are called in a file: local name
// → the name that the tables use.
func importNames(file *ast.File) map[string]string {
	known := map[string]string{"net/http": "http", "github.com/modelcontextprotocol/go-sdk/mcp": "mcp", "github.com/coder/websocket": "websocket",
		"github.com/anthropics/anthropic-sdk-go/v2": "anthropic", "github.com/anthropics/anthropic-sdk-go/v2/option": "option",
		"github.com/anthropics/anthropic-sdk-go": "anthropic", "github.com/anthropics/anthropic-sdk-go/option": "option",
		"github.com/google/go-containerregistry/pkg/v1/remote": "remote"}
	out := map[string]string{}
	for _, spec := range file.Imports {
		name := known[strings.Trim(spec.Path.Value, `"`)]
		switch {
		case name == "":
		case spec.Name != nil:
			out[spec.Name.Name] = name
		default:
			out[name] = name
		}
	}
	return out
}

// qualified is "package.Name" of an expression, with the tables' name of the
// package; empty for what is none.
func qualified(names map[string]string, e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	p, ok := s.X.(*ast.Ident)
	if !ok || names[p.Name] == "" {
		return ""
	}
	return names[p.Name] + "." + s.Sel.Name
}

func hasField(c *ast.CompositeLit, name string) bool {
	return slices.ContainsFunc(c.Elts, func(e ast.Expr) bool {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			return false
		}
		id, ok := kv.Key.(*ast.Ident)
		return ok && id.Name == name
	})
}

// TestHTTPClientsAreFound holds the finder to what it has to find.
func TestHTTPClientsAreFound(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]int{
		`var _ = &http.Client{}`:                             1,
		`var _ = []*http.Client{new(http.Client)}`:           1,
		`var _ = []http.Client{{}}`:                          1,
		`var c http.Client`:                                  1,
		`type s struct{ c http.Client }`:                     1,
		`type s struct{ c *http.Client }`:                    0,
		`var c *http.Client`:                                 0,
		`var _ = http.DefaultClient`:                         1,
		`var _ = http.DefaultTransport`:                      1,
		`var get = http.Get`:                                 1,
		`func f() { http.PostForm("", nil) }`:                1,
		`var _ = &http.Transport{}`:                          1,
		`var _ = http.NewRequest`:                            0,
		`var _ = m.StreamableClientTransport{Endpoint: a}`:   1,
		`var _ = m.StreamableClientTransport{HTTPClient: a}`: 0,
		`var _ = remote.Image(ref)`:                          1,
		`var _ = remote.Image(ref, remote.WithTransport(t))`: 0,
	} {
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, "x.go", `package x
import ("net/http"; m "github.com/modelcontextprotocol/go-sdk/mcp"; "github.com/google/go-containerregistry/pkg/v1/remote")
`+body, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := foundClients(files, "x.go", file); len(got) != want {
			t.Errorf("%s: found %q, want %d", body, got, want)
		}
	}
}
