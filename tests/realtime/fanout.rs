//! Fan-out: written below.
