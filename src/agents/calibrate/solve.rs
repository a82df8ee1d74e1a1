//! Antenna gains by alternating least squares (StEFCal; Salvini and Wijnholds 2014, A&A 571, A97),
//! inside iteratively reweighted least squares against outliers.
//!
//! The measurement equation is `V_pq = g_p M_pq conj(g_q) + noise`.

use super::super::complex::Complex;
use super::super::robust::median;
use super::visibilities::Visibility;

/// Huber weights: residuals beyond this many noise units count in proportion to 1/residual.
const HUBER_THRESHOLD: f64 = 3.0;
/// Median of |residual|/sigma for complex normal noise with `sigma` per component (Rayleigh).
const RAYLEIGH_MEDIAN: f64 = 1.177_410_022_515_474_7;
const REWEIGHTINGS: usize = 10;

#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub antennas: usize,
    pub reference: usize,
    pub max_iterations: usize,
    /// Relative change of the gains over two iterations at which they have converged.
    pub tolerance: f64,
    pub robust: bool,
}

pub(super) struct Solution {
    /// Gain per antenna, phase zero at the reference antenna; zero where an antenna has no data.
    pub gains: Vec<Complex>,
    /// Relative change of the gains after each second iteration, over all reweightings.
    pub changes: Vec<f64>,
    pub converged: bool,
    /// Weight of each visibility against outliers, 0 to 1.
    pub weights: Vec<f64>,
    /// Scatter of the residuals in units of the sigma the dataset declares, without outliers.
    pub noise_scale: f64,
}

/// Fits the gains to `rows`, observing `observed[i]` in place of the i-th visibility.
pub(super) fn solve(
    rows: &[Visibility],
    observed: &[Complex],
    start: Option<&[Complex]>,
    settings: &Settings,
) -> Solution {
    let mut weights = vec![1.0; rows.len()];
    let mut changes = Vec::new();
    let mut gains: Option<Vec<Complex>> = start.map(<[_]>::to_vec);
    let mut noise_scale = 1.0;
    let mut converged = false;
    for _ in 0..if settings.robust { REWEIGHTINGS } else { 1 } {
        let system = Baselines::accumulate(rows, observed, &weights, settings.antennas);
        let mut next = gains.take().unwrap_or_else(|| system.first_guess(settings.reference));
        let history = system.iterate(&mut next, settings);
        converged = history.last().is_some_and(|&change| change <= settings.tolerance);
        let moved = history.first().is_none_or(|&change| change > 10.0 * settings.tolerance);
        changes.extend(history);
        noise_scale = reweight(rows, observed, &next, settings.robust, &mut weights);
        gains = Some(next);
        if !moved {
            break;
        }
    }
    let mut gains = gains.unwrap_or_default();
    refer_phases(&mut gains, settings.reference);
    Solution { gains, changes, converged, weights, noise_scale }
}

/// `g_p M_pq conj(g_q)`: the visibility that gains predict.
pub(super) fn predict(row: &Visibility, gains: &[Complex]) -> Complex {
    gains[row.p] * row.model * gains[row.q].conj()
}

/// Gains are determined up to a common phase: makes that of the reference antenna zero.
fn refer_phases(gains: &mut [Complex], reference: usize) {
    let turn = Complex::polar(1.0, -gains[reference].arg());
    gains.iter_mut().for_each(|gain| *gain = *gain * turn);
    gains[reference].im = 0.0;
}

/// Sets the weights from the residuals and returns the residuals' scale.
fn reweight(rows: &[Visibility], observed: &[Complex], gains: &[Complex], robust: bool, weights: &mut [f64]) -> f64 {
    let residuals: Vec<f64> =
        rows.iter().zip(observed).map(|(row, &seen)| (seen - predict(row, gains)).abs() / row.sigma).collect();
    let scale = median(&mut residuals.clone()) / RAYLEIGH_MEDIAN;
    if robust {
        let limit = HUBER_THRESHOLD * scale;
        for (weight, &residual) in weights.iter_mut().zip(&residuals) {
            *weight = if residual <= limit { 1.0 } else { limit / residual };
        }
    }
    scale
}

/// The normal equations, summed per pair of antennas.
struct Baselines {
    antennas: usize,
    /// Sum of `w V_pq conj(M_pq)` at `p * antennas + q`; hermitian.
    data: Vec<Complex>,
    /// Sum of `w |M_pq|²`; symmetric.
    model: Vec<f64>,
}

impl Baselines {
    fn accumulate(rows: &[Visibility], observed: &[Complex], weights: &[f64], antennas: usize) -> Self {
        let mut data = vec![Complex::ZERO; antennas * antennas];
        let mut model = vec![0.0; antennas * antennas];
        for ((row, &seen), &weight) in rows.iter().zip(observed).zip(weights) {
            let weight = weight / (row.sigma * row.sigma);
            let product = (seen * row.model.conj()).scale(weight);
            data[row.p * antennas + row.q] += product;
            data[row.q * antennas + row.p] += product.conj();
            let power = weight * row.model.norm_sqr();
            model[row.p * antennas + row.q] += power;
            model[row.q * antennas + row.p] += power;
        }
        Self { antennas, data, model }
    }

    /// One common amplitude, and the phases seen against the reference antenna.
    fn first_guess(&self, reference: usize) -> Vec<Complex> {
        let power: f64 = self.model.iter().sum();
        let signal: f64 = self.data.iter().map(|value| value.abs()).sum();
        let amplitude = if power > 0.0 { (signal / power).sqrt() } else { 1.0 };
        (0..self.antennas).map(|p| Complex::polar(amplitude, self.data[p * self.antennas + reference].arg())).collect()
    }

    /// Solves for each gain with the others held, all at once, and averages every second iterate
    /// with the one before: without the average they oscillate. Returns the changes on the way.
    fn iterate(&self, gains: &mut Vec<Complex>, settings: &Settings) -> Vec<f64> {
        let mut changes = Vec::new();
        let mut before = gains.clone();
        let mut next = vec![Complex::ZERO; self.antennas];
        for iteration in 1..=settings.max_iterations {
            for (p, next) in next.iter_mut().enumerate() {
                let row = p * self.antennas..(p + 1) * self.antennas;
                let mut signal = Complex::ZERO;
                let mut power = 0.0;
                for ((&data, &model), &gain) in self.data[row.clone()].iter().zip(&self.model[row]).zip(&*gains) {
                    signal += data * gain;
                    power += model * gain.norm_sqr();
                }
                *next = if power > 0.0 { signal.scale(1.0 / power) } else { Complex::ZERO };
            }
            if iteration % 2 == 1 {
                std::mem::swap(gains, &mut next);
                continue;
            }
            for (gain, &next) in gains.iter_mut().zip(&next) {
                *gain = (*gain + next).scale(0.5);
            }
            let size: f64 = gains.iter().map(|gain| gain.norm_sqr()).sum();
            let change: f64 = gains.iter().zip(&before).map(|(&now, &then)| (now - then).norm_sqr()).sum();
            // No signal at all: the gains are zero, and stay so.
            let relative = if size > 0.0 { (change / size).sqrt() } else { 0.0 };
            changes.push(relative);
            if relative <= settings.tolerance {
                break;
            }
            before.copy_from_slice(gains);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::random::SplitMix64;

    const SETTINGS: Settings =
        Settings { antennas: 6, reference: 2, max_iterations: 500, tolerance: 1e-12, robust: false };

    fn gains() -> Vec<Complex> {
        [(1.0, 2.5), (0.7, -3.0), (1.3, 0.0), (1.1, 1.0), (0.9, -1.6), (1.6, 0.4)]
            .map(|(amplitude, phase)| Complex::polar(amplitude, phase))
            .to_vec()
    }

    /// Every baseline at `times` times, without noise.
    fn rows(gains: &[Complex], times: usize) -> Vec<Visibility> {
        let mut random = SplitMix64::new(11);
        let mut rows = Vec::new();
        for time in 0..times {
            for p in 0..gains.len() {
                for q in p + 1..gains.len() {
                    let model = Complex::polar(2.0, random.uniform(-3.0, 3.0));
                    let observed = gains[p] * model * gains[q].conj();
                    rows.push(Visibility { time, p, q, observed, model, sigma: 0.1 });
                }
            }
        }
        rows
    }

    fn fit(rows: &[Visibility], settings: &Settings) -> Solution {
        let observed: Vec<Complex> = rows.iter().map(|row| row.observed).collect();
        solve(rows, &observed, None, settings)
    }

    #[test]
    fn exact_data_give_the_exact_gains() {
        let solution = fit(&rows(&gains(), 3), &SETTINGS);
        assert!(solution.converged);
        for (fitted, truth) in solution.gains.iter().zip(gains()) {
            assert!((*fitted - truth).abs() < 1e-9, "{fitted:?} {truth:?}");
        }
        assert!(solution.changes.windows(2).all(|pair| pair[1] < pair[0]), "{:?}", solution.changes);
    }

    #[test]
    fn an_antenna_without_signal_gets_no_gain_and_harms_no_other() {
        let mut truth = gains();
        truth[4] = Complex::ZERO;
        let solution = fit(&rows(&truth, 2), &SETTINGS);
        for (fitted, truth) in solution.gains.iter().zip(truth) {
            assert!((*fitted - truth).abs() < 1e-9, "{fitted:?} {truth:?}");
        }
    }

    #[test]
    fn reweighting_resists_outliers_that_bias_plain_least_squares() {
        let mut data = rows(&gains(), 20);
        let mut random = SplitMix64::new(5);
        for (index, row) in data.iter_mut().enumerate() {
            row.observed += random.normal_pair().scale(0.1);
            if index % 25 == 0 {
                row.observed += Complex::new(40.0, 0.0);
            }
        }
        let worst = |solution: &Solution| {
            solution.gains.iter().zip(gains()).map(|(&fitted, truth)| (fitted - truth).abs()).fold(0.0, f64::max)
        };
        let plain = fit(&data, &SETTINGS);
        let robust = fit(&data, &Settings { robust: true, ..SETTINGS });
        assert!(worst(&robust) < 0.03 && worst(&plain) > 5.0 * worst(&robust), "{} {}", worst(&robust), worst(&plain));
        assert!((robust.noise_scale - 1.0).abs() < 0.15, "{}", robust.noise_scale);
        assert!(robust.weights.iter().step_by(25).all(|&weight| weight < 0.05));
    }

    #[test]
    fn too_few_iterations_are_reported_as_not_converged() {
        assert!(!fit(&rows(&gains(), 1), &Settings { max_iterations: 2, ..SETTINGS }).converged);
    }
}
