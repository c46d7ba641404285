package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// starts measures session create to first output, beside run of the peers.
func (b *bench) starts() ([]group, error) {
	ours := &sample{Name: "atoll: session create → first exec"}
	g := group{Title: "Cold start, output of echo on the slim root filesystem", Rows: []*sample{ours}}
	peers := b.peers()
	rows := map[string]*sample{}
	for _, p := range peers {
		rows[p.name] = &sample{Name: p.name + " run", Note: p.missing}
		g.Rows = append(g.Rows, rows[p.name])
	}
	for range b.n { // interleaved: all see the same machine
		id, d, err := b.firstExec(b.slim)
		ours.add(d, err)
		if id != "" {
			if err := b.call("DELETE", "/v1/sessions/"+id, nil, nil); err != nil {
				return nil, err
			}
		}
		for _, p := range peers {
			if p.missing == "" {
				t := time.Now()
				err := p.run()
				rows[p.name].add(time.Since(t), err)
			}
		}
	}
	return []group{g}, nil
}

// execs measures one more command in a running sandbox.
func (b *bench) execs() ([]group, error) {
	id, _, err := b.firstExec(b.slim)
	if err != nil {
		return nil, err
	}
	ours := &sample{Name: "atoll: exec over HTTP"}
	g := group{Title: "Exec of /bin/echo in a running sandbox", Rows: []*sample{ours}}
	peers := b.peers()
	rows := map[string]*sample{}
	for i, p := range peers {
		rows[p.name] = &sample{Name: p.name + " exec", Note: p.missing}
		g.Rows = append(g.Rows, rows[p.name])
		if p.missing != "" {
			continue
		}
		if err := p.up(); err != nil {
			rows[p.name].Note = err.Error()
			peers[i].missing = err.Error()
			continue
		}
		defer p.down()
	}
	for range b.n {
		t := time.Now()
		err := b.echo(id)
		ours.add(time.Since(t), err)
		for _, p := range peers {
			if p.missing == "" {
				t := time.Now()
				err := p.exec()
				rows[p.name].add(time.Since(t), err)
			}
		}
	}
	return []group{g}, b.call("DELETE", "/v1/sessions/"+id, nil, nil)
}

// newEnvironment times the creation of an environment and of its first session
// until that has run a command.
func (b *bench) newEnvironment(config object) (time.Duration, error) {
	start := time.Now()
	env, err := b.environment(config)
	if err != nil {
		return 0, err
	}
	id, _, err := b.firstExec(env)
	d := time.Since(start)
	if id != "" {
		if err := b.call("DELETE", "/v1/sessions/"+id, nil, nil); err != nil {
			return 0, err
		}
	}
	return d, err
}

func tail(b []byte) string {
	s := strings.TrimSpace(string(b))
	return s[max(0, len(s)-300):]
}

// api measures the environments API itself.
func (b *bench) api() ([]group, error) {
	d := 3 * time.Second
	if b.quick {
		d = time.Second
	}
	creates := group{Title: "Durable environment creates (self_hosted, so that nothing is built)"}
	reads := group{Title: "Environment reads by id"}
	create := func() error {
		return b.call("POST", "/v1/environments", object{
			"name": fmt.Sprintf("load-%d-%d", os.Getpid(), counter.Add(1)), "config": object{"type": "self_hosted"}}, nil)
	}
	lists := group{Title: "List of 20 environments"}
	list := func(name string) *sample {
		s := &sample{Name: name}
		for range max(20, b.n) {
			t := time.Now()
			err := b.call("GET", "/v1/environments?limit=20", nil, nil)
			s.add(time.Since(t), err)
		}
		return s
	}
	for counter.Load() < 100 {
		if err := create(); err != nil {
			return nil, err
		}
	}
	lists.Rows = append(lists.Rows, list("about 100 rows"))
	for _, clients := range []int{1, 8, 32} {
		creates.Rows = append(creates.Rows, load(fmt.Sprintf("%d clients", clients), clients, d, create))
		reads.Rows = append(reads.Rows, load(fmt.Sprintf("%d clients", clients), clients, d, func() error {
			return b.call("GET", "/v1/environments/"+b.slim, nil, nil)
		}))
	}
	rows := int64(100_000)
	if b.quick {
		rows = 10_000
	}
	for counter.Load() < rows {
		if s := load("", 32, time.Second, create); s.Failures > 0 {
			return nil, fmt.Errorf("filling the table: %s", s.Note)
		}
	}
	lists.Rows = append(lists.Rows, list(fmt.Sprintf("%d rows", counter.Load())))
	return []group{creates, reads, lists}, nil
}
