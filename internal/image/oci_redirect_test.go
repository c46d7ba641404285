package image

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/atoll-run/atoll/internal/outbound"
)

// The registry's credentials stay with the registry and its token server: a
// redirect of blobs goes without them, one of the token's request not at all.
func TestOCICredentialsFollowNoRedirect(t *testing.T) {
	var mu sync.Mutex
	var elsewhere []string // what arrived at the other host
	registry := newRegistry(t)
	ref := push(t, strings.TrimPrefix(registry.URL, "http://"), v1.Config{}, archive(t, file("f", "x")))
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		elsewhere = append(elsewhere, fmt.Sprintf("%s %s %v %s", r.Method, r.URL, r.Header, body))
		mu.Unlock()
		r.RequestURI, r.Host = "", ""
		registry.Config.Handler.ServeHTTP(w, r)
	}))
	defer other.Close()
	away := strings.Replace(other.URL, "127.0.0.1", "localhost", 1) // by name: the library refuses some addresses by itself
	var redirected string                                           // of the registry: the requests that are sent elsewhere
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/token") && redirected == "token":
			http.Redirect(w, r, away+r.URL.Path, http.StatusTemporaryRedirect)
		case strings.HasPrefix(r.URL.Path, "/token"):
			_, _ = w.Write([]byte(`{"token":"secret-token"}`))
		case r.Header.Get("Authorization") != "Bearer secret-token":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/") && redirected == "blobs":
			http.Redirect(w, r, away+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			registry.Config.Handler.ServeHTTP(w, r)
		}
	}))
	defer front.Close()
	host := strings.TrimPrefix(front.URL, "http://")
	docker := t.TempDir()
	// An identity token makes the client send it in the body of a POST.
	auth := base64.StdEncoding.EncodeToString([]byte("user:secret-password"))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q,"identitytoken":"secret-identity"}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(docker, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", docker)
	pull := func() error {
		cache := t.TempDir()
		scratch, rootfs := filepath.Join(cache, "s"), filepath.Join(cache, "r")
		must(t, os.Mkdir(scratch, 0o755), os.Mkdir(rootfs, 0o755))
		o := &OCI{Ref: strings.Replace(ref, strings.TrimPrefix(registry.URL, "http://"), host, 1), PlainHTTP: true}
		_, err := pullOCI(t.Context(), o, runtime.GOARCH, cache, scratch, rootfs, outbound.Guard(nil, outbound.Downloads), stdoutProgress{})
		return err
	}
	redirected = "blobs"
	if err := pull(); err != nil {
		t.Errorf("a registry whose blobs are elsewhere: %v", err)
	}
	seen := strings.Join(elsewhere, "\n")
	if seen == "" || strings.Contains(seen, "secret") || strings.Contains(seen, "Authorization") {
		t.Errorf("with the blobs arrived %q", seen)
	}
	elsewhere, redirected = nil, "token"
	if err := pull(); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("a token server that points elsewhere: %v", err)
	}
	if seen := strings.Join(elsewhere, "\n"); strings.Contains(seen, "secret") {
		t.Errorf("with the token's request arrived %q", seen)
	}
}
