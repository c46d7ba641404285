package toolset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/atoll-run/atoll/api"
)

// Search is a JSON search endpoint: what web_search asks.
type Search struct {
	// URL with {query}, and optionally {count}, {key}, and {country}, {region},
	// {city} and {timezone} of the tool's user_location, each in the query part;
	// they are escaped when they are put in.
	URL string
	// Key of the endpoint, or empty. It goes where URL has {key}, else into the
	// header KeyHeader; an empty KeyHeader is Authorization, where it stands as a
	// bearer token.
	Key, KeyHeader string
	// Headers of each request, beside the key's.
	Headers map[string]string
	// Results is the path of the list of results in the reply: names with dots
	// between, empty for a reply that is the list. Title, Link and Snippet are
	// the paths in one result; empty means "title", "url" and "snippet".
	Results, Title, Link, Snippet string
	// Count is how many results are asked for and shown at most; zero means 10.
	Count int
	// Timeout of one search; zero means 20 s.
	Timeout time.Duration
}

const (
	maxQuery      = 1000
	maxSearchBody = 4 << 20
	maxCount      = 50
	maxSnippet    = 2000 // characters
)

// Validate tells everything that is wrong with a search endpoint, joined.
func (c Search) Validate() error {
	var errs []error
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil:
		errs = append(errs, errors.New("url: not an http or https address without credentials"))
	case !strings.Contains(c.URL, "{query}"):
		errs = append(errs, errors.New("url: {query} is missing"))
	case strings.Contains(u.Host+u.Path, "{"):
		errs = append(errs, errors.New("url: places to fill belong behind the question mark"))
	default:
		if rest := c.fill("q", nil); strings.ContainsAny(rest, "{}") {
			errs = append(errs, errors.New("url: only {query}, {count}, {country}, {region}, {city}, {timezone} and {key} are filled"))
		}
	}
	errs = append(errs, c.validateKey())
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(c.Headers[name]) {
			errs = append(errs, fmt.Errorf("headers: %q is not a header", name))
		}
	}
	if c.Count < 0 || c.Count > maxCount {
		errs = append(errs, fmt.Errorf("count: %d is not between 1 and %d", c.Count, maxCount))
	}
	return errors.Join(errs...)
}

// validateKey tells what is wrong with where the key goes. No error holds it.
func (c Search) validateKey() error {
	inURL := strings.Contains(c.URL, keyPlace)
	name, value := c.keyHeader()
	var errs []error
	switch {
	case inURL && c.Key == "":
		errs = append(errs, errors.New("url: there is no key to put in the place of {key}"))
	case inURL && c.KeyHeader != "":
		errs = append(errs, errors.New("key_header: the key goes into the url, which has {key}"))
	case c.KeyHeader != "" && c.Key == "":
		errs = append(errs, errors.New("key_header: there is no key"))
	}
	if !httpguts.ValidHeaderFieldName(name) {
		errs = append(errs, fmt.Errorf("key_header: %q is not the name of a header", name))
	}
	if !httpguts.ValidHeaderFieldValue(value) {
		errs = append(errs, errors.New("key: the key has characters that no header takes"))
	}
	for other := range c.Headers {
		if c.Key != "" && !inURL && strings.EqualFold(other, name) {
			errs = append(errs, fmt.Errorf("headers: %s is the key's", name))
		}
	}
	return errors.Join(errs...)
}

// keyPlace is where the key goes in an address.
const keyPlace = "{key}"

// keyHeader is the header that shows the key.
func (c Search) keyHeader() (name, value string) {
	if c.KeyHeader == "" || strings.EqualFold(c.KeyHeader, "authorization") {
		return "Authorization", "Bearer " + c.Key
	}
	return c.KeyHeader, c.Key
}

func (c Search) withDefaults() Search {
	for _, d := range []struct {
		value *string
		def   string
	}{{&c.Title, "title"}, {&c.Link, "url"}, {&c.Snippet, "snippet"}} {
		if *d.value == "" {
			*d.value = d.def
		}
	}
	if c.Count == 0 {
		c.Count = 10
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	return c
}

// fill is the address of one search.
func (c Search) fill(query string, at *api.UserLocation) string {
	if at == nil {
		at = &api.UserLocation{}
	}
	values := []string{"{query}", url.QueryEscape(query), "{count}", strconv.Itoa(c.Count), keyPlace, url.QueryEscape(c.Key)}
	for name, value := range map[string]string{"country": at.Country, "region": at.Region, "city": at.City, "timezone": at.Timezone} {
		values = append(values, "{"+name+"}", url.QueryEscape(value))
	}
	return strings.NewReplacer(values...).Replace(c.URL)
}

// hit is one result of a search.
type hit struct{ title, link, snippet string }

// search runs web_search.
func (s *Session) search(ctx context.Context, call Call, config api.ToolConfig) (Result, error) {
	var in struct {
		Query string `json:"query"`
	}
	if err := decode(call.Input, &in); err != nil || strings.TrimSpace(in.Query) == "" || len(in.Query) > maxQuery {
		return textResult(true, "%s: %s: give what to look for as the string query, at most %d bytes", api.ToolWebSearch, codeInput, maxQuery), nil
	}
	c := s.toolset.search
	if c == nil {
		return textResult(true, "%s: %s: this server has no search endpoint configured", api.ToolWebSearch, codeUnavailable), nil
	}
	at := site{policy: s.cfg.Web, allowed: config.AllowedDomains, blocked: config.BlockedDomains}
	if err := at.check(&url.URL{Scheme: "https", Host: "any.invalid"}); noHosts(err) {
		return textResult(true, "%s: %v", api.ToolWebSearch, err), nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	body, err := s.toolset.ask(ctx, c.fill(in.Query, config.UserLocation))
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrCancelled) {
			return textResult(true, "%s: interrupted", api.ToolWebSearch), nil
		}
		s.toolset.log.WarnContext(ctx, "the search endpoint failed", "session_id", s.cfg.ID, "error", err)
		return textResult(true, "%s: %s: the search endpoint failed", api.ToolWebSearch, codeUnavailable), nil
	}
	hits, err := c.hits(body)
	if err != nil {
		s.toolset.log.WarnContext(ctx, "the search endpoint gave an unusable reply", "error", err)
		return textResult(true, "%s: %s: the search endpoint gave an unusable reply", api.ToolWebSearch, codeUnavailable), nil
	}
	return showHits(hits, at, c.Count), nil
}

// noHosts tells whether the session allows no web host at all.
func noHosts(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.code == codeNotAllowed && strings.Contains(r.text, "allows no web hosts")
}

// showHits shows the results that the session may see.
func showHits(hits []hit, at site, count int) Result {
	var content []json.RawMessage
	for _, h := range hits {
		if len(content) == count {
			break
		}
		u, err := at.target(h.link)
		if err != nil {
			continue
		}
		if h.snippet == "" {
			h.snippet = h.title
		}
		if h.snippet == "" {
			h.snippet = u.String()
		}
		if h.title == "" {
			h.title = u.Host // the wire wants one
		}
		content = append(content, searchBlock(u.String(), h.title, h.snippet))
	}
	if len(content) == 0 {
		return textResult(false, "no results")
	}
	return Result{Content: content}
}

// ask puts a question to the operator's endpoint. It is no business of the
// session's policy: what comes back is.
func (t *Toolset) ask(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, errors.New("making the request") // the cause holds the address, which may hold a key
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	for name, value := range t.search.Headers {
		req.Header.Set(name, value)
	}
	if t.search.Key != "" && !strings.Contains(t.search.URL, keyPlace) {
		req.Header.Set(t.search.keyHeader())
	}
	resp, err := t.searchClient.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the address
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSearchBody+1))
	if err == nil && len(body) > maxSearchBody {
		err = fmt.Errorf("more than %d bytes", maxSearchBody)
	}
	return body, err
}

// hits reads the results out of a reply. Entries without an address are left out.
func (c Search) hits(body []byte) ([]hit, error) {
	var reply any
	if err := json.Unmarshal(body, &reply); err != nil {
		return nil, err
	}
	list, ok := lookUp(reply, c.Results).([]any)
	if !ok {
		return nil, fmt.Errorf("%q is not a list", c.Results)
	}
	var out []hit
	for _, entry := range list {
		h := hit{text(lookUp(entry, c.Title), 500), text(lookUp(entry, c.Link), maxURL), text(lookUp(entry, c.Snippet), maxSnippet)}
		if h.link != "" {
			out = append(out, h)
		}
	}
	return out, nil
}

// lookUp follows a path of names in a JSON value; nil when it leads nowhere.
func lookUp(v any, path string) any {
	if path == "" {
		return v
	}
	for name := range strings.SplitSeq(path, ".") {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[name]
	}
	return v
}

// text is a string of a reply as one line.
func text(v any, max int) string {
	s, _ := v.(string)
	return oneLine(s, max)
}
