//! Owners, their leases, and duties. All times are the server's.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, Row};

use crate::store::{Duty, Enrolment, Renewal, StoreError};

/// An instance as it has enrolled.
#[derive(Clone, Debug)]
pub(super) struct Enrolled {
    pub instance: String,
    pub enrolment: Enrolment,
    /// Its owner and those it has adopted.
    pub owners: Arc<[i32]>,
    /// What became of a COMMIT of its is not known: it commits nothing more.
    pub in_doubt: bool,
}

fn ms(lease: Duration) -> i64 {
    i64::try_from(lease.as_millis()).unwrap_or(i64::MAX)
}

/// Begins a life of `instance`. Former lives are over, whatever their leases say; what they
/// leave is adopted now, or at a renewal when a transaction of theirs still ends.
pub(super) async fn enroll(c: &mut PgConnection, instance: &str, lease: Duration) -> Result<Enrolled, StoreError> {
    let row = sqlx::query(
        "INSERT INTO instance AS i (id, epoch) VALUES ($1, 1) \
         ON CONFLICT (id) DO UPDATE SET epoch = i.epoch + 1 RETURNING epoch",
    )
    .bind(instance)
    .fetch_one(&mut *c)
    .await?;
    let epoch: i64 = row.try_get("epoch")?;
    sqlx::query("UPDATE owners SET lease_until = '-infinity' WHERE instance = $1 AND adopted_by IS NULL")
        .bind(instance)
        .execute(&mut *c)
        .await?;
    let row = sqlx::query(
        "INSERT INTO owners (instance, epoch, lease_until) \
         VALUES ($1, $2, clock_timestamp() + $3 * interval '1 ms') RETURNING owner",
    )
    .bind(instance)
    .bind(epoch)
    .bind(ms(lease))
    .fetch_one(&mut *c)
    .await?;
    let owner: i32 = row.try_get("owner")?;
    sqlx::query("SELECT adopt_owners($1, '-infinity')").bind(owner).execute(&mut *c).await?;
    let owners = answered_for(c, owner).await?;
    Ok(Enrolled { instance: instance.to_owned(), enrolment: Enrolment { epoch, owner }, owners, in_doubt: false })
}

async fn answered_for(c: &mut PgConnection, owner: i32) -> Result<Arc<[i32]>, StoreError> {
    let rows =
        sqlx::query("SELECT owner FROM owners WHERE owner = $1 OR adopted_by = $1").bind(owner).fetch_all(c).await?;
    Ok(rows.iter().map(|row| row.try_get("owner")).collect::<Result<_, _>>()?)
}

/// Everybody: whoever has open legs has a row.
pub(super) async fn all(c: &mut PgConnection) -> Result<Arc<[i32]>, StoreError> {
    let rows = sqlx::query("SELECT owner FROM owners").fetch_all(c).await?;
    Ok(rows.iter().map(|row| row.try_get("owner")).collect::<Result<_, _>>()?)
}

/// What it found, and whom this one answers for now.
pub(super) async fn renew(
    c: &mut PgConnection,
    this: &Enrolled,
    lease: Duration,
) -> Result<(Renewal, Arc<[i32]>), StoreError> {
    let renewal = prolong(c, this, lease).await?;
    Ok((renewal, answered_for(c, this.enrolment.owner).await?))
}

async fn prolong(c: &mut PgConnection, this: &Enrolled, lease: Duration) -> Result<Renewal, StoreError> {
    let Enrolment { epoch, owner } = this.enrolment;
    let row = sqlx::query(
        "SELECT lease_until > clock_timestamp() AS unbroken FROM owners \
         WHERE owner = $1 AND adopted_by IS NULL AND lease_until > '-infinity' FOR UPDATE",
    )
    .bind(owner)
    .fetch_optional(&mut *c)
    .await?;
    let Some(row) = row else {
        let row = sqlx::query("SELECT epoch > $2 AS later FROM instance WHERE id = $1")
            .bind(&this.instance)
            .bind(epoch)
            .fetch_one(c)
            .await?;
        return Ok(if row.try_get("later")? { Renewal::Replaced } else { Renewal::Lost });
    };
    sqlx::query("UPDATE owners SET lease_until = clock_timestamp() + $2 * interval '1 ms' WHERE owner = $1")
        .bind(owner)
        .bind(ms(lease))
        .execute(&mut *c)
        .await?;
    if !row.try_get::<bool, _>("unbroken")? {
        // After an outage every lease has ended: the others may renew theirs first.
        return Ok(Renewal::Held { adopted: 0 });
    }
    let row =
        sqlx::query("SELECT adopt_owners($1, clock_timestamp()) AS adopted").bind(owner).fetch_one(&mut *c).await?;
    let adopted: i32 = row.try_get("adopted")?;
    // Adopted ones commit nothing any more: what is settled stays settled.
    sqlx::query(
        "DELETE FROM owners AS o WHERE o.adopted_by = $1 AND NOT EXISTS ( \
           SELECT 1 FROM unnest(ARRAY[1, 2, 3]::smallint[]) AS b(broker) JOIN legs AS l \
             ON l.broker = b.broker AND l.owner = o.owner AND l.state IN (0, 3))",
    )
    .bind(owner)
    .execute(c)
    .await?;
    Ok(Renewal::Held { adopted: adopted.unsigned_abs() })
}

/// Ends the lease: others may take over at once.
pub(super) async fn resign(c: &mut PgConnection, owner: i32) -> Result<(), StoreError> {
    sqlx::query("UPDATE owners SET lease_until = '-infinity' WHERE owner = $1 AND adopted_by IS NULL")
        .bind(owner)
        .execute(&mut *c)
        .await?;
    sqlx::query("DELETE FROM duties WHERE owner = $1").bind(owner).execute(c).await?;
    Ok(())
}

pub(super) async fn take_duty(c: &mut PgConnection, owner: i32, duty: Duty) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "INSERT INTO duties AS d (name, owner, lease_until) \
         VALUES ($1, $2, clock_timestamp() + $3 * interval '1 ms') \
         ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, lease_until = excluded.lease_until \
           WHERE d.owner = excluded.owner OR d.lease_until < clock_timestamp() \
             OR NOT EXISTS (SELECT 1 FROM owners AS o WHERE o.owner = d.owner AND o.adopted_by IS NULL) \
         RETURNING owner",
    )
    .bind(duty.name)
    .bind(owner)
    .bind(ms(duty.lease))
    .fetch_optional(c)
    .await?;
    Ok(row.is_some())
}
