package httpapi

import (
	"context"
	"net/http"
	"slices"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// Models are the models that agents may name; *agent.Client has them.
type Models interface {
	// Models lists all, newest first. The caller does not change the list.
	Models(ctx context.Context) ([]api.ModelInfo, error)
	// Model returns one, also by a name that the list does not have.
	Model(ctx context.Context, id string) (api.ModelInfo, error)
}

// errNoModels is the answer where nothing is configured that has models.
var errNoModels = &control.Fault{Kind: control.NotFound, Message: "This server has no model endpoint (model.base_url in its configuration, or ATOLL_MODEL_URL), and so no models"}

func (s *server) listModels(w http.ResponseWriter, r *http.Request, _ control.Caller) error {
	q := queryOf(r)
	limit := q.integer("limit").Or(20)
	switch {
	case limit < 1:
		q.bad("limit", "Input should be greater than or equal to 1")
	case limit > 1000:
		q.bad("limit", "Input should be less than or equal to 1000")
	}
	after, before := q.text("after_id"), q.text("before_id")
	if after != "" && before != "" {
		q.bad("before_id", "cannot be given together with after_id")
	}
	stages := q.list("lifecycle")
	for _, stage := range stages {
		if !slices.Contains([]string{api.ModelActive, api.ModelDeprecated, api.ModelRetired}, stage) {
			q.bad("lifecycle", "Input should be 'active', 'deprecated' or 'retired'")
		}
	}
	if q.err != nil {
		return q.err
	}
	if s.models == nil {
		return errNoModels
	}
	all, err := s.models.Models(r.Context())
	if err != nil {
		return err
	}
	page, err := pageOfModels(all, stages, after, before, limit)
	if err != nil {
		return err
	}
	return reply(w, page)
}

// pageOfModels cuts a page out of the list: at most limit models of the stages,
// behind one or before one. Without stages those that can be used are meant. The
// place of a model is known whatever its stage.
func pageOfModels(all []api.ModelInfo, stages []string, after, before string, limit int) (api.ModelList, error) {
	for name, id := range map[string]string{"after_id": after, "before_id": before} {
		at := slices.IndexFunc(all, func(m api.ModelInfo) bool { return m.ID == id })
		switch {
		case id == "":
		case at < 0:
			return api.ModelList{}, control.Faultf(control.Invalid, "%s: no model has this id", name)
		case name == "after_id":
			all = all[at+1:]
		default:
			all = all[:at]
		}
	}
	page := api.ModelList{Data: []api.ModelInfo{}}
	for _, m := range all {
		if slices.Contains(stages, m.Lifecycle) || len(stages) == 0 && m.Lifecycle != api.ModelRetired {
			page.Data = append(page.Data, m)
		}
	}
	if n := len(page.Data); n > limit {
		page.HasMore = true
		if before != "" {
			page.Data = page.Data[n-limit:]
		} else {
			page.Data = page.Data[:limit]
		}
	}
	if n := len(page.Data); n > 0 {
		page.FirstID, page.LastID = &page.Data[0].ID, &page.Data[n-1].ID
	}
	return page, nil
}

func (s *server) getModel(w http.ResponseWriter, r *http.Request, _ control.Caller) error {
	if s.models == nil {
		return errNoModels
	}
	m, err := s.models.Model(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, m)
}
