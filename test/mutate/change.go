package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// change is one change of one file.
type change struct {
	file       string // from the root of the repository, with slashes
	line       int    // where it is, from 1
	start, end int    // the bytes that are replaced
	text       string // what stands there instead
	was        string // what stood there, on one line
}

func (c change) String() string {
	now := c.text
	if now == "" {
		now = "nothing"
	}
	return fmt.Sprintf("%s:%d: %s → %s", c.file, c.line, c.was, oneLine(now))
}

// apply returns the file with the change made.
func (c change) apply() ([]byte, error) {
	source, err := os.ReadFile(filepath.FromSlash(c.file))
	if err != nil {
		return nil, err
	}
	return slices.Concat(source[:c.start], []byte(c.text), source[c.end:]), nil
}

// changesOf finds every change that can be made of a package's own files, in the
// order of the files and of the places in them.
func changesOf(dir string) ([]change, error) {
	names, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*.go"))
	if err != nil {
		return nil, err
	}
	var out []change
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		found, err := changesIn(path.Join(dir, filepath.Base(name)), source)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// changesIn finds the changes that can be made of one file.
func changesIn(file string, source []byte) ([]change, error) {
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var out []change
	add := func(from, to token.Pos, text string) {
		start, end := files.Position(from), files.Position(to)
		out = append(out, change{file, start.Line, start.Offset, end.Offset, text, oneLine(string(source[start.Offset:end.Offset]))})
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.BinaryExpr:
			if other, ok := swapped()[n.Op]; ok {
				add(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), other.String())
			}
		case *ast.IfStmt:
			condition := string(source[files.Position(n.Cond.Pos()).Offset:files.Position(n.Cond.End()).Offset])
			add(n.Cond.Pos(), n.Cond.End(), "false && ("+condition+")")
			if condition != "err != nil" { // every test sees that
				add(n.Cond.Pos(), n.Cond.End(), "true || ("+condition+")")
			}
		case *ast.ExprStmt:
			if _, ok := n.X.(*ast.CallExpr); ok {
				add(n.Pos(), n.End(), "")
			}
		case *ast.DeferStmt:
			add(n.Pos(), n.End(), "")
		case *ast.IncDecStmt:
			add(n.Pos(), n.End(), "")
		case *ast.BranchStmt:
			if other, ok := swapped()[n.Tok]; ok && n.Label == nil {
				add(n.Pos(), n.End(), other.String())
			}
		case *ast.BasicLit:
			if text, ok := largerNumber(n); ok {
				add(n.Pos(), n.End(), text)
			}
		case *ast.ReturnStmt:
			if len(n.Results) == 0 {
				break
			}
			if last, ok := n.Results[len(n.Results)-1].(*ast.Ident); ok && last.Name == "err" {
				add(last.Pos(), last.End(), "nil")
			}
		}
		return true
	})
	return out, nil
}

// swapped are the words and signs that are put in each other's place.
func swapped() map[token.Token]token.Token {
	return map[token.Token]token.Token{
		token.EQL: token.NEQ, token.NEQ: token.EQL,
		token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
		token.LAND: token.LOR, token.LOR: token.LAND,
		token.ADD: token.SUB, token.SUB: token.ADD, token.MUL: token.QUO, token.QUO: token.MUL,
		token.BREAK: token.CONTINUE, token.CONTINUE: token.BREAK,
	}
}

// largerNumber makes a bound so large that it bounds nothing, and of none and one
// the next number.
func largerNumber(n *ast.BasicLit) (text string, ok bool) {
	value, err := strconv.ParseInt(n.Value, 0, 64)
	if n.Kind != token.INT || err != nil {
		return "", false
	}
	if value < 2 {
		return strconv.FormatInt(value+1, 10), true
	}
	return n.Value + "*1000", true
}

// oneLine shortens a piece of source to what fits in a line of a report.
func oneLine(text string) string {
	const most = 60
	out := []rune(strings.Join(strings.Fields(text), " "))
	if len(out) > most {
		return string(out[:most-1]) + "…"
	}
	return string(out)
}
