package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/outbound"
)

// failure is why a model request did not succeed, in the words of the wire.
type failure struct {
	kind    string // type of the session.error
	message string
	retry   bool          // another try may help
	after   time.Duration // what the endpoint asks to wait, or zero
	tooLong bool          // the conversation does not fit the model's window
}

// classify sorts an error of a model request. What the endpoint says is passed
// on; addresses and headers are not.
func classify(err error) failure {
	var answered *anthropic.Error
	if errors.As(err, &answered) {
		return classifyAnswer(answered)
	}
	if refused := outbound.Refused(err); refused != nil {
		return failure{kind: api.ErrorModelRequest, message: "The model's endpoint answered " + strconv.Itoa(refused.Status) +
			" and points to another address, to which no conversation is sent."}
	}
	for _, known := range []error{errSilent, errCut, errNoSummary} {
		if errors.Is(err, known) {
			return failure{kind: api.ErrorModelRequest, message: sentence(known), retry: true}
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return failure{kind: api.ErrorModelRequest, message: "The model did not answer in time.", retry: true}
	}
	return failure{kind: api.ErrorModelRequest, message: "The model could not be reached, or its reply could not be read.", retry: true}
}

// sentence is one of the package's own errors as a sentence.
func sentence(err error) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// maxWords is how many characters of what an endpoint says are passed on.
const maxWords = 2000

func classifyAnswer(e *anthropic.Error) failure {
	f := failure{kind: api.ErrorModelRequest, message: clipped(strings.TrimSpace(e.Message), maxWords)}
	inStream := e.StatusCode == http.StatusOK // the reply had begun
	switch {
	case f.message != "":
	case inStream:
		f.message = "The model's reply broke off with an error."
	default:
		f.message = "The model's endpoint answered " + strconv.Itoa(e.StatusCode) + "."
	}
	if e.Response != nil {
		f.after = retryAfter(e.Response.Header)
	}
	switch kind := string(e.Type()); {
	case e.StatusCode == 529 || kind == "overloaded_error":
		f.kind, f.retry = api.ErrorModelOverloaded, true
	case e.StatusCode == http.StatusTooManyRequests || kind == "rate_limit_error":
		f.kind, f.retry = api.ErrorModelRateLimited, true
	case e.StatusCode == http.StatusPaymentRequired || kind == "billing_error":
		f.kind = api.ErrorBilling
	case inStream && slices.Contains(permanent, kind):
	case e.StatusCode == http.StatusRequestTimeout || inStream || e.StatusCode == http.StatusConflict || e.StatusCode >= 500, kind == "api_error":
		f.retry = true
	case e.StatusCode == http.StatusRequestEntityTooLarge,
		e.StatusCode == http.StatusBadRequest && strings.Contains(e.Message, "prompt is too long"):
		f.tooLong = true
	}
	return f
}

// permanent are the types of errors that another try meets again.
var permanent = []string{"invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large"}

// retryAfter reads what the endpoint asks to wait: seconds or a date, at most a
// minute.
func retryAfter(h http.Header) time.Duration {
	var wait time.Duration
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil {
		wait = time.Duration(ms * float64(time.Millisecond))
	} else if s, err := strconv.ParseFloat(h.Get("Retry-After"), 64); err == nil {
		wait = time.Duration(s * float64(time.Second))
	} else if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		wait = time.Until(at)
	}
	return min(max(wait, 0), time.Minute)
}

// backoff is how long to wait before try n (from 1): 1, 2, 4 … 32 seconds less
// up to a quarter, or what the endpoint asks for.
func backoff(base time.Duration, n int, after time.Duration) time.Duration {
	wait := base << min(n-1, 5)
	wait -= time.Duration(rand.Int64N(int64(wait)/4 + 1))
	return max(wait, after)
}
