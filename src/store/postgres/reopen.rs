//! Legs that were done until somebody found their messages gone.

use sqlx::{PgConnection, Row};

use crate::domain::Broker;
use crate::store::StoreError;

/// Done legs of these events become pending again. They get an owner that has ended already:
/// whoever renews its lease next adopts it. So do the heads of their aggregates, so that the
/// lane of a later event asks whether they are out (see `open_before`).
pub(super) async fn publish_again(c: &mut PgConnection, broker: Broker, positions: &[i64]) -> Result<u64, StoreError> {
    let ended = "INSERT INTO owners (instance, epoch, lease_until) VALUES ('', 0, '-infinity') RETURNING owner";
    let owner: i32 = sqlx::query(ended).fetch_one(&mut *c).await?.try_get("owner")?;
    // Locked in the order in which commits do it.
    sqlx::query(
        "WITH locked AS MATERIALIZED ( \
           SELECT h.kind, h.id FROM heads AS h \
           JOIN (SELECT DISTINCT aggregate, aggregate_id FROM events WHERE position = ANY($1)) AS e \
             ON h.kind = e.aggregate AND h.id = e.aggregate_id \
           ORDER BY h.kind, h.id FOR UPDATE OF h) \
         UPDATE heads AS h SET owner = $2 FROM locked WHERE h.kind = locked.kind AND h.id = locked.id",
    )
    .bind(positions)
    .bind(owner)
    .execute(&mut *c)
    .await?;
    let result = sqlx::query(
        "UPDATE legs SET state = 0, partition = NULL, \"offset\" = NULL, at = clock_timestamp(), owner = $3 \
         WHERE broker = $1 AND position = ANY($2) AND state = 1",
    )
    .bind(broker as i16)
    .bind(positions)
    .bind(owner)
    .execute(c)
    .await?;
    Ok(result.rows_affected())
}
