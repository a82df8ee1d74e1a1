//! From the COMMIT of an event to that of its effect, as PostgreSQL knows it: exact, where the
//! gateway's histogram begins when the request came and knows buckets only.

use std::str::FromStr;

use event_gateway::domain::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Row};

/// An inserted row keeps the transaction that wrote it, and with `track_commit_timestamp` the server
/// keeps when that was committed.
const P99_MS: &str = "SELECT i.consumer, 1e3 * percentile_cont(0.99) WITHIN GROUP (ORDER BY \
       extract(epoch FROM pg_xact_commit_timestamp(i.xmin) - pg_xact_commit_timestamp(e.xmin))::float8) AS p99 \
     FROM events AS e JOIN inbox AS i USING (event_id) WHERE e.event_id >= $1 GROUP BY 1 ORDER BY 1";

/// Of the events made from `since` on and handled by now, for each consumer the 99th percentile in
/// milliseconds; `None` on another store, or where the server does not keep times.
pub async fn percentiles(since: Timestamp) -> Option<Vec<(String, f64)>> {
    let url = std::env::var("GATEWAY__STORE__URL").ok().filter(|url| url.starts_with("postgres"))?;
    let server = PgConnectOptions::from_str(&url).expect("an address").disable_statement_logging();
    let mut session: PgConnection = server.connect().await.expect("the gateway's server");
    let kept = sqlx::query("SHOW track_commit_timestamp").fetch_one(&mut session).await.expect("a setting");
    if kept.get::<&str, _>(0) != "on" {
        return None;
    }
    let rows = sqlx::query(P99_MS).bind(since.first_id().0).fetch_all(&mut session).await.expect("events and inbox");
    Some(rows.iter().map(|row| (row.get("consumer"), row.get("p99"))).collect())
}
