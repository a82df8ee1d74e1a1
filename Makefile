# make run    the gateway on its embedded default, page at http://127.0.0.1:8080
# make brokers  RabbitMQ, Kafka, NATS (three nodes each), a schema registry, PostgreSQL: by Docker
#             Compose where an engine answers, else natively (scripts/brokers help)
# make run-brokers  the gateway on them
# make test   all but the benches and the long faults; sets up what it needs
# make test-faults  brokers killed, frozen and starved under load (80 minutes)
# make lint   formatting, clippy, licences and advisories, page types
# make bench  the figures of docs/benchmarks.md (release build)
# make page   only the page

.PHONY: run brokers run-brokers test test-faults lint bench page

run: page
	cargo run --release -- serve

brokers:
	@if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then \
	    docker compose --env-file deploy/brokers/brokers.env -f docker-compose.events.yml --profile core up -d --wait; \
	else scripts/brokers up; fi

run-brokers: page brokers
	set -a; eval "$$(scripts/brokers env gateway)"; set +a; cargo run --release -- serve

page: web/dist/index.html

web/node_modules/.package-lock.json: web/package-lock.json
	npm --prefix web ci --no-audit --no-fund

web/dist/index.html: web/node_modules/.package-lock.json $(shell find web/src web/public web/index.html web/vite.config.ts -type f 2>/dev/null)
	npm --prefix web run build

test: page
	scripts/test

test-faults:
	scripts/test-faults

lint: web/node_modules/.package-lock.json
	scripts/lint

bench:
	scripts/bench
