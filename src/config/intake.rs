use bytesize::ByteSize;

use super::setting::{Check, Checks, settings};

settings! {
    /// The queue in front of the store, and the commits that empty it.
    pub struct Intake in "intake" {
        /// Memory of all requests that wait to be committed. Full: 503 with Retry-After.
        max_bytes: ByteSize = "64MiB",
        /// Rows gathered into one commit.
        batch_rows: usize = "2048",
    }
}

impl Check for Intake {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.within("intake.max_bytes", self.max_bytes, ByteSize::mib(1)..=ByteSize::gib(16));
        checks.within("intake.batch_rows", self.batch_rows, 1..=10_000);
    }
}
