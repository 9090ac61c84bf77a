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
# Flags of the tests of make e2e themselves, for example E2EFLAGS='-keep -reuse'.
E2EFLAGS ?=
# Passed to go test by make bench, for example BENCHFLAGS='-bench Watches -count 1'.
BENCHFLAGS ?=
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

CHART_TOOLS := $(addprefix $(BIN)/,alerts ct helm helm-docs helm-unittest kubeconform)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## Build the tailhelm binary into .bin/
	$(PURE) go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o $(BIN)/tailhelm ./cmd/tailhelm

.PHONY: programs
programs: ## Build what the tests run: kube-apiserver, etcd, kubectl, helm
	$(PURE) go run -trimpath ./tools/programs

.PHONY: generate
generate: $(BIN)/controller-gen ## Write anew what is made from the API's types: methods and CustomResourceDefinitions
	$(call generate-api,api/v1alpha1)
	cp api/v1alpha1/crds/*.yaml $(CHART)/charts/crds/crds/

# Makes methods and CustomResourceDefinitions of api/v1alpha1, into a folder like it.
define generate-api
	@mkdir -p $(1)/crds
	$(PURE) $(BIN)/controller-gen object:headerFile=tools/controller-gen/header.txt crd paths=./api/v1alpha1 \
		output:object:dir=$(1) output:crd:dir=$(1)/crds
endef

.PHONY: test
test: programs ## Run all tests, with the race detector
	go test -race -timeout 60m $(TESTFLAGS) $(PACKAGES)

.PHONY: lint
lint: lint-go lint-modules lint-api lint-chart ## Check code and chart

.PHONY: lint-go
lint-go: $(BIN)/golangci-lint
	$(PURE) GOFLAGS="$(GOFLAGS) -trimpath" $(BIN)/golangci-lint run $(PACKAGES)
	$(PURE) go mod tidy -diff

# Modules of their own with code of this repository.
MODULES := test/e2e tools/alerts tools/images

.PHONY: lint-modules
lint-modules: $(BIN)/golangci-lint
	@set -e; for module in $(MODULES); do \
		echo "golangci-lint run in $$module"; \
		(cd $$module && $(PURE) GOFLAGS="$(GOFLAGS) -trimpath" "$(CURDIR)/$(BIN)/golangci-lint" run --config "$(CURDIR)/.golangci.yaml" \
			&& $(PURE) go mod tidy -diff); \
	done

.PHONY: lint-api
lint-api: $(BIN)/controller-gen
	@rm -rf $(BIN)/generated/v1alpha1
	$(call generate-api,$(BIN)/generated/v1alpha1)
	@diff -u api/v1alpha1/zz_generated.deepcopy.go $(BIN)/generated/v1alpha1/zz_generated.deepcopy.go \
		&& diff -ur api/v1alpha1/crds $(BIN)/generated/v1alpha1/crds && diff -ur api/v1alpha1/crds $(CHART)/charts/crds/crds \
		|| { echo "what is made of api/v1alpha1 is stale: make generate"; exit 1; }

.PHONY: chart
chart: lint-api lint-chart ## Check the chart: ct lint, helm-unittest, kubeconform, generated files

.PHONY: lint-chart
lint-chart: $(CHART_TOOLS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ct lint --config ct.yaml --charts $(CHART)
	@set -e; for values in values-examples/*.yaml; do \
		echo "helm lint --strict --values $$values"; \
		$(BIN)/helm lint --strict --quiet --values "$$values" $(CHART); \
	done
	$(PURE) go run -trimpath ./tools/schemas -kubeconform $(BIN)/schemas
	$(BIN)/kubeconform -strict -summary -skip CustomResourceDefinition,ServiceMonitor,PodMonitor,PrometheusRule \
		-schema-location '$(CURDIR)/$(BIN)/schemas/{{.ResourceKind}}{{.KindSuffix}}.json' test/chart/testdata/golden test/chart/testdata/workloads manifests
	$(BIN)/helm template operator $(CHART) --namespace tailscale --values test/chart/testdata/alerts.values.yaml \
		| $(BIN)/alerts test/chart/testdata/alerts.yaml
	@mkdir -p $(BIN)/generated
	$(BIN)/helm-docs --log-level error --chart-search-root $(CHART) --chart-to-generate $(CHART) --dry-run > $(BIN)/generated/README.md
	@! grep '| *|$$' $(BIN)/generated/README.md || { echo "values.yaml does not describe these values"; exit 1; }
	@diff -u $(CHART)/README.md $(BIN)/generated/README.md || { echo "the README of the chart is stale: make chart-generate"; exit 1; }
	@cp $(CHART)/values.schema.json $(BIN)/generated/
	$(PURE) go run -trimpath ./tools/schemas -values $(BIN)/generated/values.schema.json -defaults $(CHART)/values.yaml
	@diff -u $(CHART)/values.schema.json $(BIN)/generated/values.schema.json || { echo "values.schema.json is stale: make chart-generate"; exit 1; }

.PHONY: chart-generate
chart-generate: $(CHART_TOOLS) ## Write anew what is made from the chart
	$(PURE) go run -trimpath ./tools/schemas -values $(CHART)/values.schema.json -defaults $(CHART)/values.yaml
	$(BIN)/helm-docs --log-level error --chart-search-root $(CHART) --chart-to-generate $(CHART) --dry-run > $(BIN)/README.md && mv $(BIN)/README.md $(CHART)/README.md
	$(PURE) go test ./test/chart -run 'Golden|TestManifests' -update

.PHONY: package
package: ## Write the chart's archive to .bin/package: the same bytes for the same files
	$(PURE) go run -trimpath ./tools/package -chart $(CHART) -to $(BIN)/package

# The image's name, as the chart has it by default.
IMAGE ?= ghcr.io/tailhelm/tailhelm:$(shell sed -n 's/^appVersion: "\(.*\)"/\1/p' $(CHART)/Chart.yaml)

# Architectures of the images, and where they go.
ARCHITECTURES ?= amd64 arm64
IMAGES ?= $(BIN)/images

.PHONY: images
images: $(BIN)/images-tool ## Write the container images for amd64 and arm64 to .bin/images, reproducibly
	@mkdir -p $(IMAGES)
	@set -e; for arch in $(ARCHITECTURES); do \
		$(PURE) GOOS=linux GOARCH=$$arch go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o $(IMAGES)/tailhelm-$$arch ./cmd/tailhelm; \
	done
	$(BIN)/images-tool -program $(IMAGES)/tailhelm -name $(IMAGE) -version $(VERSION) -to $(IMAGES) $(ARCHITECTURES)

$(BIN)/images-tool: $(wildcard tools/images/*)
	$(PURE) go -C tools/images build -trimpath -o "$(CURDIR)/$@" .

.PHONY: kind-node-image
kind-node-image: ## Build kind's node image where no container registry is reachable (needs Docker and root)
	@mkdir -p $(BIN)
	$(PURE) go run -trimpath ./test/kubernetes/nodeimage > $(BIN)/kind-node-image.new
	@mv $(BIN)/kind-node-image.new $(BIN)/kind-node-image && cat $(BIN)/kind-node-image

# Tests that make e2e runs, as a regular expression; all of them by default.
RUN ?=

.PHONY: e2e
e2e: ## Install, use and break the chart on a kind cluster (RUN=TestName for one test; needs Docker)
	@docker info >/dev/null 2>&1 || { echo "make e2e needs a Docker engine, and none is running (.ci/docker-engine starts Debian's)" >&2; exit 1; }
	@$(MAKE) --no-print-directory images IMAGES=$(BIN)/e2e-images ARCHITECTURES=$$(go env GOARCH)
	$(PURE) go -C test/e2e test -trimpath -v -count=1 -timeout 40m -parallel 3 -run '$(value RUN)' $(TESTFLAGS) . -args \
		-image="$(CURDIR)/$(BIN)/e2e-images/tailhelm-$$(go env GOARCH).tar" -node-image="$$(cat $(BIN)/kind-node-image 2>/dev/null)" $(E2EFLAGS)

.PHONY: demo
demo: ## Real kubectl processes reach a real kube-apiserver (HOLD=1 keeps it up)
	$(PURE) go build -trimpath -o $(BIN)/demo ./test/demo
	@# Not go run: it calls every end by Ctrl-C a failure.
	@exec env $(PURE) HOLD="$(HOLD)" $(BIN)/demo

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (default 30s)
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' internal test | \
	while IFS=: read -r file func; do \
		name="$${func#func }"; package="./$$(dirname "$$file")"; \
		echo "$$package $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime "$(FUZZTIME)" "$$package" </dev/null || exit 1; \
	done

# Three rounds of each benchmark, six times: enough for benchstat to tell change from noise.
.PHONY: bench
bench: programs ## Measure what the proxy costs, compared with a tailnet alone; leave the machine idle
	$(PURE) go test -trimpath -timeout 60m -run '^$$' -bench . -benchtime 3x -count 6 $(BENCHFLAGS) ./test/bench

.PHONY: clean
clean: ## Remove what make built here (the user's cache folder stays)
	rm -rf $(BIN)

$(BIN)/golangci-lint: tools/golangci-lint/go.mod tools/golangci-lint/go.sum
	@echo "building golangci-lint (some minutes, once)"
	$(PURE) go -C tools/golangci-lint build -trimpath -o "$(CURDIR)/$@" github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# Tools of the chart: program, and its module under tools.
define tool
$(BIN)/$(notdir $(1)): tools/$(2)/go.mod tools/$(2)/go.sum
	@echo "building $(notdir $(1)) (a minute, once)"
	$$(PURE) go -C tools/$(2) build -trimpath -o "$$(CURDIR)/$$@" $(1)
endef
$(eval $(call tool,github.com/helm/chart-testing/v3/ct,chart-testing))
$(eval $(call tool,sigs.k8s.io/controller-tools/cmd/controller-gen,controller-gen))
$(eval $(call tool,github.com/norwoodj/helm-docs/cmd/helm-docs,helm-docs))
$(eval $(call tool,github.com/helm-unittest/helm-unittest/cmd/helm-unittest,helm-unittest))
$(eval $(call tool,github.com/yannh/kubeconform/cmd/kubeconform,kubeconform))

$(BIN)/alerts: $(wildcard tools/alerts/*)
	@echo "building alerts (a minute, once)"
	$(PURE) go -C tools/alerts build -trimpath -o "$(CURDIR)/$@" .

$(BIN)/helm: test/kubernetes/modules/helm.mod test/kubernetes/modules/helm.sum Makefile
	@echo "building helm (some minutes, once)"
	$(PURE) go build -modfile=test/kubernetes/modules/helm.mod -trimpath -ldflags "$(HELM_LDFLAGS)" -o $@ helm.sh/helm/v3/cmd/helm
