package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// wakes measures a command in a hibernated session, beside one in a new session,
// on a server of its own whose sandboxes hibernate soon. Each holds a Python
// process with 8 MiB, which has to go on.
func (b *bench) wakes() ([]group, error) {
	w := &bench{dir: filepath.Join(b.dir, "wake"), n: b.n, atoll: b.atoll}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		return nil, err
	}
	defer w.close()
	if err := w.start("sessions: {hibernate_after: 4s}\n"); err != nil {
		return nil, err
	}
	if err := w.resources(); err != nil {
		return nil, err
	}
	sessions, rounds := 10, max(1, b.n/10)
	if b.quick {
		sessions = 4
	}
	ids := make([]string, sessions)
	for i := range ids {
		id, _, err := w.firstExec(w.slim)
		if err != nil {
			return nil, err
		}
		ids[i] = id
		const program = `setsid python3 -c 'import os, time; kept = os.urandom(8 << 20); open("/tmp/up", "w"); time.sleep(1e6)' </dev/null >/dev/null 2>&1 &
while [ ! -e /tmp/up ]; do sleep 0.01; done`
		if err := w.call("POST", "/atoll/v1/sessions/"+id+"/exec?stream=false", object{"shell": program}, nil); err != nil {
			return nil, err
		}
	}
	ours := &sample{Name: "atoll: exec in a hibernated session"}
	fresh := &sample{Name: "atoll: session create → first exec"}
	for range rounds {
		if err := w.allHibernate(sessions); err != nil {
			return nil, err
		}
		for _, id := range ids {
			t := time.Now()
			err := w.echo(id)
			ours.add(time.Since(t), err)
		}
		for range sessions {
			id, d, err := w.firstExec(w.slim)
			fresh.add(d, err)
			if id != "" {
				if err := w.call("DELETE", "/v1/sessions/"+id, nil, nil); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := w.allHibernate(sessions); err != nil {
		return nil, err
	}
	image, err := w.images()
	if err != nil {
		return nil, err
	}
	title := fmt.Sprintf("Waking, output of echo; an image is %.1f MB on disk, of which 8.4 are the program's", float64(image)/1e6/float64(sessions))
	return []group{{Title: title, Rows: []*sample{ours, fresh}}}, nil
}

// allHibernate waits until n sandboxes do.
func (b *bench) allHibernate(n int) error {
	want := fmt.Sprintf("atoll_sandboxes{state=\"hibernated\"} %d\n", n)
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		resp, err := b.http.Get(b.url + "/metrics")
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if strings.Contains(string(text), want) {
			return nil
		}
	}
	return fmt.Errorf("%d sandboxes do not hibernate within two minutes", n)
}

// images adds up what all hibernated sandboxes' images take on the disk.
func (b *bench) images() (total int64, err error) {
	dirs, err := filepath.Glob(filepath.Join(b.dir, "data", "sandboxes", "sandboxes", "*", "checkpoint"))
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			info, err := entry.Info()
			if err == nil {
				total += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}
