# The page, then the binary, then only what runs.
FROM node:22.23.2-bookworm-slim AS page
WORKDIR /src/web
COPY web/package.json web/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY web ./
RUN npm run build

FROM rust:1.95.0-bookworm AS binary
RUN apt-get update && apt-get install -y --no-install-recommends cmake clang && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
COPY --from=page /src/web/dist web/dist
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/event-gateway /event-gateway && strip /event-gateway

FROM debian:bookworm-20260803-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data gateway \
    && install --directory --owner=gateway /data
COPY --from=binary /event-gateway /usr/local/bin/event-gateway
USER 10001
WORKDIR /data
ENV GATEWAY__DATA__DIR=/data
VOLUME /data
EXPOSE 8080
ENTRYPOINT ["event-gateway"]
CMD ["serve"]
