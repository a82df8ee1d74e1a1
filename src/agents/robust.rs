//! Statistics that outliers do not move.

/// Standard deviation of a normal distribution over its median absolute deviation.
const MAD_TO_SIGMA: f64 = 1.482_602_218_505_602;

/// The median (mean of the two middle values for an even number), reordering `values`; 0 of none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    if values.is_empty() {
        return 0.0;
    }
    let even = values.len().is_multiple_of(2);
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    if even {
        let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        return 0.5 * (lower + upper);
    }
    upper
}

/// Median and standard deviation estimated from the median absolute deviation; destroys `values`.
pub(super) fn median_and_sigma(values: &mut [f64]) -> (f64, f64) {
    let centre = median(values);
    values.iter_mut().for_each(|value| *value = (*value - centre).abs());
    (centre, MAD_TO_SIGMA * median(values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::random::SplitMix64;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn sigma_is_that_of_the_bulk() {
        let mut random = SplitMix64::new(3);
        let mut values: Vec<f64> = (0..20_000).map(|_| 5.0 + 2.0 * random.normal()).collect();
        values.iter_mut().step_by(50).for_each(|value| *value = 1e6);
        let (centre, sigma) = median_and_sigma(&mut values);
        assert!((centre - 5.0).abs() < 0.1 && (sigma - 2.0).abs() < 0.1, "{centre} {sigma}");
        assert_eq!(median_and_sigma(&mut [1.0, 1.0, 4.0]), (1.0, 0.0));
    }
}
