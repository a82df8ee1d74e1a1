-- The embedded brokers: append-only logs and where each consumer stands in them.

CREATE TABLE partitions (
    id        INTEGER PRIMARY KEY,
    -- domain::Broker's stored number
    broker    INTEGER NOT NULL,
    log       TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    UNIQUE (broker, log, partition)
) STRICT;

-- One tree in (partition, offset) order: an append goes to its partition's end, a page
-- of a partition is one range, and so is a prune. The newest record of a partition is
-- never deleted: it tells where the partition ends.
CREATE TABLE records (
    -- partition_id << 40 | offset
    id           INTEGER PRIMARY KEY,
    partition_id INTEGER GENERATED ALWAYS AS (id >> 40) VIRTUAL,
    "offset"     INTEGER GENERATED ALWAYS AS (id & 0xFFFFFFFFFF) VIRTUAL,
    key          TEXT    NOT NULL,
    -- domain::event::Headers as JSON
    headers      TEXT    NOT NULL,
    -- 1 JSON, 2 Avro
    encoding     INTEGER NOT NULL,
    body         BLOB    NOT NULL,
    -- appended at, milliseconds since 1970
    time         INTEGER NOT NULL
) STRICT;

CREATE TABLE positions (
    broker       INTEGER NOT NULL,
    consumer     TEXT    NOT NULL,
    partition_id INTEGER NOT NULL REFERENCES partitions (id),
    -- everything before it is done, except `unacked`
    next_offset  INTEGER NOT NULL,
    -- JSON array of offsets below next_offset that a work queue still owes
    unacked      TEXT    NOT NULL DEFAULT '[]',
    PRIMARY KEY (broker, consumer, partition_id)
) STRICT, WITHOUT ROWID;
