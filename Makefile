# Needs Go, make, git and gcc. Everything else is built from modules pinned in this
# repository, into .bin/ and the user's cache folder.

BIN := .bin
CHART := charts/tailscale-operator
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/tailhelm/tailhelm/internal/cli.version=$(VERSION)

# Everything but the race detector is built alike, so that it is compiled once.
PURE := CGO_ENABLED=0

# Passed to go test, for example TESTFLAGS='-run TestWatch -v'.
TESTFLAGS ?=
# Packages that make test and make lint look at.
PACKAGES ?= ./...
# How long make fuzz spends on each target.
FUZZTIME ?= 30s

# The Kubernetes version that helm assumes when it renders without a cluster.
KUBE_MAJOR := 1
KUBE_MINOR := 36
HELM_LDFLAGS := -s -w \
	-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=$(KUBE_MAJOR) \
	-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$(KUBE_MINOR) \
	-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=$(KUBE_MAJOR) \
	-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=$(KUBE_MINOR)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## Build the tailhelm binary into .bin/
	$(PURE) go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o $(BIN)/tailhelm ./cmd/tailhelm

.PHONY: programs
programs: ## Build what the tests run: kube-apiserver, etcd, kubectl, helm
	$(PURE) go run -trimpath ./tools/programs

.PHONY: test
test: programs ## Run all tests, with the race detector
	go test -race -timeout 60m $(TESTFLAGS) $(PACKAGES)

.PHONY: lint
lint: lint-go lint-chart ## Check code and chart

.PHONY: lint-go
lint-go: $(BIN)/golangci-lint
	$(PURE) GOFLAGS="$(GOFLAGS) -trimpath" $(BIN)/golangci-lint run $(PACKAGES)

.PHONY: lint-chart
lint-chart: $(BIN)/helm
	@set -e; for values in $(CHART)/ci/*-values.yaml; do \
		echo "helm lint --strict --values $$values"; \
		$(BIN)/helm lint --strict --quiet --values "$$values" $(CHART); \
		$(BIN)/helm template release $(CHART) --namespace tailscale --values "$$values" >/dev/null; \
	done

.PHONY: demo
demo: ## Real kubectl processes reach a real kube-apiserver (HOLD=1 keeps it up)
	$(PURE) HOLD="$(HOLD)" go run -trimpath ./test/demo

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (default 30s)
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' internal test | \
	while IFS=: read -r file func; do \
		name="$${func#func }"; package="./$$(dirname "$$file")"; \
		echo "$$package $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime "$(FUZZTIME)" "$$package" </dev/null || exit 1; \
	done

.PHONY: clean
clean: ## Remove what make built here (the user's cache folder stays)
	rm -rf $(BIN)

$(BIN)/golangci-lint: tools/golangci-lint/go.mod tools/golangci-lint/go.sum
	@echo "building golangci-lint (some minutes, once)"
	$(PURE) go -C tools/golangci-lint build -trimpath -o "$(CURDIR)/$@" github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(BIN)/helm: test/kubernetes/modules/helm.mod test/kubernetes/modules/helm.sum Makefile
	@echo "building helm (some minutes, once)"
	$(PURE) go build -modfile=test/kubernetes/modules/helm.mod -trimpath -ldflags "$(HELM_LDFLAGS)" -o $@ helm.sh/helm/v3/cmd/helm
