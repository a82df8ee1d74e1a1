//! From scores to events, and how likely noise alone makes one as strong.

use super::super::error::AgentError;
use super::super::random::SplitMix64;
use super::decompose::{Decomposition, Settings, decompose};

/// A run of anomalous samples on the grid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub first: usize,
    pub last: usize,
    pub peak: usize,
    /// Score at the peak, with its sign.
    pub score: f64,
    /// Samples at or beyond the threshold.
    pub samples: usize,
}

/// Merges samples at or beyond `threshold` that are at most `gap` samples apart.
pub(super) fn merge(scores: &[Option<f64>], threshold: f64, gap: usize) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let anomalous = scores
        .iter()
        .enumerate()
        .filter_map(|(at, score)| score.filter(|score| score.abs() >= threshold).map(|score| (at, score)));
    for (at, score) in anomalous {
        match events.last_mut() {
            Some(event) if at - event.last <= gap + 1 => {
                event.last = at;
                event.samples += 1;
                if score.abs() > event.score.abs() {
                    (event.peak, event.score) = (at, score);
                }
            }
            _ => events.push(Event { first: at, last: at, peak: at, score, samples: 1 }),
        }
    }
    events
}

/// Correlation of neighbouring residuals, without anomalies: an AR(1) coefficient.
pub(super) fn correlation(scores: &[Option<f64>], threshold: f64) -> f64 {
    let normal = |score: &Option<f64>| score.filter(|score| score.abs() < threshold);
    let (mut product, mut square) = (0.0, 0.0);
    for pair in scores.windows(2) {
        if let (Some(now), Some(next)) = (normal(&pair[0]), normal(&pair[1])) {
            product += now * next;
            square += 0.5 * (now * now + next * next);
        }
    }
    if square > 0.0 { (product / square).clamp(0.0, 0.98) } else { 0.0 }
}

/// The largest score of each of `simulations` series of the same trend, season and gaps whose noise
/// is Gaussian with the given correlation; sorted. `each` is called after every one.
pub(super) fn strongest_of_noise(
    values: &[Option<f64>],
    found: &Decomposition,
    correlation: f64,
    settings: &Settings,
    simulations: usize,
    random: &mut SplitMix64,
    mut each: impl FnMut() -> Result<(), AgentError>,
) -> Result<Vec<f64>, AgentError> {
    let innovation = (1.0 - correlation * correlation).sqrt();
    let mut strongest = Vec::with_capacity(simulations);
    let mut simulated = vec![None; values.len()];
    for _ in 0..simulations {
        let mut noise = random.normal();
        for (at, simulated) in simulated.iter_mut().enumerate() {
            *simulated = values[at].map(|_| found.trend[at] + found.seasonal[at] + found.sigma * noise);
            noise = correlation * noise + innovation * random.normal();
        }
        let scores = decompose(&simulated, settings).scores;
        strongest.push(scores.iter().flatten().map(|score| score.abs()).fold(0.0, f64::max));
        each()?;
    }
    strongest.sort_unstable_by(f64::total_cmp);
    Ok(strongest)
}

/// Probability that noise alone has a score this strong anywhere in the series: the part of the
/// simulations, counting the series itself as one.
pub(super) fn false_alarm_probability(strongest: &[f64], score: f64) -> f64 {
    let as_strong = strongest.len() - strongest.partition_point(|&noise| noise < score.abs());
    (1 + as_strong) as f64 / (1 + strongest.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_across_gaps_up_to_the_limit() {
        let scores = [0.0, 6.0, -8.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, -5.0].map(Some);
        assert_eq!(
            merge(&scores, 5.0, 2),
            [
                Event { first: 1, last: 5, peak: 2, score: -8.0, samples: 3 },
                Event { first: 9, last: 9, peak: 9, score: -5.0, samples: 1 },
            ]
        );
        assert_eq!(merge(&scores, 5.0, 0).len(), 3);
        assert_eq!(merge(&scores, 8.5, 0), []);
    }

    #[test]
    fn correlation_of_autoregressive_noise_is_recovered() {
        let mut random = SplitMix64::new(8);
        let mut noise = 0.0;
        let mut scores: Vec<Option<f64>> = (0..20_000)
            .map(|_| {
                noise = 0.6 * noise + 0.8 * random.normal();
                Some(noise)
            })
            .collect();
        scores.iter_mut().step_by(100).for_each(|score| *score = Some(40.0));
        assert!((correlation(&scores, 5.0) - 0.6).abs() < 0.03, "{}", correlation(&scores, 5.0));
    }

    /// The largest of n independent normal deviates is about sqrt(2 ln n).
    #[test]
    fn noise_is_as_strong_as_extreme_value_theory_says() {
        let values = vec![Some(0.0); 1000];
        let settings = Settings { period: None, half_window: 500, iterations: 1, threshold: 5.0 };
        let flat = Decomposition { trend: vec![7.0; 1000], seasonal: vec![0.0; 1000], scores: vec![], sigma: 2.0 };
        let mut random = SplitMix64::new(2);
        let strongest = strongest_of_noise(&values, &flat, 0.0, &settings, 200, &mut random, || Ok(())).unwrap();
        // Median of the largest |x| of 1000: 2 (1 - Φ(x)) = 1 - 0.5^(1/1000), x = 3.39.
        assert!((strongest[100] - 3.39).abs() < 0.15, "{}", strongest[100]);
        assert_eq!(false_alarm_probability(&strongest, -100.0), 1.0 / 201.0);
        assert_eq!(false_alarm_probability(&strongest, 0.0), 1.0);
    }
}
