//! To the PostgreSQL that the gateway uses, in a schema of its own.

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use event_gateway::domain::factory::EventFactory;
use event_gateway::domain::job::Job;
use event_gateway::domain::{Event, Timestamp};
use event_gateway::store::Store;
use event_gateway::store::postgres::{PostgresOptions, PostgresStore};
use sqlx::postgres::{PgBindIterExt, PgConnectOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use super::{Sink, Written, heads, legs};

const SCHEMA: &str = "bare";

pub struct Session(PgConnection);

impl Session {
    pub async fn open(url: &str, factory: Arc<EventFactory>) -> Self {
        let server = PgConnectOptions::from_str(url).expect("an address").options([("search_path", SCHEMA)]);
        let server = server.disable_statement_logging();
        let mut session = server.connect().await.expect("the gateway's server");
        session
            .execute(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")))
            .await
            .expect("a schema");
        // For its tables.
        PostgresStore::open(server, factory, PostgresOptions::default()).await.expect("a store").close().await;
        session.execute("SET plan_cache_mode = force_generic_plan").await.expect("as the store does");
        Self(session)
    }
}

impl Sink for Session {
    async fn commit(&mut self, batch: &[Written]) {
        let mut transaction = self.0.begin().await.expect("a transaction");
        write(&mut transaction, batch).await.expect("new rows");
        transaction.commit().await.expect("room on the disk");
    }

    async fn end(mut self) {
        self.0.execute(AssertSqlSafe(format!("DROP SCHEMA {SCHEMA} CASCADE"))).await.expect("its own");
    }
}

fn time(at: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at.0).expect("now")
}

async fn write(connection: &mut PgConnection, batch: &[Written]) -> Result<(), sqlx::Error> {
    let events: Vec<&Event> = batch.iter().flat_map(|(_, events)| events).collect();
    let (heads, legs) = (heads(&events), legs(&events));
    let jobs = || batch.iter().map(|(job, _)| job);
    let resources = |job: &Job| serde_json::to_string(&job.resource_request).expect("plain data");
    sqlx::query(
        "INSERT INTO jobs (id, user_id, name, agent, runner, dataset_id, tacc_system, status, priority, params, \
           resource_request, attempt, retry_count, max_retries, cancel_requested, estimated_cost_usd, created_at, \
           updated_at) \
         SELECT a, b, c, d, e, f, g, h, i, j::json, k::json, 1, 0, 3, false, l, m, m \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
           $9::smallint[], $10::text[], $11::text[], $12::float8[], $13::timestamptz[]) \
           AS new(a, b, c, d, e, f, g, h, i, j, k, l, m)",
    )
    .bind(jobs().map(|job| job.id.0).bind_iter())
    .bind(jobs().map(|job| &*job.user_id).bind_iter())
    .bind(jobs().map(|job| job.name.as_str()).bind_iter())
    .bind(jobs().map(|job| &*job.agent).bind_iter())
    .bind(jobs().map(|job| job.runner.as_str()).bind_iter())
    .bind(jobs().map(|job| job.dataset_id.as_str()).bind_iter())
    .bind(jobs().map(|job| job.tacc_system.as_str()).bind_iter())
    .bind(jobs().map(|job| job.status.as_str()).bind_iter())
    .bind(jobs().map(|job| job.priority as i16).bind_iter())
    .bind(jobs().map(|job| job.params.get()).bind_iter())
    .bind(jobs().map(resources).bind_iter())
    .bind(jobs().map(|job| job.estimated_cost_usd).bind_iter())
    .bind(jobs().map(|job| time(job.created_at)).bind_iter())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO heads (kind, id, last) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
         ON CONFLICT (kind, id) DO UPDATE SET last = excluded.last",
    )
    .bind(heads.iter().map(|((kind, _), _)| *kind).bind_iter())
    .bind(heads.iter().map(|((_, id), _)| *id).bind_iter())
    .bind(heads.iter().map(|(_, last)| *last).bind_iter())
    .execute(&mut *connection)
    .await?;
    let of = || events.iter();
    sqlx::query(
        "INSERT INTO events (position, event_id, event_type, aggregate, aggregate_id, sequence, user_id, user_offset, \
           occurred_at, correlation_id, payload) \
         SELECT a, b, c, d, e, f, g, h, i, j, k::json \
         FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], \
           $8::bigint[], $9::timestamptz[], $10::uuid[], $11::text[]) AS new(a, b, c, d, e, f, g, h, i, j, k)",
    )
    .bind(of().map(|event| event.position).bind_iter())
    .bind(of().map(|event| event.event_id.0).bind_iter())
    .bind(of().map(|event| &*event.event_type.name).bind_iter())
    .bind(of().map(|event| &*event.event_type.aggregate).bind_iter())
    .bind(of().map(|event| &*event.aggregate_id).bind_iter())
    .bind(of().map(|event| event.sequence).bind_iter())
    .bind(of().map(|event| &*event.user_id).bind_iter())
    .bind(of().map(|event| event.user_offset).bind_iter())
    .bind(of().map(|event| time(event.occurred_at)).bind_iter())
    .bind(of().map(|event| event.correlation_id.0).bind_iter())
    .bind(of().map(|event| std::str::from_utf8(&event.payload.json).expect("JSON")).bind_iter())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO legs (position, broker, state, bucket, at, attempts) \
         SELECT a, b, c, d, e, 0 FROM unnest($1::bigint[], $2::smallint[], $3::smallint[], $4::smallint[], \
           $5::timestamptz[]) AS new(a, b, c, d, e)",
    )
    .bind(legs.iter().map(|leg| leg.position).bind_iter())
    .bind(legs.iter().map(|leg| leg.broker).bind_iter())
    .bind(legs.iter().map(|leg| leg.state).bind_iter())
    .bind(legs.iter().map(|leg| leg.bucket).bind_iter())
    .bind(legs.iter().map(|leg| time(Timestamp(leg.at))).bind_iter())
    .execute(connection)
    .await?;
    Ok(())
}
