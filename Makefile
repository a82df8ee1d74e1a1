# make run    the gateway on its embedded default, page at http://127.0.0.1:8080
# make test   everything but benches; sets up what it needs
# make lint   formatting, clippy, licences and advisories, page types
# make bench  the figures of docs/benchmarks.md (release build)
# make page   only the page

.PHONY: run test lint bench page

run: page
	cargo run --release -- serve

page: web/dist/index.html

web/node_modules/.package-lock.json: web/package-lock.json
	npm --prefix web ci --no-audit --no-fund

web/dist/index.html: web/node_modules/.package-lock.json $(shell find web/src web/public web/index.html web/vite.config.ts -type f 2>/dev/null)
	npm --prefix web run build

test: page
	scripts/test

lint: web/node_modules/.package-lock.json
	scripts/lint

bench:
	scripts/bench
