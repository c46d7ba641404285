package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
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
	switch {
	case errors.As(err, &answered):
		return classifyAnswer(answered)
	case outbound.Refused(err) != nil:
		return failure{kind: api.ErrorModelRequest, message: "The model's endpoint answered " + strconv.Itoa(outbound.Refused(err).Status) +
			" and points to another address, to which no conversation is sent."}
	case errors.Is(err, errSilent), errors.Is(err, errCut):
		return failure{kind: api.ErrorModelRequest, message: "The model's " + strings.TrimPrefix(err.Error(), "the model ") + ".", retry: true}
	case errors.Is(err, context.DeadlineExceeded):
		return failure{kind: api.ErrorModelRequest, message: "The model did not answer in time.", retry: true}
	}
	return failure{kind: api.ErrorModelRequest, message: "The model could not be reached, or its reply could not be read.", retry: true}
}

func classifyAnswer(e *anthropic.Error) failure {
	f := failure{kind: api.ErrorModelRequest, message: e.Message}
	if f.message == "" {
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
	case e.StatusCode == http.StatusRequestTimeout || e.StatusCode == http.StatusConflict || e.StatusCode >= 500, kind == "api_error":
		f.retry = true
	case e.StatusCode == http.StatusRequestEntityTooLarge,
		e.StatusCode == http.StatusBadRequest && strings.Contains(e.Message, "prompt is too long"):
		f.tooLong = true
	}
	return f
}

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
