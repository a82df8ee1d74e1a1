//! The delays before something that failed is tried again.

/// Before the retries of jobs, of failed deliveries and of refused messages, in
/// milliseconds; the last one repeats.
pub const RETRY_DELAYS_MS: [i64; 6] = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000];

/// The delay before retry number `n` (from 0), with `jitter` in 0..1 adding up to a fifth.
pub fn retry_delay_ms(n: u32, jitter: f64) -> i64 {
    let base = RETRY_DELAYS_MS[(n as usize).min(RETRY_DELAYS_MS.len() - 1)];
    base + (base as f64 * 0.2 * jitter.clamp(0.0, 1.0)) as i64
}
