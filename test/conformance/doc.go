// Package conformance holds Atoll to the official clients: the Go SDK's own test
// suites of both generations, and the Go, Python and TypeScript clients doing
// what their users do, the last also in a web page that a real browser loads,
// against the real handler over the real store, without sandboxes. Every reply that passes is checked against the official OpenAPI
// document.
//
// The clients come from their registries and are kept, by version, in the user's
// cache directory under atoll-test. Without a client's tools or the network its
// test is skipped, and fails when ATOLL_CI is set; it never passes unrun.
package conformance
