package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// maxBody is how large a JSON body may be.
const maxBody = 32 << 20

// decode reads the JSON body of a request into what into points to, strictly.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	if len(body) > 0 {
		if err := checkContentType(r); err != nil {
			return err
		}
	}
	return api.Decode(body, into)
}

// noBody is for requests that say all in their path. An empty object is taken
// for no body.
func noBody(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r)
	if err != nil || len(body) == 0 {
		return err
	}
	return api.Decode(body, &struct{}{})
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, control.Faultf(control.TooLarge, "Request body is larger than %d bytes", maxBody)
	case err != nil:
		return nil, &control.Fault{Kind: control.Invalid, Message: "Request body could not be read", Cause: err}
	}
	return body, nil
}

func checkContentType(r *http.Request) error {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || mediaType != "application/json" || charset != "" && charset != "utf-8" && charset != "UTF-8" {
		return control.Faultf(control.Invalid, "content-type: Input should be 'application/json'")
	}
	return nil
}

// reply writes a success.
func reply(w http.ResponseWriter, v any) error {
	writeJSON(w, http.StatusOK, v)
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic("httpapi: a reply that JSON does not take: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // the client may be gone
}
