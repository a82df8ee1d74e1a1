//! What a settled store must not hold, in SQL that SQLite and PostgreSQL understand. The effects
//! themselves are counted, not the inbox that is there to keep them to one an event.

macro_rules! lifecycle {
    () => {
        "('job.submitted', 'job.completed', 'job.failed', 'job.cancelled')"
    };
}

/// What it would be, and how many there are: a bigint, 0 if all is well.
pub const WRONG: [(&str, &str); 9] = [
    (
        "gaps in sequences",
        "SELECT count(*) FROM (SELECT 1 FROM events GROUP BY aggregate, aggregate_id \
         HAVING min(sequence) <> 1 OR max(sequence) <> count(*)) AS wrong",
    ),
    (
        "gaps in user offsets",
        "SELECT count(*) FROM (SELECT 1 FROM events WHERE user_offset IS NOT NULL GROUP BY user_id \
         HAVING min(user_offset) <> 1 OR max(user_offset) <> count(*)) AS wrong",
    ),
    ("legs that are not settled", "SELECT count(*) FROM legs WHERE state NOT IN (1, 2)"),
    ("deliveries that failed", "SELECT count(*) FROM backlog"),
    // RabbitMQ's queues cannot be read afterwards: what came out of them must have been committed.
    (
        "events handled that were never committed",
        "SELECT count(*) FROM inbox WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.event_id = inbox.event_id)",
    ),
    (
        "audit rows too many or too few",
        concat!(
            "SELECT abs(count(*) - (SELECT count(*) FROM events WHERE event_type IN ",
            lifecycle!(),
            ")) + count(*) - count(DISTINCT details ->> 'event_id') \
             FROM audit_log WHERE audit_type = 'audit.job.lifecycle'"
        ),
    ),
    (
        "minute counters that do not count the events",
        concat!(
            "SELECT count(*) FROM (SELECT kind FROM (\
               SELECT substr(event_type, 5) AS kind, 1 AS n FROM events WHERE event_type IN ",
            lifecycle!(),
            " UNION ALL SELECT kind, -CAST(coalesce(data ->> kind, '0') AS bigint) FROM read_models, \
               (SELECT 'submitted' AS kind UNION ALL SELECT 'completed' UNION ALL SELECT 'failed' \
                UNION ALL SELECT 'cancelled') AS kinds WHERE model = 'jobs_per_minute') AS counted \
             GROUP BY kind HAVING sum(n) <> 0) AS wrong"
        ),
    ),
    (
        "jobs whose samples are not all counted once",
        "SELECT count(*) FROM (SELECT id FROM (\
           SELECT aggregate_id AS id, 1 AS n FROM events WHERE event_type = 'job.metrics.recorded' \
           UNION ALL SELECT key, -CAST(data ->> 'samples' AS bigint) FROM read_models WHERE model = 'job_metrics') \
         AS counted GROUP BY id HAVING sum(n) <> 0) AS wrong",
    ),
    (
        "jobs without one summary for each of their ends",
        "SELECT count(*) FROM (SELECT id FROM (\
           SELECT aggregate_id AS id, -1 AS n FROM events WHERE event_type = 'job.performance.summary' \
           UNION ALL SELECT aggregate_id, 1 FROM events WHERE event_type IN ('job.completed', 'job.cancelled') \
             OR (event_type = 'job.failed' AND CAST(payload ->> 'final' AS text) IN ('1', 'true'))) \
         AS counted GROUP BY id HAVING sum(n) <> 0) AS wrong",
    ),
];

/// As [`WRONG`]: what a consumer has done of a job, by the order in which it was done.
pub const OUT_OF_ORDER: (&str, &str) = (
    "audit rows of a job that are not in the order of its events",
    "SELECT count(*) FROM (SELECT CAST(details ->> 'sequence' AS bigint) AS sequence, \
       lag(CAST(details ->> 'sequence' AS bigint)) OVER (PARTITION BY target_resource_id ORDER BY number) AS previous \
       FROM audit_log WHERE audit_type = 'audit.job.lifecycle') AS written WHERE previous >= sequence",
);
