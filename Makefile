# Two commands are enough: make demo, make test. make help lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# .cache/go is where scripts/install-deps puts a Go toolchain if the host has
# none that can build this module.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH):/usr/local/go/bin
export CGO_ENABLED := 0
export GOTOOLCHAIN ?= auto

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 10s
ABUSETIME ?= 10m
RUNS ?= 25

.PHONY: help
help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: demo
demo: ## install what is missing, build, and run the phish with and without containment
	@scripts/install-deps run
	@$(MAKE) --no-print-directory build
	@bin/bulkhead redteam run phish --runs $(RUNS)

.PHONY: build
build: ## put the binaries into bin/
	@mkdir -p bin
	go build -trimpath -o bin/ ./cmd/...

.PHONY: test
test: ## install what the tests need, then vet and run all of them
	@scripts/install-deps test
	go vet ./...
	@go run ./scripts/gotest $(GOTESTFLAGS) ./...

.PHONY: bench
bench: ## measure start, file work and the gateway beside bwrap, srt, fence, mitmproxy and squid
	@scripts/install-deps bench
	@$(MAKE) --no-print-directory build
	@mkdir -p .cache/bench
	@go build -o .cache/bench/ ./bench gvisor.dev/gvisor/runsc
	@.cache/bench/bench -bulkhead bin/bulkhead -cache .cache/bench $(BENCHFLAGS)

.PHONY: e2e-agents
e2e-agents: ## run the phish with a real agent from npm, driven by a scripted model
	@scripts/install-deps agents
	@$(MAKE) --no-print-directory build
	@BULKHEAD_E2E_AGENTS=1 go run ./scripts/gotest -timeout 30m ./e2e/agents/...

.PHONY: e2e-hosts
e2e-hosts: ## boot hosts that this machine is not, in QEMU without hardware, and see what holds there (minutes)
	@scripts/install-deps hosts
	@$(MAKE) --no-print-directory build
	BULKHEAD_E2E_HOSTS=1 go test ./e2e/hosts -count=1 -v -timeout 180m

REDTEAMFLAGS ?=
.PHONY: redteam
redteam: ## attack sessions of both tiers with every scenario, with and without containment (as root: everything; minutes)
	@scripts/install-deps test
	@$(MAKE) --no-print-directory build
	@mkdir -p .cache
	bin/bulkhead redteam run --tier process,container --strict --budget 10m --save .cache/redteam.json --junit .cache/redteam.xml --html .cache/redteam.html $(REDTEAMFLAGS)

YARDSTICKS = bwrap,srt
SRT = @anthropic-ai/sandbox-runtime@0.0.83
.PHONY: redteam-compare
redteam-compare: ## the same attacks in other sandboxes, beside ours (as root; installs srt from npm below .cache)
	@scripts/install-deps test
	@scripts/install-deps yardsticks
	@$(MAKE) --no-print-directory build
	@mkdir -p .cache/yardsticks
	npm install --silent --no-audit --no-fund --prefix .cache/yardsticks $(SRT)
	PATH=$(CURDIR)/.cache/yardsticks/node_modules/.bin:$$PATH bin/bulkhead redteam run --tier process --yardstick $(YARDSTICKS) \
		--save .cache/redteam-compare.json --html .cache/redteam-compare.html $(REDTEAMFLAGS)

AGENTS = claude opencode codex gemini
AGENTPACKAGES = @anthropic-ai/claude-code@2.1.112 opencode-ai@1.18.33 @openai/codex@0.171.0 @google/gemini-cli@0.61.0
.PHONY: redteam-agents
redteam-agents: ## lead real agents from npm astray, each with a scripted model, in both tiers (as root; installs them below .cache)
	@scripts/install-deps test
	@$(MAKE) --no-print-directory build
	@mkdir -p .cache/redteam-agents
	npm install --silent --no-audit --no-fund --prefix .cache/redteam-agents $(AGENTPACKAGES)
	@for agent in $(AGENTS); do \
		PATH=$(CURDIR)/.cache/redteam-agents/node_modules/.bin:$$PATH bin/bulkhead redteam run --agent $$agent --tier process,container \
			--save .cache/redteam-$$agent.json --html .cache/redteam-$$agent.html $(REDTEAMFLAGS) || exit 1; \
	done

.PHONY: redteam-switches
redteam-switches: ## take each enforcement out of a test build and see the red team notice (as root)
	@scripts/install-deps test
	BULKHEAD_REDTEAM_SWITCHES=1 go test -count=1 -timeout 60m -v ./e2e/redteam

.PHONY: abuse
abuse: ## let a sandbox do its worst to its gateway for ten minutes, beside another session
	@scripts/install-deps test
	BULKHEAD_ABUSE=$(ABUSETIME) go test ./e2e/abuse -run 'TestAbuse$$' -count=1 -v -timeout 60m

.PHONY: check
check: ## format, vet, static analysis, cross compilation, short fuzzing, SECURITY.md's table
	@scripts/install-deps test
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$out" ] || { echo "gofmt these files:"; echo "$$out"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	GOOS=linux GOARCH=arm64 go build -o /dev/null ./...
	GOOS=darwin GOARCH=arm64 go build -o /dev/null ./...
	GOOS=windows GOARCH=amd64 go build -o /dev/null ./...
	scripts/enforcement-size --check
	scripts/fuzz $(FUZZTIME)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@scripts/fuzz $(FUZZTIME)

.PHONY: clean
clean: ## remove what was built and downloaded
	@[ ! -d .cache ] || chmod -R u+w .cache
	rm -rf bin .cache
