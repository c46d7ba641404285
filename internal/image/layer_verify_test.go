package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestVerifyLayers reads what was committed again, and notices each change.
func TestVerifyLayers(t *testing.T) {
	needRoot(t)
	tests := map[string]func(tree string) error{
		"":        func(string) error { return nil },
		"content": func(tree string) error { return os.WriteFile(tree+"/usr/bin/tool", []byte("lool"), 0o755) },
		"mode":    func(tree string) error { return unix.Chmod(tree+"/usr/bin/setuid", 0o755) },
		"owner":   func(tree string) error { return os.Chown(tree+"/var/log/service", 1, 1) },
		"link": func(tree string) error {
			return errors.Join(os.Remove(tree+"/usr/bin/link"), os.Symlink("/x", tree+"/usr/bin/link"))
		},
		"hard link": func(tree string) error {
			return errors.Join(os.Remove(tree+"/usr/bin/same"), os.WriteFile(tree+"/usr/bin/same", []byte("tool"), 0o755))
		},
		"xattr":     func(tree string) error { return unix.Removexattr(tree+"/usr/bin/tool", "security.capability") },
		"whiteout":  func(tree string) error { return os.Remove(tree + "/usr/bin/gone") },
		"new":       func(tree string) error { return os.Mkdir(tree+"/new", 0o755) },
		"stripped":  func(tree string) error { return os.Mkdir(tree+"/tmp", 0o755) },
		"log":       func(tree string) error { return os.WriteFile(filepath.Dir(tree)+"/log", []byte("other"), 0o600) },
		"manifest":  func(tree string) error { return os.Truncate(filepath.Dir(tree)+"/manifest.json", 10) },
		"no tree":   func(tree string) error { return os.RemoveAll(tree) },
		"no layer?": func(tree string) error { return os.RemoveAll(filepath.Dir(tree)) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upper, lower := upperTree(t)
			dir := t.TempDir()
			s, err := OpenStore(dir)
			must(t, err)
			low := &Layer{Key: strings.Repeat("a", 64), Family: "f", Versions: []PackageVersion{{Name: "tool", Version: "1"}}, CreatedAt: time.Now()}
			must(t, s.commit(t.Context(), low, upper, []string{lower}, []byte("log")))
			high := &Layer{Key: strings.Repeat("b", 64), Parent: low.Key, Family: "g", CreatedAt: time.Now()}
			must(t, s.commit(t.Context(), high, t.TempDir(), nil, nil))
			must(t, change(low.Dir))
			got, err := VerifyLayers(t.Context(), dir)
			must(t, err)
			switch name {
			case "":
				if got.Layers != 2 || len(got.Damaged) != 0 || got.Bytes != low.SizeBytes {
					t.Errorf("an untouched store: %+v", got)
				}
			case "no layer?":
				if got.Layers != 0 || got.Damaged[high.Key] == nil {
					t.Errorf("a layer without the one below: %+v", got)
				}
			default:
				if got.Layers != 1 || got.Damaged[low.Key] == nil {
					t.Errorf("not noticed: %+v", got)
				}
			}
		})
	}
	if got, err := VerifyLayers(t.Context(), filepath.Join(t.TempDir(), "none")); err != nil || got.Layers != 0 {
		t.Errorf("no store: %+v, %v", got, err)
	}
}
