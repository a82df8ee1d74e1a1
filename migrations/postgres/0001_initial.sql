-- Tables that are updated all the time leave room in their pages, so that an update stays
-- in its page; none has an index on a column that changes, but for small partial ones.

CREATE TABLE instance (
    id    text   NOT NULL PRIMARY KEY,
    epoch bigint NOT NULL
);

CREATE TABLE jobs (
    id                 uuid             NOT NULL PRIMARY KEY,
    user_id            text COLLATE "C" NOT NULL,
    name               text             NOT NULL,
    agent              text             NOT NULL,
    runner             text             NOT NULL,
    dataset_id         text             NOT NULL,
    tacc_system        text             NOT NULL,
    external_job_id    text,
    status             text             NOT NULL,
    progress           double precision,
    priority           smallint         NOT NULL,
    params             json             NOT NULL,
    resource_request   json             NOT NULL,
    result             json,
    error              json,
    attempt            integer          NOT NULL,
    retry_count        integer          NOT NULL,
    max_retries        integer          NOT NULL,
    retry_at           timestamptz,
    cancel_requested   boolean          NOT NULL,
    claimant           text,
    lease_until        timestamptz,
    estimated_cost_usd double precision NOT NULL,
    created_at         timestamptz      NOT NULL,
    updated_at         timestamptz      NOT NULL,
    started_at         timestamptz,
    completed_at       timestamptz
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX jobs_by_user ON jobs (user_id, id);
CREATE INDEX jobs_claimable ON jobs (runner, priority DESC, id) WHERE status = 'QUEUED';
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX jobs_retrying ON jobs (retry_at) WHERE retry_at IS NOT NULL;
COMMENT ON COLUMN jobs.priority IS '0 low, 1 normal, 2 high';

CREATE TABLE heads (
    kind text COLLATE "C" NOT NULL,
    id   text COLLATE "C" NOT NULL,
    last bigint           NOT NULL,
    PRIMARY KEY (kind, id)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE heads IS
    'The last sequence of an aggregate, or the last offset of a user channel (kind user). '
    'A job''s row is its lock.';

CREATE TABLE events (
    position       bigint           NOT NULL PRIMARY KEY,
    event_id       uuid             NOT NULL UNIQUE,
    event_type     text             NOT NULL,
    aggregate      text COLLATE "C" NOT NULL,
    aggregate_id   text COLLATE "C" NOT NULL,
    sequence       bigint           NOT NULL,
    user_id        text COLLATE "C" NOT NULL,
    user_offset    bigint,
    occurred_at    timestamptz      NOT NULL,
    correlation_id uuid             NOT NULL,
    causation_id   uuid,
    tags           text[],
    traceparent    text,
    payload        json             NOT NULL
);
CREATE UNIQUE INDEX events_by_aggregate ON events (aggregate_id, aggregate, sequence);
CREATE UNIQUE INDEX events_by_user ON events (user_id, user_offset) WHERE user_offset IS NOT NULL;
COMMENT ON COLUMN events.position IS
    'Ordered within an aggregate and within what one instance commits. A later commit of another '
    'instance may have a lower one: see event_horizon().';

-- One delivery obligation of one event: narrow, because it is written twice.
CREATE TABLE legs (
    position  bigint      NOT NULL,
    broker    smallint    NOT NULL,
    state     smallint    NOT NULL,
    bucket    smallint    NOT NULL,
    attempts  integer     NOT NULL,
    at        timestamptz NOT NULL,
    partition integer,
    "offset"  bigint,
    next_at   timestamptz,
    skip      smallint,
    error     text,
    PRIMARY KEY (position, broker)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX legs_open ON legs (broker, position) WHERE state IN (0, 3);
COMMENT ON COLUMN legs.broker IS '1 rabbitmq, 2 kafka, 3 nats';
COMMENT ON COLUMN legs.state IS '0 pending, 1 done, 2 skipped, 3 dead';
COMMENT ON COLUMN legs.skip IS 'why: 1 claimed through the worker API, 2 no queue is bound';

CREATE TABLE broker_ends (
    broker    smallint NOT NULL,
    log       text     NOT NULL,
    partition integer  NOT NULL,
    "end"     bigint   NOT NULL,
    PRIMARY KEY (broker, log, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE broker_ends IS 'The next offset of each embedded log as of the last marks.';

CREATE TABLE idempotency (
    user_id     text COLLATE "C" NOT NULL,
    route       text COLLATE "C" NOT NULL,
    key         text COLLATE "C" NOT NULL,
    fingerprint bytea            NOT NULL,
    status      smallint         NOT NULL,
    location    text,
    body        bytea            NOT NULL,
    at          timestamptz      NOT NULL,
    PRIMARY KEY (user_id, route, key)
);
CREATE INDEX idempotency_by_age ON idempotency (at);

CREATE TABLE inbox (
    consumer text COLLATE "C" NOT NULL,
    event_id uuid             NOT NULL,
    at       timestamptz      NOT NULL,
    PRIMARY KEY (consumer, event_id)
);
COMMENT ON TABLE inbox IS 'What each consumer has handled: exactly once per consumer and event.';

CREATE TABLE backlog (
    consumer text COLLATE "C" NOT NULL,
    key      text COLLATE "C" NOT NULL,
    sequence bigint           NOT NULL,
    event_id uuid             NOT NULL,
    state    smallint         NOT NULL,
    ordered  boolean          NOT NULL,
    attempts integer          NOT NULL,
    next_at  timestamptz,
    at       timestamptz      NOT NULL,
    errors   jsonb            NOT NULL,
    headers  bytea            NOT NULL,
    encoding text             NOT NULL,
    body     bytea            NOT NULL,
    source   text             NOT NULL,
    PRIMARY KEY (consumer, event_id)
);
CREATE INDEX backlog_due ON backlog (consumer, next_at) WHERE state = 1;
CREATE INDEX backlog_by_key ON backlog (consumer, key, sequence);
CREATE INDEX backlog_by_event ON backlog (event_id);
COMMENT ON COLUMN backlog.state IS '1 retrying, 2 parked, 3 dead';
COMMENT ON COLUMN backlog.errors IS 'array of {at, attempt, error}';

CREATE TABLE backlog_keys (
    consumer text COLLATE "C" NOT NULL,
    key      text COLLATE "C" NOT NULL,
    PRIMARY KEY (consumer, key)
);
COMMENT ON TABLE backlog_keys IS 'Keys whose later events park. Deleted only when no row of the key is left.';

CREATE TABLE read_models (
    model      text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    data       json             NOT NULL,
    updated_at timestamptz      NOT NULL,
    PRIMARY KEY (model, key)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE audit_log (
    number               bigint      NOT NULL GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    audit_id             uuid        NOT NULL,
    audit_type           text        NOT NULL,
    actor_user_id        text        NOT NULL,
    target_resource_type text        NOT NULL,
    target_resource_id   text        NOT NULL,
    at                   timestamptz NOT NULL,
    details              json        NOT NULL
);
CREATE INDEX audit_log_by_target ON audit_log (target_resource_id);

-- Where an event's legs are, for people.
CREATE VIEW ledger AS
SELECT e.event_id, e.event_type, e.aggregate, e.aggregate_id, e.sequence, e.user_id, e.occurred_at,
       (ARRAY ['rabbitmq', 'kafka', 'nats'])[l.broker] AS broker,
       (ARRAY ['pending', 'done', 'skipped', 'dead'])[l.state + 1] AS state,
       l.attempts, l.partition, l."offset", l.at, l.next_at, l.error
FROM events AS e JOIN legs AS l USING (position);

-- Positions come in blocks of 65,536, one block a transaction, drawn when the transaction has
-- all its locks: so within an aggregate positions grow like sequences. Other transactions may
-- commit in another order than they drew. Each therefore holds, until it ends, a shared
-- advisory lock that names the newest block it knows to be drawn before its own.
CREATE SEQUENCE event_block;
SELECT setval('event_block', 1, true);

CREATE FUNCTION event_block_tag() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT (hashtext(current_schema()) & 32767)::bigint << 48 $$;

CREATE FUNCTION next_event_block() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    newest bigint;
BEGIN
    SELECT last_value INTO newest FROM event_block;
    PERFORM pg_advisory_xact_lock_shared(event_block_tag() | newest);
    RETURN nextval('event_block');
END $$;

-- (horizon, newest): every position below (horizon + 1) * 65536 that will ever be committed is
-- visible to statements that start after this one; newest is the last block drawn so far.
CREATE FUNCTION event_horizon(OUT horizon bigint, OUT newest bigint) LANGUAGE plpgsql AS $$
BEGIN
    -- In this order: whoever has drawn a block up to newest holds its lock or has ended.
    SELECT last_value INTO newest FROM event_block;
    SELECT coalesce(min(l.key & ((1::bigint << 48) - 1)), newest) INTO horizon
    FROM (SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
          WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS l
    WHERE (l.key >> 48) << 48 = event_block_tag();
END $$;
