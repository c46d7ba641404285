package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
)

// egressConfig is the server's configuration: the bench's upstream is on an
// address that an exemption opens.
func (b *bench) egressConfig() string {
	return fmt.Sprintf("egress:\n  hosts:\n    %s: [%s]\n  exempt:\n    - {host: %s, cidr: %s/32, ports: [%d, %d]}\n",
		upstreamName, b.upstreamAt, upstreamName, b.upstreamAt, rawPort, tlsPort)
}

// egress measures what goes through the gateway beside the same without it.
func (b *bench) egress() ([]group, error) {
	local, err := newUpstream(b.upstreamAt)
	if err != nil {
		return nil, err
	}
	defer local.close()
	direct, err := newLink()
	if err != nil {
		return nil, err
	}
	defer direct.close()
	if err := b.copyProbe(); err != nil {
		return nil, err
	}
	limited, err := b.probeSessions(20, object{"type": "limited", "allowed_hosts": []string{upstreamName}})
	if err != nil {
		return nil, err
	}
	open, err := b.probeSessions(5, object{"type": "unrestricted"})
	if err != nil {
		return nil, err
	}
	defer func() { b.deleteSessions(append(limited, open...)) }()
	own, err := b.newOwnGateway()
	if err != nil {
		return nil, err
	}
	defer own.close()
	through, err := own.open(egress.Spec{Mode: egress.ModeUnrestricted})
	if err != nil {
		return nil, err
	}
	checked, err := own.open(egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{upstreamName}})
	if err != nil {
		return nil, err
	}
	boxed, bare := b.inRunsc("gVisor → server"), b.inNamespace("process → server", "-", directAddr, direct.near)
	var groups []group
	groups = append(groups, b.setups(
		[]path{b.inSession("gVisor → gateway → server", limited[1]), boxed, checked, bare},
		[]path{b.inSession("gVisor → gateway → server", open[1]), boxed, through, bare})...)
	groups = append(groups, b.transfers([]path{b.inSession("gVisor → gateway → server", open[1]), boxed, through, bare})...)
	groups = append(groups, b.decisions(), b.thousand(limited, bare), b.fair(open[1:]))
	victim, flooder := b.inSession("", limited[2]), b.inSession("", open[0])
	boxes, err := b.floods("one sandbox", victim, []attack{
		{"two busy loops, no network", "spin", flooder, 0},
		{"connections, closed at once", "flood-connect", flooder, rawPort},
		{"half a TLS hello, held", "flood-hello", flooder, tlsPort},
		{"DNS questions, names nobody has", "flood-dns", flooder, 0},
		{"UDP datagrams, 1200 bytes", "flood-udp", flooder, 0},
	})
	if err != nil {
		return nil, err
	}
	processes, err := b.floods("a process in one network", checked, []attack{
		{"two busy loops, no network", "spin", through, 0},
		{"DNS questions, names nobody has", "flood-dns", through, 0},
		{"UDP datagrams, 1200 bytes", "flood-udp", through, 0},
		{"SYN packets by raw socket", "flood-syn", through, tlsPort},
	})
	return append(groups, boxes, processes), err
}

// copyProbe builds this program so that it runs anywhere, and puts it where the
// peers' root file system has it.
func (b *bench) copyProbe() error {
	top, err := root()
	if err != nil {
		return err
	}
	b.probe = filepath.Join(b.dir, "probe")
	if err := goBuild(top, "build", "-ldflags", "-s -w", "-o", b.probe, "./test/bench"); err != nil {
		return err
	}
	raw, err := os.ReadFile(b.probe)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.shared, "tmp", "probe"), raw, 0o755)
}

// probeSessions makes sessions that have the probe.
func (b *bench) probeSessions(n int, networking object) ([]string, error) {
	env, err := b.environment(object{"base_template": "slim", "networking": networking})
	if err != nil {
		return nil, err
	}
	var ids []string
	for range n {
		id, _, err := b.firstExec(env)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
		if err := b.putProbe(id); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (b *bench) putProbe(session string) error {
	f, err := os.Open(b.probe)
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := http.NewRequest("PUT", b.url+"/atoll/v1/sessions/"+session+"/files?mode=0755&path=/tmp/probe", f)
	if err != nil {
		return err
	}
	req.Header.Set("x-api-key", key)
	resp, err := b.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return fmt.Errorf("putting the probe: %s", resp.Status)
	}
	return nil
}

func (b *bench) deleteSessions(ids []string) {
	for _, id := range ids {
		if err := b.call("DELETE", "/v1/sessions/"+id, nil, nil); err != nil {
			fmt.Fprintln(os.Stderr, "bench: deleting a session:", err)
		}
	}
}

// rounds runs an operation on each path in turn, several times over, so that
// all see the same machine.
func (b *bench) rounds(title, operation string, port, n, rounds int, paths []path) group {
	g := group{Title: title}
	for _, p := range paths {
		g.Rows = append(g.Rows, &sample{Name: p.name})
	}
	for range rounds {
		for i, p := range paths {
			g.Rows[i].take(p.probe(operation, port, n))
		}
	}
	// In pairs: with the gateway, without it.
	for i := 1; i < len(g.Rows); i += 2 {
		g.Rows[i].Against = g.Rows[i-1]
	}
	return g
}

func (b *bench) setups(checked, raw []path) []group {
	n, rounds := 100, 5
	if b.quick {
		n, rounds = 40, 1
	}
	return []group{
		b.rounds("Connection set-up, TLS, until a byte is echoed (limited: the server name is checked)", "tls", tlsPort, n, rounds, checked),
		b.rounds("Connection set-up, TCP, until the server's first byte (unrestricted)", "raw", rawPort, n, rounds, raw),
	}
}

func (b *bench) transfers(paths []path) []group {
	size, rounds := 256, 5
	if b.quick {
		size, rounds = 64, 1
	}
	return []group{
		b.rounds(fmt.Sprintf("Download of %d MiB", size), "down", rawPort, size, rounds, paths),
		b.rounds(fmt.Sprintf("Upload of %d MiB", size), "up", rawPort, size, rounds, paths),
	}
}

// decisions times what a policy makes of a name, without any network.
func (b *bench) decisions() group {
	g := group{Title: "A policy's decision about a name", Unit: "µs"}
	for _, entries := range []int{10, 10_000} {
		s := &sample{Name: fmt.Sprintf("%d entries", entries)}
		g.Rows = append(g.Rows, s)
		spec := egress.Spec{Mode: egress.ModeLimited}
		for i := range entries / 2 {
			spec.AllowedHosts = append(spec.AllowedHosts, fmt.Sprintf("h%d.example.com", i), fmt.Sprintf("*.w%d.example.org", i))
		}
		p, err := egress.Compile(spec)
		if err != nil {
			s.Failures, s.Note = 1, err.Error()
			continue
		}
		for i := range 20_000 {
			host, err := egress.Canonical(fmt.Sprintf("a.b.c.w%d.example.org", i%entries)) // the upper half is refused
			if err != nil {
				s.Failures, s.Note = 1, err.Error()
				break
			}
			start := time.Now()
			p.Allows(egress.SourceSandbox, host, 443)
			s.Millis = append(s.Millis, float64(time.Since(start).Nanoseconds())/1000)
		}
	}
	return g
}

// together runs one operation on several paths at the same time.
func together(operation string, port, n int, paths []path) []*sample {
	rows := make([]*sample, len(paths))
	var running sync.WaitGroup
	for i, p := range paths {
		rows[i] = &sample{Name: p.name}
		running.Go(func() { rows[i].take(p.probe(operation, port, n)) })
	}
	running.Wait()
	return rows
}

// thousand has twenty sandboxes open fifty connections each, all at once.
func (b *bench) thousand(sessions []string, bare path) group {
	const each = 50
	var paths []path
	for _, id := range sessions {
		paths = append(paths, b.inSession(id, id))
	}
	all := &sample{Name: fmt.Sprintf("%d sandboxes, %d connections each", len(paths), each)}
	for _, s := range together("many", tlsPort, each, paths) {
		all.Millis, all.Failures = append(all.Millis, s.Millis...), all.Failures+s.Failures
		if s.Note != "" {
			all.Note = s.Note
		}
	}
	one := &sample{Name: "one process without gateway or sandbox"}
	one.take(bare.probe("many", tlsPort, each*len(paths)))
	one.Against = all
	return group{Title: "TLS connections that are all open at once, from connect until a byte is echoed", Rows: []*sample{all, one}}
}

// fair has four sandboxes download at the same time, each as fast as it can, and
// says what share of the fastest one's rate each had (E235 of the test matrix).
func (b *bench) fair(sessions []string) group {
	size := 256
	if b.quick {
		size = 64
	}
	var paths []path
	for i, id := range sessions {
		paths = append(paths, b.inSession(fmt.Sprintf("sandbox %d", i+1), id))
	}
	rows := together("down", rawPort, size, paths)
	slices.SortFunc(rows, func(x, y *sample) int { return int(x.quantile(.5)) - int(y.quantile(.5)) })
	for _, r := range rows {
		if r.Failures > 0 {
			continue
		}
		r.Name = fmt.Sprintf("%s, %.0f %% of the fastest one's rate", r.Name, 100*rows[0].quantile(.5)/r.quantile(.5))
	}
	return group{Title: fmt.Sprintf("Four sandboxes that download %d MiB at the same time, the fastest first", size), Rows: rows}
}

// attack is what a bad neighbour does, and from where.
type attack struct {
	name, operation string
	from            path
	port            int
}

// floods measures the requests of one client while another one floods.
func (b *bench) floods(who string, victim path, attacks []attack) (group, error) {
	n := 250
	if b.quick {
		n = 50
	}
	seconds := n/50 + 1
	g := group{Title: "TLS requests of " + who + ", one each 20 ms, while another one floods", Slower: true}
	base := &sample{Name: "nothing else runs"}
	base.take(victim.probe("paced", tlsPort, n))
	g.Rows = append(g.Rows, base)
	for _, a := range attacks {
		row := &sample{}
		g.Rows = append(g.Rows, row)
		var running sync.WaitGroup
		var sent probeResult
		var err error
		running.Go(func() { sent, err = a.from.probe(a.operation, a.port, seconds) })
		row.take(victim.probe("paced", tlsPort, n))
		running.Wait()
		if err != nil {
			return g, err
		}
		row.Name = a.name
		if sent.Sent > 0 {
			row.Name = fmt.Sprintf("%s (%d/s)", a.name, sent.Sent/seconds)
		}
	}
	return g, nil
}
