//! A dirty image by direct Fourier sum, and the figures read from it.
//!
//! `V(u, v) = Σ S exp(-2πi (u l + v m))`, so `I(l, m) = Σ w Re[V exp(+2πi (u l + v m))] / Σ w`;
//! l points east, m north.

use std::collections::HashMap;
use std::f64::consts::{LN_2, PI, TAU};

use super::super::complex::Complex;
use super::super::error::AgentError;
use super::super::robust::median_and_sigma;

pub(super) const ARCSEC: f64 = PI / 180.0 / 3600.0;

/// One visibility in Jy at (u, v) in wavelengths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub u: f64,
    pub v: f64,
    pub visibility: Complex,
    pub weight: f64,
}

/// A square image and the point spread function, row by row from the north, each row from the east.
pub(super) struct Image {
    pub size: usize,
    /// Side of a pixel, in radians.
    pub cell: f64,
    /// In Jy/beam.
    pub dirty: Vec<f64>,
    /// 1 at its centre.
    pub beam: Vec<f64>,
}

/// Main lobe of the point spread function as a Gaussian of the same curvature.
pub(super) struct Beam {
    /// Full widths at half maximum, in radians.
    pub major: f64,
    pub minor: f64,
    /// Position angle of the major axis from north through east, in radians.
    pub angle: f64,
}

pub(super) struct Peak {
    /// In Jy/beam.
    pub value: f64,
    /// East and north of the phase centre, in radians, interpolated between pixels.
    pub l: f64,
    pub m: f64,
}

/// Weights each sample by one over the number of samples in its cell of a grid of `spacing`
/// wavelengths, which evens out the coverage of the plane (uniform weighting).
pub(super) fn weigh_uniformly(samples: &mut [Sample], spacing: f64) {
    // (u, v) and (-u, -v) carry the same information: both count for one half plane.
    let cell = |sample: &Sample| {
        let sign = if sample.u < 0.0 || (sample.u == 0.0 && sample.v < 0.0) { -1.0 } else { 1.0 };
        ((sign * sample.u / spacing).round() as i64, (sign * sample.v / spacing).round() as i64)
    };
    let mut counts: HashMap<(i64, i64), f64> = HashMap::new();
    samples.iter().for_each(|sample| *counts.entry(cell(sample)).or_default() += 1.0);
    samples.iter_mut().for_each(|sample| sample.weight = 1.0 / counts[&cell(sample)]);
}

/// Sums all samples into every pixel; `each_row` hears how many rows are done.
pub(super) fn dirty_image(
    samples: &[Sample],
    size: usize,
    cell: f64,
    mut each_row: impl FnMut(usize) -> Result<(), AgentError>,
) -> Result<Image, AgentError> {
    let mut image = Image { size, cell, dirty: vec![0.0; size * size], beam: vec![0.0; size * size] };
    let total: f64 = samples.iter().map(|sample| sample.weight).sum();
    for row in 0..size {
        let (_, m) = image.position(0.0, row as f64);
        let dirty = &mut image.dirty[row * size..(row + 1) * size];
        let beam = &mut image.beam[row * size..(row + 1) * size];
        let (east, _) = position(size, cell, 0.0, 0.0);
        for sample in samples {
            let weight = sample.weight / total;
            let visibility = sample.visibility;
            // From pixel to pixel westward the fringe turns by the same angle.
            let turn = Complex::polar(1.0, -TAU * sample.u * cell);
            let mut fringe = Complex::polar(weight, TAU * (sample.u * east + sample.v * m));
            for (dirty, beam) in dirty.iter_mut().zip(beam.iter_mut()) {
                *dirty += visibility.re * fringe.re - visibility.im * fringe.im;
                *beam += fringe.re;
                fringe = fringe * turn;
            }
        }
        each_row(row + 1)?;
    }
    Ok(image)
}

/// Gaussian main lobe from the second moments of the (u, v) coverage.
pub(super) fn fit_beam(samples: &[Sample]) -> Beam {
    let total: f64 = samples.iter().map(|sample| sample.weight).sum();
    let moment = |of: fn(&Sample) -> f64| samples.iter().map(|sample| sample.weight * of(sample)).sum::<f64>() / total;
    let (uu, vv, uv) = (moment(|s| s.u * s.u), moment(|s| s.v * s.v), moment(|s| s.u * s.v));
    // Near its centre the beam is 1 - 2π² xᵀ C x with the moments C: widest along the smallest one.
    let (mean, half_range) = (0.5 * (uu + vv), (0.25 * (uu - vv).powi(2) + uv * uv).sqrt());
    let width = |eigenvalue: f64| (2.0 * LN_2 / eigenvalue).sqrt() / PI;
    // The widest direction is perpendicular to the largest moment's, which makes half the angle
    // below with the u axis; counted from north through east that is its negative.
    let angle = (-0.5 * (2.0 * uv).atan2(uu - vv)).rem_euclid(PI);
    Beam { major: width(mean - half_range), minor: width(mean + half_range), angle }
}

impl Image {
    /// (l, m) in radians of a pixel, fractions allowed.
    fn position(&self, column: f64, row: f64) -> (f64, f64) {
        position(self.size, self.cell, column, row)
    }

    /// The brightest pixel, refined by parabolas through its neighbours.
    pub fn peak(&self) -> Peak {
        let size = self.size;
        let at = (0..self.dirty.len()).max_by(|&a, &b| self.dirty[a].total_cmp(&self.dirty[b])).unwrap_or(0);
        let (row, column) = (at / size, at % size);
        let inner = 1..size - 1;
        let centre = self.dirty[at];
        if !inner.contains(&row) || !inner.contains(&column) {
            let (l, m) = self.position(column as f64, row as f64);
            return Peak { value: centre, l, m };
        }
        let (dx, gain_x) = vertex(self.dirty[at - 1], centre, self.dirty[at + 1]);
        let (dy, gain_y) = vertex(self.dirty[at - size], centre, self.dirty[at + size]);
        let (l, m) = self.position(column as f64 + dx, row as f64 + dy);
        Peak { value: centre + gain_x + gain_y, l, m }
    }

    /// Standard deviation of the image, and the same from the median absolute deviation.
    pub fn noise(&self) -> (f64, f64) {
        let n = self.dirty.len() as f64;
        let mean = self.dirty.iter().sum::<f64>() / n;
        let variance = self.dirty.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        (variance.sqrt(), median_and_sigma(&mut self.dirty.clone()).1)
    }

    /// Largest absolute value of the beam beyond `radius` radians from its centre.
    pub fn peak_sidelobe(&self, radius: f64) -> f64 {
        (0..self.beam.len())
            .filter(|at| {
                let (l, m) = self.position((at % self.size) as f64, (at / self.size) as f64);
                l.hypot(m) > radius
            })
            .map(|at| self.beam[at].abs())
            .fold(0.0, f64::max)
    }
}

fn position(size: usize, cell: f64, column: f64, row: f64) -> (f64, f64) {
    let centre = (size / 2) as f64;
    ((centre - column) * cell, (centre - row) * cell)
}

/// Offset of the vertex of the parabola through three neighbours from the middle one, and how much
/// higher it is.
fn vertex(before: f64, middle: f64, after: f64) -> (f64, f64) {
    let curvature = before - 2.0 * middle + after;
    if curvature >= 0.0 {
        return (0.0, 0.0);
    }
    let offset = 0.5 * (before - after) / curvature;
    (offset, -0.25 * (before - after) * offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::random::SplitMix64;

    /// Noiseless samples of a point source at (l, m) radians.
    fn samples(flux: f64, l: f64, m: f64) -> Vec<Sample> {
        let mut random = SplitMix64::new(9);
        (0..400)
            .map(|_| {
                let spread = random.normal_pair();
                let (u, v) = (1500.0 * spread.re, 800.0 * spread.im);
                Sample { u, v, visibility: Complex::polar(flux, -TAU * (u * l + v * m)), weight: 1.0 }
            })
            .collect()
    }

    fn image(samples: &[Sample]) -> Image {
        dirty_image(samples, 64, 10.0 * ARCSEC, |_| Ok(())).unwrap()
    }

    #[test]
    fn a_point_source_appears_where_it_is_with_its_flux() {
        let (l, m) = (83.0 * ARCSEC, -127.0 * ARCSEC);
        let peak = image(&samples(2.5, l, m)).peak();
        assert!((peak.value - 2.5).abs() < 0.01, "{}", peak.value);
        assert!((peak.l - l).abs() < 0.5 * ARCSEC && (peak.m - m).abs() < 0.5 * ARCSEC);
    }

    #[test]
    fn every_pixel_is_the_fourier_sum() {
        let samples = samples(1.0, 50.0 * ARCSEC, 20.0 * ARCSEC);
        let image = image(&samples);
        for (column, row) in [(0, 0), (63, 5), (32, 32), (17, 60)] {
            let l = (32.0 - column as f64) * 10.0 * ARCSEC;
            let m = (32.0 - row as f64) * 10.0 * ARCSEC;
            let sum: f64 =
                samples.iter().map(|s| (s.visibility * Complex::polar(1.0, TAU * (s.u * l + s.v * m))).re).sum();
            assert!((image.dirty[row * 64 + column] - sum / 400.0).abs() < 1e-9);
        }
        assert!((image.beam[32 * 64 + 32] - 1.0).abs() < 1e-9);
    }

    /// A Gaussian coverage has a Gaussian beam: FWHM = sqrt(2 ln 2) / (π sigma).
    #[test]
    fn the_beam_of_gaussian_coverage_is_known() {
        let beam = fit_beam(&samples(1.0, 0.0, 0.0));
        let width = |sigma: f64| (2.0 * LN_2).sqrt() / (PI * sigma);
        assert!((beam.minor / width(1500.0) - 1.0).abs() < 0.1, "{}", beam.minor);
        assert!((beam.major / width(800.0) - 1.0).abs() < 0.1, "{}", beam.major);
        // Coverage is wide in u (east-west), so the beam is long in m (north-south): angle 0 or π.
        assert!(beam.angle.sin().abs() < 0.1, "{}", beam.angle);
    }

    #[test]
    fn the_beams_angle_runs_from_north_through_east() {
        // Coverage along u = -v: the beam is long along l = m, north-east.
        let line: Vec<Sample> = (-50..=50)
            .map(|k| Sample {
                u: 10.0 * f64::from(k),
                v: -10.0 * f64::from(k) + f64::from(k % 3),
                visibility: Complex::ZERO,
                weight: 1.0,
            })
            .collect();
        assert!((fit_beam(&line).angle - PI / 4.0).abs() < 0.01, "{}", fit_beam(&line).angle);
    }

    #[test]
    fn uniform_weights_count_mirrored_samples_together() {
        let sample = |u, v| Sample { u, v, visibility: Complex::ZERO, weight: 1.0 };
        let mut samples = [sample(100.0, 40.0), sample(-100.0, -40.0), sample(101.0, 41.0), sample(500.0, 0.0)];
        weigh_uniformly(&mut samples, 20.0);
        assert_eq!(samples.map(|sample| sample.weight), [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0]);
    }
}
