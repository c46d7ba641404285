package storetest

import (
	"fmt"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
)

func (f *fixture) addAgent(n int) control.AgentRecord {
	f.t.Helper()
	rec := control.AgentRecord{
		ID: fmt.Sprintf("agent_%05d", n), Workspace: "w1", Name: "same", Version: 1,
		Document: []byte(`{"v":1}`), CreatedAt: at(n), UpdatedAt: at(n),
	}
	f.ok(f.CreateAgent(f.ctx, rec))
	return rec
}

func agents(t *testing.T, f *fixture) {
	first := f.addAgent(1)
	f.fails(f.CreateAgent(f.ctx, first), control.ErrDuplicate)
	for _, version := range []int{0, 1} {
		got, err := f.Agent(f.ctx, "w1", first.ID, version)
		f.ok(err)
		f.same(got, first)
		_, err = f.Agent(f.ctx, "w2", first.ID, version)
		f.fails(err, control.ErrNoRecord)
	}
	_, err := f.Agent(f.ctx, "w1", first.ID, 2)
	f.fails(err, control.ErrNoRecord)

	second := first
	second.Version, second.Name, second.Document, second.UpdatedAt = 2, "renamed", []byte(`{"v":2}`), at(7)
	got, err := f.UpdateAgent(f.ctx, "w1", first.ID, func(r *control.AgentRecord) (bool, error) {
		f.same(*r, first)
		r.Name, r.Document, r.UpdatedAt = second.Name, second.Document, second.UpdatedAt
		return true, nil
	})
	f.ok(err)
	f.same(got, second)
	got, err = f.UpdateAgent(f.ctx, "w1", first.ID, func(r *control.AgentRecord) (bool, error) {
		r.Name = "not written"
		return false, nil
	})
	f.ok(err)
	f.same(got, second)
	_, err = f.UpdateAgent(f.ctx, "w2", first.ID, func(*control.AgentRecord) (bool, error) { return true, nil })
	f.fails(err, control.ErrNoRecord)
	got, err = f.Agent(f.ctx, "w1", first.ID, 1)
	f.ok(err)
	first.Name = second.Name // the name is the agent's
	f.same(got, first)

	_, err = f.ArchiveAgent(f.ctx, "w2", first.ID, at(8))
	f.fails(err, control.ErrNoRecord)
	second.ArchivedAt, second.UpdatedAt = at(8), at(8)
	for _, when := range []int{8, 9} {
		got, err = f.ArchiveAgent(f.ctx, "w1", first.ID, at(when))
		f.ok(err)
		f.same(got, second)
	}
}

func agentLists(t *testing.T, f *fixture) {
	var all []control.AgentRecord
	for n := range 9 {
		all = append(all, f.addAgent(n))
	}
	for v := 2; v <= 5; v++ {
		rec, err := f.UpdateAgent(f.ctx, "w1", all[4].ID, func(r *control.AgentRecord) (bool, error) {
			r.Document = fmt.Appendf(nil, `{"v":%d}`, v)
			return true, nil
		})
		f.ok(err)
		all[4] = rec
	}
	var err error
	all[8], err = f.ArchiveAgent(f.ctx, "w1", all[8].ID, at(50))
	f.ok(err)
	mark := func(r control.AgentRecord) control.Mark { return control.Mark{CreatedAt: r.CreatedAt, ID: r.ID} }
	with := func(filter control.AgentFilter) []control.AgentRecord {
		return pages(f, 2, true, mark, func(p control.Page) ([]control.AgentRecord, bool, error) {
			return f.ListAgents(f.ctx, "w1", filter, p)
		})
	}
	f.same(with(control.AgentFilter{}), all[:8])
	f.same(with(control.AgentFilter{IncludeArchived: true}), all)
	f.same(with(control.AgentFilter{IncludeArchived: true, CreatedGTE: at(3), CreatedLTE: at(5)}), all[3:6])
	other, more, err := f.ListAgents(f.ctx, "w2", control.AgentFilter{}, control.Page{Limit: 5})
	f.ok(err)
	if len(other) != 0 || more {
		t.Errorf("another workspace sees %d agents, more %t", len(other), more)
	}

	var versions []int
	for after, more := 0, true; more; {
		var recs []control.AgentRecord
		recs, more, err = f.ListAgentVersions(f.ctx, "w1", all[4].ID, after, 2)
		f.ok(err)
		for _, r := range recs {
			versions = append(versions, r.Version)
			f.same(string(r.Document), fmt.Sprintf(`{"v":%d}`, r.Version))
		}
		after = recs[len(recs)-1].Version
	}
	f.same(versions, []int{5, 4, 3, 2, 1})
	_, _, err = f.ListAgentVersions(f.ctx, "w2", all[4].ID, 0, 2)
	f.fails(err, control.ErrNoRecord)
}
