package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeepCheck(t *testing.T) {
	t.Parallel()
	cfg := valid(t)
	cfg.Data = t.TempDir()
	check := deepCheck(cfg)
	if v, words := check.perform(t.Context()); v != skipped || words != "no package layers" {
		t.Errorf("without layers: %s %q", v, words)
	}
	key := strings.Repeat("a", 64)
	if err := os.MkdirAll(filepath.Join(cfg.Data, layersDir, key, "tree"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Data, layersDir, key, "manifest.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, words := check.perform(t.Context()); v != failed || !strings.Contains(words, key+": the manifest is damaged") {
		t.Errorf("a damaged layer: %s %q", v, words)
	}
	if check.Remedy == "" {
		t.Error("nothing says what to do")
	}
}
