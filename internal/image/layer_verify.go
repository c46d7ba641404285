package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Verified is what VerifyLayers found.
type Verified struct {
	Layers int   // complete layers that are as they were committed
	Bytes  int64 // of file contents that were read
	// Damaged are the keys of layers whose tree, log or manifest is not what
	// was committed. Removing a layer's directory while nothing uses it has it
	// built again.
	Damaged map[string]error
}

// VerifyLayers reads every layer in a store's directory again and compares it
// with the digests in its manifest. It changes nothing and may run beside a
// server: a layer that is removed meanwhile is passed over. An error means that
// the directory could not be read.
func VerifyLayers(ctx context.Context, dir string) (Verified, error) {
	out := Verified{Damaged: map[string]error{}}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("reading layer store: %w", err)
	}
	keys := map[string]bool{}
	var parents []*Layer
	for _, e := range entries {
		if !layerKey.MatchString(e.Name()) {
			continue
		}
		l, err := verifyLayer(ctx, filepath.Join(dir, e.Name()))
		switch {
		case ctx.Err() != nil:
			return out, ctx.Err()
		case errors.Is(err, fs.ErrNotExist) && !exists(filepath.Join(dir, e.Name())):
			continue
		case err != nil:
			out.Damaged[e.Name()] = err
			continue
		}
		out.Layers, out.Bytes, keys[l.Key] = out.Layers+1, out.Bytes+l.SizeBytes, true
		parents = append(parents, l)
	}
	for _, l := range parents {
		if l.Parent != "" && !keys[l.Parent] && out.Damaged[l.Parent] == nil && exists(filepath.Join(dir, l.Key)) {
			out.Damaged[l.Key] = fmt.Errorf("the layer below, %.12s, is not there", l.Parent)
			out.Layers--
		}
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func verifyLayer(ctx context.Context, dir string) (*Layer, error) {
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	var l Layer
	if err := json.Unmarshal(text, &l); err != nil || l.Key != filepath.Base(dir) {
		return nil, errors.New("the manifest is damaged")
	}
	digest, err := hashTree(ctx, filepath.Join(dir, "tree"), l.DigestFormat)
	if err != nil {
		return nil, err
	}
	if digest != l.Digest {
		return nil, errors.New("the files are not those that were committed")
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(log); hex.EncodeToString(sum[:]) != l.LogDigest {
		return nil, errors.New("the log is not the one that was committed")
	}
	return &l, nil
}
