-- Times are milliseconds since 1970. Ids are the 16 bytes of a UUID; the views at the
-- end show them as text for people.

CREATE TABLE instance (
    id    TEXT    NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE jobs (
    id                 BLOB    NOT NULL UNIQUE,
    user_id            TEXT    NOT NULL,
    name               TEXT    NOT NULL,
    agent              TEXT    NOT NULL,
    runner             TEXT    NOT NULL,
    dataset_id         TEXT    NOT NULL,
    tacc_system        TEXT    NOT NULL,
    external_job_id    TEXT,
    status             TEXT    NOT NULL,
    progress           REAL,
    priority           INTEGER NOT NULL, -- 0 low, 1 normal, 2 high
    params             TEXT    NOT NULL,
    resource_request   TEXT    NOT NULL,
    result             TEXT,
    error              TEXT,
    attempt            INTEGER NOT NULL,
    retry_count        INTEGER NOT NULL,
    max_retries        INTEGER NOT NULL,
    retry_at           INTEGER,
    cancel_requested   INTEGER NOT NULL,
    claimant           TEXT,
    lease_until        INTEGER,
    estimated_cost_usd REAL    NOT NULL,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    started_at         INTEGER,
    completed_at       INTEGER
);
CREATE INDEX jobs_by_user ON jobs (user_id, id);
CREATE INDEX jobs_claimable ON jobs (runner, priority DESC, id) WHERE status = 'QUEUED';
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX jobs_retrying ON jobs (retry_at) WHERE retry_at IS NOT NULL;

-- The last sequence of an aggregate, or the last offset of a user channel (kind 'user').
CREATE TABLE heads (
    kind TEXT    NOT NULL,
    id   TEXT    NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;

CREATE TABLE events (
    position       INTEGER PRIMARY KEY, -- commit order
    event_id       BLOB    NOT NULL UNIQUE,
    event_type     TEXT    NOT NULL,
    aggregate      TEXT    NOT NULL,
    aggregate_id   TEXT    NOT NULL,
    sequence       INTEGER NOT NULL,
    user_id        TEXT    NOT NULL,
    user_offset    INTEGER,
    occurred_at    INTEGER NOT NULL,
    correlation_id BLOB    NOT NULL,
    causation_id   BLOB,
    tags           TEXT,
    traceparent    TEXT,
    payload        TEXT    NOT NULL
);
CREATE UNIQUE INDEX events_by_aggregate ON events (aggregate_id, aggregate, sequence);
CREATE UNIQUE INDEX events_by_user ON events (user_id, user_offset) WHERE user_offset IS NOT NULL;

-- One delivery obligation of one event.
CREATE TABLE legs (
    position  INTEGER NOT NULL,
    broker    INTEGER NOT NULL, -- 1 rabbitmq, 2 kafka, 3 nats
    state     INTEGER NOT NULL, -- 0 pending, 1 done, 2 skipped, 3 dead
    bucket    INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    partition INTEGER,
    "offset"  INTEGER,
    next_at   INTEGER,
    skip      INTEGER,
    error     TEXT,
    PRIMARY KEY (position, broker)
) WITHOUT ROWID;
CREATE INDEX legs_open ON legs (broker, position) WHERE state IN (0, 3);

-- The next offset of each embedded log as of the last marks.
CREATE TABLE broker_ends (
    broker    INTEGER NOT NULL,
    log       TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    "end"     INTEGER NOT NULL,
    PRIMARY KEY (broker, log, partition)
) WITHOUT ROWID;

CREATE TABLE idempotency (
    user_id     TEXT    NOT NULL,
    route       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,
    status      INTEGER NOT NULL,
    location    TEXT,
    body        BLOB    NOT NULL,
    at          INTEGER NOT NULL,
    PRIMARY KEY (user_id, route, key)
);
CREATE INDEX idempotency_by_age ON idempotency (at);

-- What each consumer has handled: exactly once per (consumer, event).
CREATE TABLE inbox (
    consumer TEXT    NOT NULL,
    event_id BLOB    NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (consumer, event_id)
) WITHOUT ROWID;

CREATE TABLE backlog (
    consumer   TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    sequence   INTEGER NOT NULL,
    event_id   BLOB    NOT NULL,
    state      INTEGER NOT NULL, -- 1 retrying, 2 parked, 3 dead
    ordered    INTEGER NOT NULL,
    attempts   INTEGER NOT NULL,
    next_at    INTEGER,
    at         INTEGER NOT NULL,
    errors     TEXT    NOT NULL, -- JSON array of {at, attempt, error}
    headers    BLOB    NOT NULL,
    encoding   TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    source     TEXT    NOT NULL,
    PRIMARY KEY (consumer, event_id)
);
CREATE INDEX backlog_due ON backlog (consumer, next_at) WHERE state = 1;
CREATE INDEX backlog_by_key ON backlog (consumer, key, sequence);

-- Keys whose later events park. Deleted only when no row of the key is left.
CREATE TABLE backlog_keys (
    consumer TEXT NOT NULL,
    key      TEXT NOT NULL,
    PRIMARY KEY (consumer, key)
) WITHOUT ROWID;

CREATE TABLE read_models (
    model      TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    data       TEXT    NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (model, key)
) WITHOUT ROWID;

CREATE TABLE audit_log (
    number               INTEGER PRIMARY KEY,
    audit_id             BLOB    NOT NULL,
    audit_type           TEXT    NOT NULL,
    actor_user_id        TEXT    NOT NULL,
    target_resource_type TEXT    NOT NULL,
    target_resource_id   TEXT    NOT NULL,
    at                   INTEGER NOT NULL,
    details              TEXT    NOT NULL
);
CREATE INDEX audit_log_by_target ON audit_log (target_resource_id);

CREATE VIEW jobs_text AS
SELECT lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-'
       || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)) AS id_text,
       datetime(created_at / 1000, 'unixepoch') AS created, *
FROM jobs;

CREATE VIEW events_text AS
SELECT lower(substr(hex(event_id), 1, 8) || '-' || substr(hex(event_id), 9, 4) || '-' || substr(hex(event_id), 13, 4)
       || '-' || substr(hex(event_id), 17, 4) || '-' || substr(hex(event_id), 21)) AS id_text,
       datetime(occurred_at / 1000, 'unixepoch') AS occurred, *
FROM events;
