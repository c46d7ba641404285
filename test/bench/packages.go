package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// install is a list of one manager, and the same install by hand in a chroot.
type install struct {
	manager  string
	packages []string
	native   string // a shell command
}

var installs = []install{
	{"apt", []string{"figlet"}, "apt-get -q update && apt-get -y -q install figlet"},
	{"cargo", []string{"data-encoding-bin"}, "cargo install --root /usr/local data-encoding-bin"},
	{"go", []string{"golang.org/x/example/hello@latest"}, "go install golang.org/x/example/hello@latest"},
	{"npm", []string{"express@4.18.2"}, "npm install -g express@4.18.2"},
	{"pip", []string{"requests", "six==1.16.0", "idna"}, "python3 -m pip install requests six==1.16.0 idna"},
}

// builds measures each manager's install beside the same install by hand on the
// same base, in a chroot and in raw runsc: what gVisor costs and what Atoll adds.
// And what an environment costs whose layers are there.
func (b *bench) builds() ([]group, error) {
	runs := 3
	if b.quick {
		runs = 1
	}
	base, err := b.findRootfs("base")
	if err != nil {
		return nil, err
	}
	var groups []group
	for _, in := range installs {
		fmt.Fprintf(os.Stderr, "installing with %s …\n", in.manager)
		g, err := b.install(in, base, runs)
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	hit, bare := &sample{Name: "atoll: a list whose layers are there"}, &sample{Name: "atoll: the same template without packages"}
	for range 5 * runs {
		list := object{}
		for _, in := range installs {
			if in.manager != "cargo" && in.manager != "go" { // they would only be compiled once more
				list[in.manager] = in.packages
			}
		}
		if len(hit.Millis) == 0 { // once the chain has to be built
			if _, err := b.newEnvironment(object{"packages": list}); err != nil {
				return nil, err
			}
		}
		hit.add(b.newEnvironment(object{"packages": list}))
		bare.add(b.newEnvironment(object{}))
	}
	return append(groups, group{Title: "What a hit of three layers adds, new environment → first exec", Rows: []*sample{hit, bare}}), nil
}

// install measures one manager. The first environment's layer is rebuilt in each
// run: once with an empty download cache, once with a full one.
func (b *bench) install(in install, base string, runs int) (group, error) {
	cold, warm := &sample{Name: "atoll: install"}, &sample{Name: "atoll: install, downloads at hand"}
	native, raw := &sample{Name: "by hand in a chroot of the same base"}, &sample{Name: "by hand in raw runsc, the host's network"}
	hit := &sample{Name: "atoll: the layer is there"}
	config := func() object { return object{"packages": object{in.manager: in.packages}} }
	env, err := b.environment(config())
	if err != nil {
		return group{}, err
	}
	if err := b.buildEnds(env); err != nil {
		return group{}, fmt.Errorf("%s: %w", in.manager, err)
	}
	for range runs { // interleaved: all see the same machine
		if err := b.emptyDownloads(); err != nil {
			return group{}, err
		}
		cold.add(b.rebuild(env))
		native.add(b.throwaway(base, in.native, b.inChroot))
		raw.add(b.throwaway(base, in.native, b.inRawRunsc))
		warm.add(b.rebuild(env))
		start := time.Now()
		again, err := b.environment(config())
		if err == nil {
			err = b.buildEnds(again)
		}
		hit.add(time.Since(start), err)
	}
	title := fmt.Sprintf("Packages, %s: %s", in.manager, strings.Join(in.packages, " "))
	return group{Title: title, Rows: []*sample{cold, native, raw, warm, hit}}, nil
}

// rebuild times one more install of an environment's list.
func (b *bench) rebuild(env string) (time.Duration, error) {
	start := time.Now()
	if err := b.call("POST", "/atoll/v1/environments/"+env+"/build", nil, nil); err != nil {
		return 0, err
	}
	err := b.buildEnds(env)
	return time.Since(start), err
}

// buildEnds waits for the newest build of an environment.
func (b *bench) buildEnds(env string) error {
	start := time.Now()
	// Asking takes time from the build, so it is done less often the longer it lasts.
	for ; ; time.Sleep(max(time.Millisecond, time.Since(start)/50)) {
		var build struct {
			Status string
			Error  *struct{ Message string }
		}
		if err := b.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &build); err != nil {
			return err
		}
		switch {
		case build.Status == "ready":
			return nil
		case build.Status == "failed" && build.Error != nil:
			return errors.New(build.Error.Message)
		case time.Since(start) > 10*time.Minute:
			return errors.New("the build does not end")
		}
	}
}

// emptyDownloads removes what package managers downloaded from this run's cache.
func (b *bench) emptyDownloads() error {
	for _, dir := range []string{"records", "blobs"} {
		files, err := filepath.Glob(filepath.Join(b.cache, "downloads", dir, "*"))
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}
