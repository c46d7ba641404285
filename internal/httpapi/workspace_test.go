package httpapi_test

import (
	"context"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// stranger is a key of another workspace.
func (r *rig) stranger() string {
	r.t.Helper()
	ctx := context.Background()
	ws := control.Workspace{ID: "wrkspc_other", Name: "other", CreatedAt: time.Now().UTC().Truncate(time.Microsecond)}
	if err := r.store.CreateWorkspace(ctx, ws); err != nil {
		r.t.Fatal(err)
	}
	secret, _, err := r.service.CreateKey(ctx, ws.ID, "other", control.KeyAPI, false)
	if err != nil {
		r.t.Fatal(err)
	}
	return secret
}

// TestWorkspaces: nothing of one workspace can be seen or touched from another.
func TestWorkspaces(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	other := r.stranger()
	env := r.must("POST", "/v1/environments", `{"name":"e"}`).str("id")
	agent := r.must("POST", "/v1/agents", `{"name":"a","model":"m"}`).str("id")
	session := r.must("POST", "/v1/sessions", `{"agent":`+quote(agent)+`,"environment_id":`+quote(env)+`}`).str("id")
	theirEnv := r.askAs(other, "POST", "/v1/environments", `{"name":"e"}`).str("id")
	theirAgent := r.askAs(other, "POST", "/v1/agents", `{"name":"a","model":"m"}`).str("id")
	for _, ask := range [][3]string{
		{"GET", "/v1/environments/" + env, ""}, {"POST", "/v1/environments/" + env, `{"name":"z"}`}, {"DELETE", "/v1/environments/" + env, ""}, {"POST", "/v1/environments/" + env + "/archive", ""},
		{"GET", "/v1/agents/" + agent, ""}, {"POST", "/v1/agents/" + agent, `{"name":"z"}`}, {"POST", "/v1/agents/" + agent + "/archive", ""}, {"GET", "/v1/agents/" + agent + "/versions", ""},
		{"GET", "/v1/sessions/" + session, ""}, {"POST", "/v1/sessions/" + session, `{"title":"z"}`}, {"DELETE", "/v1/sessions/" + session, ""}, {"POST", "/v1/sessions/" + session + "/archive", ""},
		{"POST", "/v1/sessions", `{"agent":` + quote(theirAgent) + `,"environment_id":` + quote(env) + `}`},
		{"POST", "/v1/sessions", `{"agent":` + quote(agent) + `,"environment_id":` + quote(theirEnv) + `}`},
	} {
		if got := r.askAs(other, ask[0], ask[1], ask[2]); got.status != 404 {
			t.Errorf("%s: %d %s", ask, got.status, got.text)
		}
	}
	for path, want := range map[string]string{"/v1/environments": theirEnv, "/v1/agents": theirAgent} {
		data := r.askAs(other, "GET", path, "").body["data"].([]any)
		if len(data) != 1 || data[0].(map[string]any)["id"] != want {
			t.Errorf("%s shows %v", path, data)
		}
	}
	if data := r.askAs(other, "GET", "/v1/sessions", "").body["data"].([]any); len(data) != 0 {
		t.Errorf("sessions: %v", data)
	}
	r.must("GET", "/v1/sessions/"+session, "")
}
