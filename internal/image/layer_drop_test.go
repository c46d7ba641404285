package image

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A layer that is dropped goes with what stands on it and nothing else; not
// while a sandbox has one of them mounted or a build holds one.
func TestDrop(t *testing.T) {
	needRoot(t)
	s, err := OpenStore(t.TempDir())
	must(t, err)
	upper := t.TempDir()
	write(t, filepath.Join(upper, "usr/x"), "x", 0o644)
	parents := map[string]string{"low": "", "mid": "low", "top": "mid", "side": "low", "other": ""}
	for _, name := range []string{"low", "mid", "top", "side", "other"} {
		l := &Layer{Key: hashFields(name), Family: name, CreatedAt: time.Now()}
		if parents[name] != "" {
			l.Parent = hashFields(parents[name])
		}
		must(t, s.commit(t.Context(), l, upper, nil, nil))
	}
	all := func() int {
		u, err := s.Usage()
		must(t, err)
		return len(u)
	}
	var busy *InUseError
	mount := t.TempDir()
	must(t, unix.Mount("overlay", mount, "overlay", unix.MS_RDONLY, "lowerdir="+filepath.Join(s.dir, hashFields("top"), "tree")+":/usr"))
	gone, err := s.Drop(hashFields("mid"))
	must(t, unix.Unmount(mount, 0))
	if !errors.As(err, &busy) || busy.Key != hashFields("top") || !slices.Equal(busy.Mounts, []string{mount}) || len(gone.Keys) > 0 || all() != 5 {
		t.Errorf("mounted: %+v, %v, %d layers", gone, err, all())
	}
	_, release, err := s.hold([]string{hashFields("side")})
	must(t, err)
	if _, err := s.Drop(hashFields("low")); !errors.As(err, &busy) || !busy.Build || all() != 5 {
		t.Errorf("held: %v, %d layers", err, all())
	}
	release()
	gone, err = s.Drop(hashFields("mid"))
	if err != nil || !slices.Equal(gone.Keys, []string{hashFields("top"), hashFields("mid")}) || gone.Bytes == 0 || all() != 3 {
		t.Errorf("dropped %+v, %v, %d layers", gone, err, all())
	}
	for _, key := range []string{hashFields("mid"), strings.Repeat("f", 64), "../other", ""} {
		if _, err := s.Drop(key); !errors.Is(err, ErrNoLayer) {
			t.Errorf("%q: %v", key, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, trashName)); err != nil || len(left) > 0 {
		t.Errorf("the trash has %v, %v", left, err)
	}
	if s.newest("mid") != nil || s.newest("low") == nil {
		t.Error("the families are not those of the layers that are left")
	}
}
