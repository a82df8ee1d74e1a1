//! Visibilities of a calibrator seen through antennas with known gains.

use std::f64::consts::TAU;
use std::fmt::Write;

use super::super::complex::Complex;
use super::super::random::SplitMix64;
use super::Generated;

/// What the visibilities were made with.
pub(in super::super) struct CalibrationTruth {
    /// Gain per timestamp and antenna, phase zero at antenna 0.
    pub gains: Vec<Vec<Complex>>,
    /// Number of visibilities hit by interference.
    pub outliers: usize,
}

struct Observation {
    seed: u64,
    antennas: usize,
    timestamps: usize,
    /// Noise of each component, in Jy.
    sigma: f64,
    /// Largest change of a phase over the observation, in radians.
    drift: f64,
    dead: Option<usize>,
    /// Every so many visibilities one is hit by interference; 0 for none.
    outlier_every: usize,
    /// A second source of this flux makes the model vary over the (u, v) plane.
    companion_jy: f64,
}

const FLUX_JY: f64 = 3.2;
const INTEGRATION_S: f64 = 10.0;

pub(in super::super) fn datasets() -> Vec<Generated<CalibrationTruth>> {
    let plain = Observation {
        seed: 101,
        antennas: 10,
        timestamps: 24,
        sigma: 0.25,
        drift: 0.0,
        dead: None,
        outlier_every: 83,
        companion_jy: 0.0,
    };
    vec![
        plain.observe(
            "alpha-cal/point-source-10ant.csv",
            "Point source of 3.2 Jy, 10 antennas, 24 integrations of 10 s, constant gains; about one visibility in 80 \
             is hit by interference.",
        ),
        Observation {
            seed: 102,
            antennas: 8,
            timestamps: 32,
            sigma: 0.15,
            drift: 1.2,
            outlier_every: 0,
            companion_jy: 1.1,
            ..plain
        }
        .observe(
            "alpha-cal/drifting-phase-8ant.csv",
            "Two sources, 8 antennas, 32 integrations; phases drift by up to 70 degrees, so try a solution interval \
             of 4.",
        ),
        Observation { seed: 103, antennas: 12, timestamps: 16, sigma: 0.4, dead: Some(7), ..plain }.observe(
            "alpha-cal/dead-antenna-12ant.csv",
            "Point source of 3.2 Jy, 12 antennas of which antenna 7 receives no signal, 16 noisier integrations.",
        ),
    ]
}

impl Observation {
    fn observe(&self, id: &'static str, description: &'static str) -> Generated<CalibrationTruth> {
        let mut random = SplitMix64::new(self.seed);
        let antennas: Vec<Antenna> = (0..self.antennas).map(|index| self.antenna(index, &mut random)).collect();
        let mut contents = format!(
            "# {description}\n\
             # Made by `event-gateway agent generate-datasets`: simulated, V = g1 M conj(g2) + noise.\n\
             # Fluxes in Jy; sigma is the noise of the real and of the imaginary part.\n\
             time_s,antenna_1,antenna_2,vis_re,vis_im,model_re,model_im,sigma\n"
        );
        let mut truth = CalibrationTruth { gains: Vec::new(), outliers: 0 };
        let mut row = 0;
        for step in 0..self.timestamps {
            let elapsed = step as f64 / (self.timestamps - 1) as f64;
            let gains: Vec<Complex> = antennas
                .iter()
                .map(|antenna| Complex::polar(antenna.amplitude, antenna.phase + antenna.drift * (elapsed - 0.5)))
                .collect();
            for p in 0..self.antennas {
                for q in p + 1..self.antennas {
                    let fringe = (antennas[p].place - antennas[q].place) * (1.0 + 0.2 * elapsed);
                    let model = Complex::new(FLUX_JY, 0.0) + Complex::polar(self.companion_jy, TAU * fringe);
                    let mut seen = gains[p] * model * gains[q].conj() + random.normal_pair().scale(self.sigma);
                    row += 1;
                    if self.outlier_every > 0 && row % self.outlier_every == 0 {
                        seen += Complex::polar(random.uniform(6.0, 15.0), random.uniform(0.0, TAU));
                        truth.outliers += 1;
                    }
                    writeln!(
                        contents,
                        "{},{p},{q},{:.4},{:.4},{:.4},{:.4},{}",
                        step as f64 * INTEGRATION_S,
                        seen.re,
                        seen.im,
                        model.re,
                        model.im,
                        self.sigma
                    )
                    .expect("a string takes everything");
                }
            }
            truth.gains.push(gains);
        }
        Generated { id, description, contents, truth }
    }

    fn antenna(&self, index: usize, random: &mut SplitMix64) -> Antenna {
        let mut antenna = Antenna {
            amplitude: random.uniform(0.6, 1.5),
            phase: random.uniform(-TAU / 2.0, TAU / 2.0),
            drift: random.uniform(-self.drift, self.drift),
            place: random.uniform(0.0, 2.0),
        };
        if index == 0 {
            (antenna.phase, antenna.drift) = (0.0, 0.0);
        }
        if self.dead == Some(index) {
            antenna.amplitude = 0.0;
        }
        antenna
    }
}

struct Antenna {
    amplitude: f64,
    phase: f64,
    drift: f64,
    /// Along the companion's fringe, in fringes.
    place: f64,
}
