package main

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// A server that points elsewhere does not get the command line's key sent there,
// by a request or by a WebSocket, and the words say where it pointed.
func TestKeyFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	var arrived atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }))
	defer other.Close()
	for _, status := range []int{301, 302, 307, 308} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", other.URL+r.URL.Path)
			w.WriteHeader(status)
		}))
		defer server.Close()
		env := map[string]string{"ATOLL_URL": server.URL, "ATOLL_API_KEY": "secret"}
		for _, args := range [][]string{{"exec", "sesn_x", "true"}, {"egress", "sesn_x"}, {"build", "env_x"}, {"build", "--rebuild", "env_x"}} {
			code, _, stderr := command(t, env, "", args...)
			if code == 0 || !strings.Contains(stderr, strconv.Itoa(status)) || !strings.Contains(stderr, strings.TrimPrefix(other.URL, "http://")) {
				t.Errorf("atoll %s, answered %d: exit %d, %q", strings.Join(args, " "), status, code, stderr)
			}
		}
	}
	if n := arrived.Load(); n != 0 {
		t.Errorf("%d requests arrived at the other host", n)
	}
}
