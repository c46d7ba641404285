package httpapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/httpapi"
)

// adminCache answers for one layer and one workspace.
type adminCache struct{ httpapi.AdminCache }

func (adminCache) Drop(_ context.Context, key string) (control.CacheDropped, error) {
	switch key {
	case "held":
		return control.CacheDropped{}, control.Faultf(control.Conflict, "layer held is in use")
	case "there":
		return control.CacheDropped{Environments: []string{"env_1"}}, nil
	}
	return control.CacheDropped{}, control.Faultf(control.NotFound, "no such layer")
}

func (adminCache) RaiseEpoch(_ context.Context, workspace string) (control.CacheEpoch, error) {
	return control.CacheEpoch{Workspace: workspace, Epoch: 5}, nil
}

// The operator's routes drop a layer by its key and raise a workspace's epoch.
func TestAdminCacheRoutes(t *testing.T) {
	handler := httpapi.Admin(nil, adminCache{}, nil)
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"POST", "/cache/layers/there/drop", http.StatusOK, `"environments":["env_1"]`},
		{"POST", "/cache/layers/held/drop", http.StatusConflict, "in use"},
		{"POST", "/cache/layers/gone/drop", http.StatusNotFound, "no such layer"},
		{"GET", "/cache/layers/there/drop", http.StatusMethodNotAllowed, ""},
		{"POST", "/cache/epoch?workspace=w", http.StatusOK, `{"workspace":"w","epoch":5}`},
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, nil))
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, w.Code, w.Body)
		}
	}
}
