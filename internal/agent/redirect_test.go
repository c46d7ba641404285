package agent_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// A model's endpoint that points elsewhere gets neither the key nor the
// conversation sent there. The turn ends at once with the status.
func TestModelRedirects(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			var arrived, asked atomic.Int32
			other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }))
			defer other.Close()
			endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Header().Set("Location", other.URL+r.URL.Path)
				w.WriteHeader(status)
			}))
			defer endpoint.Close()
			w := newWorld(t)
			w.stop()
			client, err := agent.NewClient(agent.ModelConfig{BaseURL: endpoint.URL, Key: "sk-model", KeyHeader: true, Headers: map[string]string{"X-Operator": "secret"}})
			if err != nil {
				t.Fatal(err)
			}
			w.config.Model = client
			w.start()
			w.say(modeltest.Script{{Text: "never"}})
			log := w.untilIdle(1)
			errs := of(log, api.EventSessionError)
			if len(errs) != 1 || asked.Load() != 1 {
				t.Fatalf("asked %d times; the log is\n%s", asked.Load(), show(log))
			}
			if e := fields[api.ErrorFields](t, errs[0]).Error; e.Type != api.ErrorModelRequest || !strings.Contains(e.Message, strconv.Itoa(status)) {
				t.Errorf("error %+v", e)
			}
			if arrived.Load() != 0 {
				t.Error("the other host was asked")
			}
		})
	}
}
