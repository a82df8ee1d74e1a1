//! Standard errors of gains by a residual bootstrap: the model plus resampled residuals, solved again.

use super::super::complex::Complex;
use super::super::error::AgentError;
use super::super::random::SplitMix64;
use super::solve::{Settings, Solution, predict, solve};
use super::visibilities::Visibility;

/// Standard errors per antenna: of the amplitude, and of the phase in radians.
pub(super) struct Errors {
    pub amplitude: Vec<f64>,
    pub phase: Vec<f64>,
}

/// Solves `samples` resampled data sets (at least 2); `each` is called after every one.
pub(super) fn standard_errors(
    rows: &[Visibility],
    solution: &Solution,
    settings: &Settings,
    samples: usize,
    random: &mut SplitMix64,
    mut each: impl FnMut() -> Result<(), AgentError>,
) -> Result<Errors, AgentError> {
    let predicted: Vec<Complex> = rows.iter().map(|row| predict(row, &solution.gains)).collect();
    // The fit took up some of the scatter: a complex parameter an antenna.
    let fitted = solution.gains.iter().filter(|gain| gain.norm_sqr() > 0.0).count();
    let inflation = (rows.len() as f64 / rows.len().saturating_sub(fitted).max(1) as f64).sqrt();
    let residuals: Vec<Complex> = rows
        .iter()
        .zip(&predicted)
        .map(|(row, &predicted)| (row.observed - predicted).scale(inflation / row.sigma))
        .collect();

    let mut amplitude_square = vec![0.0; settings.antennas];
    let mut phase_square = vec![0.0; settings.antennas];
    let mut observed = predicted.clone();
    for _ in 0..samples {
        for ((observed, row), &predicted) in observed.iter_mut().zip(rows).zip(&predicted) {
            *observed = predicted + residuals[random.index(residuals.len())].scale(row.sigma);
        }
        let sample = solve(rows, &observed, Some(&solution.gains), settings);
        for (antenna, (&gain, &centre)) in sample.gains.iter().zip(&solution.gains).enumerate() {
            amplitude_square[antenna] += (gain.abs() - centre.abs()).powi(2);
            phase_square[antenna] += (gain * centre.conj()).arg().powi(2);
        }
        each()?;
    }
    let root = |squares: Vec<f64>| squares.into_iter().map(|square| (square / samples as f64).sqrt()).collect();
    Ok(Errors { amplitude: root(amplitude_square), phase: root(phase_square) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `n` equal antennas of gain 1, `times` times and a model of 1 Jy, the amplitude of one
    /// gain has, to first order, the variance sigma²/((n - 2) times) · (1 - 1/(2(n - 1))).
    #[test]
    fn errors_match_the_analytic_ones() {
        let (n, times, sigma) = (8, 40, 0.2);
        let mut random = SplitMix64::new(21);
        let mut rows = Vec::new();
        for time in 0..times {
            for p in 0..n {
                for q in p + 1..n {
                    let model = Complex::new(1.0, 0.0);
                    let observed = model + random.normal_pair().scale(sigma);
                    rows.push(Visibility { time, p, q, observed, model, sigma });
                }
            }
        }
        let settings = Settings { antennas: n, reference: 0, max_iterations: 100, tolerance: 1e-8, robust: false };
        let observed: Vec<Complex> = rows.iter().map(|row| row.observed).collect();
        let solution = solve(&rows, &observed, None, &settings);
        let errors = standard_errors(&rows, &solution, &settings, 600, &mut random, || Ok(())).unwrap();
        let expected = sigma * ((1.0 - 1.0 / (2.0 * (n - 1) as f64)) / ((n - 2) as f64 * times as f64)).sqrt();
        for &error in &errors.amplitude {
            assert!((error / expected - 1.0).abs() < 0.15, "{error} {expected}");
        }
        // Phases are relative to the reference: two antennas' errors, the reference has none.
        assert!(errors.phase[0] < 1e-12 && errors.phase[1] > expected, "{:?}", errors.phase);
    }
}
