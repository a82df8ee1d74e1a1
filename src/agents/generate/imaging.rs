//! Visibilities of point sources over time and frequency, with injected interference.

use std::collections::HashSet;
use std::f64::consts::{PI, TAU};
use std::fmt::Write;

use super::super::complex::Complex;
use super::super::random::SplitMix64;
use super::Generated;

/// What the visibilities were made with.
#[cfg_attr(not(test), expect(dead_code, reason = "only tests compare with the truth"))]
pub(in super::super) struct ImagingTruth {
    /// Flux in Jy, east and north of the phase centre in arcsec; the brightest first.
    pub sources: Vec<(f64, f64, f64)>,
    /// Cells (timestamp, channel) with interference, on every baseline.
    pub interference: HashSet<(usize, usize)>,
    pub timestamps: usize,
}

struct Observation {
    seed: u64,
    antennas: usize,
    timestamps: usize,
    sources: &'static [(f64, f64, f64)],
    interference: &'static [Interference],
}

/// A block of interference in the time-frequency plane, of a mean amplitude in Jy.
struct Interference {
    times: std::ops::Range<usize>,
    channels: std::ops::Range<usize>,
    jy: f64,
}

const CHANNELS: usize = 24;
const FIRST_MHZ: f64 = 1400.0;
const WIDTH_MHZ: f64 = 2.0;
const SPEED_OF_LIGHT: f64 = 299_792_458.0;
const ARCSEC: f64 = PI / 180.0 / 3600.0;
/// Noise of each component, in Jy.
const SIGMA: f64 = 0.4;
const DECLINATION: f64 = 0.7;
/// Stations are spread over a disc of this radius, in metres.
const RADIUS_M: f64 = 500.0;
const INTEGRATION_S: f64 = 300.0;
const SIDEREAL_DAY_S: f64 = 86_164.1;

pub(in super::super) fn datasets() -> Vec<Generated<ImagingTruth>> {
    vec![
        Observation {
            seed: 201,
            antennas: 7,
            timestamps: 16,
            sources: &[(2.0, 240.0, -150.0)],
            interference: &[
                Interference { times: 0..16, channels: 5..6, jy: 12.0 },
                Interference { times: 9..10, channels: 0..24, jy: 30.0 },
                Interference { times: 2..6, channels: 15..18, jy: 8.0 },
            ],
        }
        .observe(
            "image-reconstruction/strong-rfi-7ant.csv",
            "One source of 2 Jy, 7 antennas, 24 channels at 1.4 GHz; a persistent line, a broadband burst and a \
             moving transmitter far brighter than the source.",
        ),
        Observation {
            seed: 202,
            antennas: 6,
            timestamps: 20,
            sources: &[(1.5, -310.0, 95.0), (0.4, -120.0, 210.0)],
            interference: &[
                Interference { times: 4..18, channels: 19..20, jy: 4.0 },
                Interference { times: 11..15, channels: 7..11, jy: 4.5 },
            ],
        }
        .observe(
            "image-reconstruction/weak-rfi-6ant.csv",
            "Sources of 1.5 and 0.4 Jy, 6 antennas, 24 channels at 1.4 GHz; interference only a few times as bright \
             as the sources.",
        ),
        Observation { seed: 203, antennas: 6, timestamps: 12, sources: &[(1.0, 60.0, 420.0)], interference: &[] }
            .observe(
                "image-reconstruction/quiet-6ant.csv",
                "One source of 1 Jy, 6 antennas, 24 channels at 1.4 GHz, no interference: next to nothing should be \
             flagged.",
            ),
    ]
}

impl Observation {
    fn observe(&self, id: &'static str, description: &'static str) -> Generated<ImagingTruth> {
        let mut random = SplitMix64::new(self.seed);
        let stations: Vec<(f64, f64)> = (0..self.antennas)
            .map(|_| {
                let (radius, angle) = (RADIUS_M * random.uniform(0.0, 1.0).sqrt(), random.uniform(0.0, TAU));
                (radius * angle.cos(), radius * angle.sin())
            })
            .collect();
        let mut contents = format!(
            "# {description}\n\
             # Made by `event-gateway agent generate-datasets`: simulated, V = sum of S exp(-2 pi i (u l + v m)) + noise.\n\
             # Visibilities in Jy; u_m and v_m are the baseline in metres; l points east, m north.\n\
             # first_channel_mhz: {FIRST_MHZ}\n\
             # channel_width_mhz: {WIDTH_MHZ}\n\
             time_s,antenna_1,antenna_2,u_m,v_m"
        );
        (0..CHANNELS).for_each(|channel| contents.push_str(&format!(",ch{channel}_re,ch{channel}_im")));
        contents.push('\n');
        for step in 0..self.timestamps {
            let time = INTEGRATION_S * step as f64;
            let hour_angle = TAU * (time - 0.5 * INTEGRATION_S * self.timestamps as f64) / SIDEREAL_DAY_S;
            for p in 0..self.antennas {
                for q in p + 1..self.antennas {
                    let baseline = (stations[p].0 - stations[q].0, stations[p].1 - stations[q].1);
                    // As written to the file: the visibilities belong to these coordinates exactly.
                    let (u, v) = project(baseline, hour_angle);
                    let (u, v) = ((u * 100.0).round() / 100.0, (v * 100.0).round() / 100.0);
                    write!(contents, "{time},{p},{q},{u:.2},{v:.2}").expect("a string takes everything");
                    for channel in 0..CHANNELS {
                        let mut seen = self.sky(u, v, channel) + random.normal_pair().scale(SIGMA);
                        for block in self.interference.iter().filter(|block| block.covers(step, channel)) {
                            let jy = block.jy * random.uniform(0.7, 1.4);
                            seen += Complex::polar(jy, random.uniform(0.0, TAU));
                        }
                        write!(contents, ",{:.2},{:.2}", seen.re, seen.im).expect("a string takes everything");
                    }
                    contents.push('\n');
                }
            }
        }
        Generated { id, description, contents, truth: self.truth() }
    }

    fn sky(&self, u: f64, v: f64, channel: usize) -> Complex {
        let wavelength = SPEED_OF_LIGHT / (1e6 * (FIRST_MHZ + WIDTH_MHZ * channel as f64));
        self.sources.iter().fold(Complex::ZERO, |sum, &(flux, east, north)| {
            sum + Complex::polar(flux, -TAU * ARCSEC * (u * east + v * north) / wavelength)
        })
    }

    fn truth(&self) -> ImagingTruth {
        let cells = (0..self.timestamps).flat_map(|time| (0..CHANNELS).map(move |channel| (time, channel)));
        ImagingTruth {
            sources: self.sources.to_vec(),
            interference: cells
                .filter(|&(time, channel)| self.interference.iter().any(|block| block.covers(time, channel)))
                .collect(),
            timestamps: self.timestamps,
        }
    }
}

impl Interference {
    fn covers(&self, time: usize, channel: usize) -> bool {
        self.times.contains(&time) && self.channels.contains(&channel)
    }
}

/// (u, v) in metres of a baseline given east and north, for an array at the latitude that equals
/// the declination: at transit the source is at the zenith.
fn project((east, north): (f64, f64), hour_angle: f64) -> (f64, f64) {
    let (sin_dec, cos_dec) = DECLINATION.sin_cos();
    let (sin_hour, cos_hour) = hour_angle.sin_cos();
    // Equatorial components: x towards the meridian, y east, z towards the pole.
    let (x, y, z) = (-sin_dec * north, east, cos_dec * north);
    let u = sin_hour * x + cos_hour * y;
    let v = -sin_dec * cos_hour * x + sin_dec * sin_hour * y + cos_dec * z;
    (u, v)
}
