//! What the SQL adapters share: which error means what.

use sqlx::error::ErrorKind;
use sqlx::postgres::PgDatabaseError;

use super::StoreError;

const SERIALIZATION_FAILURE: &str = "40001";
const DEADLOCK: &str = "40P01";
/// Raised by `hold_ownership`.
const LEASE_LOST: &str = "EG001";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => {
                let constraint = matches!(
                    database.kind(),
                    ErrorKind::UniqueViolation
                        | ErrorKind::ForeignKeyViolation
                        | ErrorKind::NotNullViolation
                        | ErrorKind::CheckViolation
                );
                // PostgreSQL: 22 data exception, 23 integrity constraint violation, 54 program limit exceeded
                // (as by a text that is too long for an index).
                let code = database.try_downcast_ref::<PgDatabaseError>().map_or("", |error| error.code());
                match code {
                    _ if constraint || ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                        Self::Data(error.to_string())
                    }
                    SERIALIZATION_FAILURE | DEADLOCK => Self::Conflict(error.to_string()),
                    LEASE_LOST => Self::LeaseLost(error.to_string()),
                    _ => Self::Unavailable(error.to_string()),
                }
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                Self::Corrupt(error.to_string())
            }
            sqlx::Error::Encode(_) => Self::Data(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}
