package image

import (
	"archive/zip"
	"bytes"
	"fmt"
	"net/http"
	"strings"
)

// serveWheel is a package index with one distribution, "tiny".
func serveWheel(w http.ResponseWriter, r *http.Request) {
	const file = "tiny-1.0-py3-none-any.whl"
	switch {
	case strings.HasSuffix(r.URL.Path, file):
		w.Write(wheel())
	case strings.HasSuffix(r.URL.Path, "/tiny/"):
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!DOCTYPE html><html><body><a href="/files/%s">%s</a></body></html>`, file, file)
	default:
		http.NotFound(w, r)
	}
}

func wheel() []byte {
	return zipOf([][2]string{
		{"tiny.py", "word = 'hello'\n"},
		{"tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"},
		{"tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"tiny-1.0.dist-info/RECORD", "tiny.py,,\ntiny-1.0.dist-info/METADATA,,\ntiny-1.0.dist-info/WHEEL,,\ntiny-1.0.dist-info/RECORD,,\n"},
	})
}

// zipOf is a zip of names and contents.
func zipOf(files [][2]string) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, _ := z.Create(f[0])
		w.Write([]byte(f[1]))
	}
	z.Close()
	return b.Bytes()
}
