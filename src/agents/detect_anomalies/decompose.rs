//! Robust seasonal decomposition: value = moving-median trend + median seasonal profile + residual,
//! and the score of a residual in robust standard deviations.

use super::super::robust::{median, median_and_sigma};

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Length of the season in samples; `None` for none.
    pub period: Option<f64>,
    /// Half of the trend's window, in samples.
    pub half_window: usize,
    /// Passes; each leaves out of trend and profile what the one before scored as anomalous.
    pub iterations: usize,
    /// Score from which a sample is anomalous.
    pub threshold: f64,
}

/// Per grid point; the score is `None` where the sample is missing.
pub(super) struct Decomposition {
    pub trend: Vec<f64>,
    pub seasonal: Vec<f64>,
    /// Residual over sigma.
    pub scores: Vec<Option<f64>>,
    /// Robust standard deviation of the residuals.
    pub sigma: f64,
}

pub(super) fn decompose(values: &[Option<f64>], settings: &Settings) -> Decomposition {
    let n = values.len();
    let mut result = Decomposition { trend: vec![0.0; n], seasonal: vec![0.0; n], scores: vec![None; n], sigma: 0.0 };
    let mut usable: Vec<Option<f64>> = values.to_vec();
    for iteration in 0..settings.iterations {
        // The first pass knows no season: only a window of whole seasons is then free of it, so at
        // the ends the window stays whole. Later passes can centre it as far as it reaches.
        let whole = iteration == 0 && settings.period.is_some();
        let without_season = subtract(&usable, &result.seasonal);
        result.trend = moving_median(&without_season, settings.half_window, whole);
        if let Some(period) = settings.period {
            result.seasonal = profile(&subtract(&usable, &result.trend), period);
        }
        let residuals = subtract(&subtract(values, &result.trend), &result.seasonal);
        result.sigma = median_and_sigma(&mut residuals.iter().flatten().copied().collect::<Vec<_>>()).1;
        let sigma = result.sigma;
        result.scores = residuals
            .iter()
            .map(|residual| residual.map(|residual| if sigma > 0.0 { residual / sigma } else { 0.0 }))
            .collect();
        for ((usable, value), score) in usable.iter_mut().zip(values).zip(&result.scores) {
            *usable = value.filter(|_| score.is_some_and(|score| score.abs() < settings.threshold));
        }
    }
    result
}

fn subtract(values: &[Option<f64>], level: &[f64]) -> Vec<Option<f64>> {
    values.iter().zip(level).map(|(value, level)| value.map(|value| value - level)).collect()
}

/// Median of the samples within `half` points; with `whole`, windows at the ends are shifted inward
/// instead of cut. A window without samples repeats the trend before it.
fn moving_median(values: &[Option<f64>], half: usize, whole: bool) -> Vec<f64> {
    let n = values.len();
    let mut window: Vec<f64> = Vec::with_capacity(2 * half + 1);
    let (mut first, mut end) = (0, 0);
    let mut level = median(&mut values.iter().flatten().copied().collect::<Vec<_>>());
    (0..n)
        .map(|at| {
            let centre =
                if whole { at.clamp(half.min(n - 1), n.saturating_sub(half + 1).max(half.min(n - 1))) } else { at };
            let (from, to) = (centre.saturating_sub(half), (centre + half + 1).min(n));
            // The window is kept sorted and slides: both ends only move forward.
            while end < to {
                if let Some(value) = values[end] {
                    let place = window.partition_point(|&other| other < value);
                    window.insert(place, value);
                }
                end += 1;
            }
            while first < from {
                if let Some(value) = values[first] {
                    let place = window.partition_point(|&other| other < value);
                    window.remove(place);
                }
                first += 1;
            }
            let middle = window.len() / 2;
            if !window.is_empty() {
                level =
                    if window.len() % 2 == 1 { window[middle] } else { 0.5 * (window[middle - 1] + window[middle]) };
            }
            level
        })
        .collect()
}

/// The median of each phase of the season, around zero, for every point.
fn profile(values: &[Option<f64>], period: f64) -> Vec<f64> {
    let bins = period.round().max(1.0) as usize;
    // The remainder is exact: a division would put some samples of a whole period one bin too low.
    let bin = |at: usize| ((at as f64 % period * (bins as f64 / period)) as usize).min(bins - 1);
    let mut phases: Vec<Vec<f64>> = vec![Vec::new(); bins];
    for (at, value) in values.iter().enumerate() {
        if let Some(value) = *value {
            phases[bin(at)].push(value);
        }
    }
    // Neighbours steady the median where phases are fine; coarse ones differ too much.
    let reach = usize::from(bins >= 48);
    let mut gathered = Vec::new();
    let mut levels: Vec<f64> = (0..bins)
        .map(|centre| {
            gathered.clear();
            for offset in 0..=2 * reach {
                gathered.extend_from_slice(&phases[(centre + bins + offset - reach) % bins]);
            }
            median(&mut gathered)
        })
        .collect();
    let mean = levels.iter().sum::<f64>() / bins as f64;
    levels.iter_mut().for_each(|level| *level -= mean);
    (0..values.len()).map(|at| levels[bin(at)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::random::SplitMix64;
    use std::f64::consts::TAU;

    const SETTINGS: Settings = Settings { period: Some(48.0), half_window: 24, iterations: 3, threshold: 5.0 };

    #[test]
    fn moving_median_of_a_small_series_is_known() {
        let values = [5.0, 1.0, 9.0, 2.0, 8.0].map(Some);
        assert_eq!(moving_median(&values, 1, false), [3.0, 5.0, 2.0, 8.0, 5.0]);
        assert_eq!(moving_median(&values, 1, true), [5.0, 5.0, 2.0, 8.0, 8.0]);
        assert_eq!(moving_median(&[Some(4.0), None, None, None, Some(6.0)], 1, false), [4.0, 4.0, 4.0, 6.0, 6.0]);
        assert_eq!(moving_median(&values, 40, true), [5.0; 5]);
    }

    #[test]
    fn trend_season_and_noise_are_separated() {
        let mut random = SplitMix64::new(4);
        let truth = |at: f64| (10.0 + 0.002 * at, 2.0 * (TAU * at / 48.0).sin());
        let values: Vec<Option<f64>> = (0..960)
            .map(|at| {
                let (trend, season) = truth(f64::from(at));
                (at % 97 != 0).then(|| trend + season + 0.1 * random.normal())
            })
            .collect();
        let result = decompose(&values, &SETTINGS);
        assert!((result.sigma - 0.1).abs() < 0.02, "{}", result.sigma);
        for (at, value) in values.iter().enumerate() {
            let (trend, season) = truth(at as f64);
            assert!((result.trend[at] - trend).abs() < 0.15, "trend at {at}: {}", result.trend[at]);
            assert!((result.seasonal[at] - season).abs() < 0.2, "season at {at}: {}", result.seasonal[at]);
            assert_eq!(result.scores[at].is_some(), value.is_some());
        }
    }

    #[test]
    fn an_anomaly_neither_bends_the_trend_nor_marks_the_season() {
        let mut random = SplitMix64::new(6);
        let mut values: Vec<Option<f64>> =
            (0..480).map(|at| Some((TAU * f64::from(at) / 48.0).cos() + 0.05 * random.normal())).collect();
        let quiet = decompose(&values, &SETTINGS);
        (200..212).for_each(|at| values[at] = values[at].map(|value| value + 3.0));
        let result = decompose(&values, &SETTINGS);
        assert!((200..212).all(|at| result.scores[at].unwrap() > 30.0));
        for at in 0..480 {
            let change = result.trend[at] + result.seasonal[at] - quiet.trend[at] - quiet.seasonal[at];
            assert!(change.abs() < 0.1, "{at}: {change}");
        }
    }

    #[test]
    fn a_constant_series_has_no_scores() {
        let result = decompose(&[Some(2.0); 100], &SETTINGS);
        assert!(result.sigma == 0.0 && result.scores.iter().all(|score| *score == Some(0.0)));
    }
}
