# `make` alone prints what there is. Commands that need root say so and stop.

SHELL       := /bin/bash
.DEFAULT_GOAL := help

VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X main.version=$(VERSION)
# gVisor re-executes the server's binary in a chroot: it has to be static.
GO_BUILD    := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
FUZZTIME    ?= 30s
MUTATIONS   ?= 40
SEED        ?= 1
TEST_FLAGS  ?=
# Packages that the race detector can take. It needs cgo and makes test binaries dynamic, which rules out what
# holds gVisor: the engine, the binary, and what drives them.
RACE        := ./api/... ./internal/control/... ./internal/egress/... ./internal/httpapi/... ./internal/image/... ./internal/store/...

.PHONY: help
help: ## print this help
	@echo "Atoll $(VERSION). Usage: make TARGET"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "Variables: FUZZTIME=$(FUZZTIME), MUTATIONS=$(MUTATIONS), SEED=$(SEED), TEST_FLAGS (for go test), VERSION"

.PHONY: setup
setup: ## install what the host lacks (apt-get), or say what is missing
	@scripts/setup

.PHONY: generate
generate:
	@go generate ./internal/sandbox/gvisor

.PHONY: build
build: generate ## build bin/atoll, one static binary
	@mkdir -p bin
	$(GO_BUILD) -o bin/atoll ./cmd/atoll
	@ls -l bin/atoll | awk '{ printf "bin/atoll: %.0f MB, version $(VERSION)\n", $$5 / 1e6 }'

.PHONY: demo
demo: root ## from nothing to two sessions in real sandboxes, driven by the official Python SDK (root)
	@scripts/demo

.PHONY: serve
serve: root setup build ## run a server in the foreground and print how to use it (root)
	@exec bin/atoll serve

.PHONY: test
test: root setup build ## every test: real sandboxes, real installs, official SDKs (root)
	ATOLL_CI=1 ATOLL_BINARY=$(CURDIR)/bin/atoll CGO_ENABLED=0 go test -count=1 -p 2 -timeout 40m $(TEST_FLAGS) ./...

.PHONY: check
check: lint ## the quick loop: lint and the short tests, as any user
	CGO_ENABLED=0 go test -short -timeout 5m $(TEST_FLAGS) ./...

.PHONY: security-table
security-table: root generate ## run the network test matrix and write its results into docs/security.md (root)
	CGO_ENABLED=0 go test -count=1 -timeout 60m ./test/security -update

.PHONY: race
race: generate ## the tests under the race detector, where that is possible (root)
	CGO_ENABLED=1 go test -race -short -count=1 -p 2 -timeout 15m $(TEST_FLAGS) $(RACE)

.PHONY: bench
bench: root build ## timings beside raw runsc, runc and podman, installs in a chroot, and no gateway, as ratios (root)
	@scripts/setup --bench
	go run ./test/bench $(BENCH_FLAGS)

.PHONY: fuzz
fuzz: generate ## run every fuzz target for FUZZTIME each
	@FUZZTIME=$(FUZZTIME) scripts/fuzz

.PHONY: mutate
mutate: root generate ## break the code in MUTATIONS places and more, and print what no test noticed (root)
	go run ./test/mutate -n $(MUTATIONS) -seed $(SEED)

.PHONY: lint
lint: generate ## gofmt, go vet, staticcheck, deadcode
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt: not formatted:"; echo "$$unformatted"; exit 1; fi
	CGO_ENABLED=0 go vet ./...
	CGO_ENABLED=0 go tool staticcheck ./...
	@unused=$$(CGO_ENABLED=0 go tool deadcode -filter 'atoll-run/atoll/(api|cmd|internal)' $$(go list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' ./...)) || exit 1; \
	if [ -n "$$unused" ]; then echo "deadcode: no program reaches:"; echo "$$unused"; exit 1; fi

.PHONY: vulncheck
vulncheck: generate ## known vulnerabilities in what is used; says loudly when it cannot know
	@scripts/vulncheck

.PHONY: root
root:
	@if [ "$$(id -u)" -ne 0 ]; then echo "make $(MAKECMDGOALS) needs root: sandboxes, mounts and network namespaces are real. Try: sudo -E make $(MAKECMDGOALS)" >&2; exit 1; fi
