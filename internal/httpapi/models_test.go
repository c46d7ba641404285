package httpapi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/httpapi"
)

// modelShelf has models m0, m1 …, of which every fourth is retired.
type modelShelf struct {
	count int
	err   error
}

func (s modelShelf) Models(context.Context) (list []api.ModelInfo, err error) {
	for i := range s.count {
		m := api.ModelInfo{ID: fmt.Sprint("m", i), Type: "model", DisplayName: fmt.Sprint("M ", i), Lifecycle: api.ModelActive, CreatedAt: api.Time{Time: time.Unix(0, 0)}}
		if i%4 == 3 {
			m.Lifecycle = api.ModelRetired
		}
		list = append(list, m)
	}
	return list, s.err
}

func (s modelShelf) Model(_ context.Context, id string) (api.ModelInfo, error) {
	if id != "a/b" {
		return api.ModelInfo{}, control.Faultf(control.NotFound, "Model %q not found.", id)
	}
	return api.ModelInfo{ID: id, Type: "model", DisplayName: "A B", Lifecycle: api.ModelActive}, s.err
}

func withModels(m httpapi.Models) func(*httpapi.Config) {
	return func(c *httpapi.Config) { c.Models = m }
}

// TestListModels: pages in both directions, stages, and what is refused.
func TestListModels(t *testing.T) {
	t.Parallel()
	r := newRigWith(t, nil, httpapi.DoorsConfig{}, withModels(modelShelf{count: 30}))
	for query, test := range map[string]struct {
		ids  string
		more bool
	}{
		"":                               {"m0 m1 m2 m4 m5 m6 m8 m9 m10 m12 m13 m14 m16 m17 m18 m20 m21 m22 m24 m25", true},
		"limit=3":                        {"m0 m1 m2", true},
		"limit=3&after_id=m2":            {"m4 m5 m6", true},
		"limit=3&after_id=m3":            {"m4 m5 m6", true}, // its place counts, although it is not shown
		"limit=3&after_id=m28":           {"m29", false},
		"limit=3&after_id=m29":           {"", false},
		"limit=3&before_id=m6":           {"m2 m4 m5", true},
		"limit=3&before_id=m3":           {"m0 m1 m2", false},
		"limit=3&before_id=m0":           {"", false},
		"limit=1000":                     {"m0 m1 m2 m4 m5 m6 m8 m9 m10 m12 m13 m14 m16 m17 m18 m20 m21 m22 m24 m25 m26 m28 m29", false},
		"lifecycle[]=retired&limit=2":    {"m3 m7", true},
		"lifecycle=retired&after_id=m20": {"m23 m27", false},
		"lifecycle[]=retired&lifecycle[]=active&limit=5&beta=true": {"m0 m1 m2 m3 m4", true},
		"lifecycle[]=deprecated":                                   {"", false},
	} {
		got := r.must("GET", "/v1/models?"+query, "")
		var ids []string
		for _, m := range dataOf(got) {
			ids = append(ids, m["id"].(string))
		}
		if strings.Join(ids, " ") != test.ids || got.body["has_more"] != test.more {
			t.Errorf("%s: %v, more %v", query, ids, got.body["has_more"])
		}
		if len(ids) == 0 && (got.body["first_id"] != nil || got.body["last_id"] != nil) || len(ids) > 0 && (got.str("first_id") != ids[0] || got.str("last_id") != ids[len(ids)-1]) {
			t.Errorf("%s: first %v, last %v of %v", query, got.body["first_id"], got.body["last_id"], ids)
		}
	}
	for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "after_id=none", "before_id=none", "after_id=m1&before_id=m5", "lifecycle[]=odd"} {
		if got := r.ask("GET", "/v1/models?"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.text)
		}
	}
	if got := r.askAs("sk-wrong", "GET", "/v1/models", ""); got.status != 401 {
		t.Errorf("without a key: %d", got.status)
	}
	if got := r.must("GET", "/v1/models/a%2Fb", ""); got.str("id") != "a/b" {
		t.Errorf("a name with a slash: %s", got.text)
	}
	if got := r.ask("GET", "/v1/models/none", ""); got.status != 404 || got.message() != `Model "none" not found.` {
		t.Errorf("%d %s", got.status, got.text)
	}
}

// TestNoModels: without an endpoint, and with one that fails, the answer says so.
func TestNoModels(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		models httpapi.Models
		status int
		words  string
	}{
		{nil, 404, "has no model endpoint"},
		{modelShelf{err: control.Faultf(control.Unavailable, "the endpoint is down")}, 503, "the endpoint is down"},
		{modelShelf{err: control.Faultf(control.RateLimited, "asked too often")}, 429, "asked too often"},
	} {
		r := newRigWith(t, nil, httpapi.DoorsConfig{}, withModels(test.models))
		for _, path := range []string{"/v1/models", "/v1/models/a%2Fb"} {
			if got := r.ask("GET", path, ""); got.status != test.status || !strings.Contains(got.message(), test.words) || got.status == 429 && got.header.Get("Retry-After") == "" {
				t.Errorf("%s: %d %s", path, got.status, got.text)
			}
		}
	}
}
