package image

import (
	"context"
	"fmt"
	"os"
	"time"
)

// keepingTime bounds how long downloads of one install are read and copied: the
// builder stays until then.
const keepingTime = 2 * time.Minute

// origin says where the job's builder stands.
func (j *job) origin() origin {
	below := noLayer
	if j.step.Parent != "" {
		below = j.step.Parent
	}
	return origin{Base: j.base.Digest, Below: below, Manager: j.step.Manager, Names: cacheNames(j.step.Manager, j.specs)}
}

// offered gathers what the download cache has for the list. Without a cache, or
// with one that fails, everything is downloaded: nothing else changes.
func (j *job) offered() *view {
	if j.b.cfg.Downloads == nil || j.plain {
		return nil
	}
	v, err := j.b.cfg.Downloads.view(j.origin())
	if err != nil {
		j.b.cfg.Logger.Warn("the download cache is left out", "key", j.step.Key, "error", err)
		return nil
	}
	if v != nil {
		j.say(fmt.Sprintf("%d downloads of earlier builds are at hand, %.1f MB", len(v.files), float64(v.bytes)/1e6))
	}
	return v
}

func (j *job) closeView(v *view) {
	if err := v.close(); err != nil {
		j.b.cfg.Logger.Error("removing offered downloads", "key", j.step.Key, "error", err)
	}
}

// checkDownloads looks for a download in the tree that should not have been used.
func (j *job) checkDownloads(v *view, tree string) error {
	check := recipes[j.step.Manager].check
	if v == nil || check == nil {
		return nil
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return fmt.Errorf("reading what was written: %w", err)
	}
	defer root.Close()
	return check(root, v)
}

// keepDownloads puts what the install downloaded into the cache. The layer does
// not depend on it.
func (j *job) keepDownloads(in *install, tree string) {
	ctx, cancel := context.WithTimeout(j.b.life, keepingTime)
	defer cancel()
	d, find := j.b.cfg.Downloads, recipes[j.step.Manager].wanted
	if d == nil || find == nil {
		return
	}
	root, err := os.OpenRoot(tree)
	if err == nil {
		want := find(&in.witness, root)
		root.Close()
		err = d.take(ctx, j.origin(), tree, in.offered, want)
	}
	if err != nil {
		j.b.cfg.Logger.Warn("downloads are not kept", "key", j.step.Key, "error", err)
	}
}
