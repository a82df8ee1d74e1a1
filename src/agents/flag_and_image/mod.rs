//! ImageReconstruction: flags interference in visibilities and images what is left.

mod flag;
mod image;
mod spectra;

use serde_json::{Value, json};

use super::SampleAgent;
use super::contract::{Job, Reporter, figure};
use super::error::AgentError;
use super::params::{self, Kind, Params, Spec};
use flag::Plane;
use image::{ARCSEC, Image, Sample};
use spectra::Dataset;

pub(super) const AGENT: SampleAgent = SampleAgent {
    name: "ImageReconstruction",
    command: "flag-and-image",
    description: "Flags radio frequency interference in visibilities over time and frequency (SumThreshold), then \
        makes a dirty image of the rest by direct Fourier sum.",
    datasets: "image-reconstruction",
    params_schema: schema,
    run,
};

static PARAMS: &[Spec] = &[
    Spec {
        name: "threshold",
        title: "Flagging threshold",
        description: "Excess over the background at which a single cell is flagged, in robust standard deviations.",
        kind: Kind::Number { default: 6.0, minimum: 3.0, maximum: 50.0 },
    },
    Spec {
        name: "flag_iterations",
        title: "Flagging passes",
        description: "Passes of background and flagging; the threshold halves from pass to pass down to the one above.",
        kind: Kind::Integer { default: 3, minimum: 1, maximum: 10 },
    },
    Spec {
        name: "background_half_width",
        title: "Background half width",
        description: "The background is the median within this many cells in time and in frequency.",
        kind: Kind::Integer { default: 5, minimum: 1, maximum: 32 },
    },
    Spec {
        name: "image_size",
        title: "Image size",
        description: "Pixels along each side. The run time grows with its square.",
        kind: Kind::Integer { default: 512, minimum: 32, maximum: 2048 },
    },
    Spec {
        name: "oversampling",
        title: "Pixels per resolution element",
        description: "Pixels across one wavelength of the finest fringe; more of them show a smaller field in finer steps.",
        kind: Kind::Number { default: 4.0, minimum: 2.0, maximum: 16.0 },
    },
    Spec {
        name: "weighting",
        title: "Weighting",
        description: "natural: lowest noise. uniform: finest resolution.",
        kind: Kind::Choice { default: "natural", of: &["natural", "uniform"] },
    },
];

const SPEED_OF_LIGHT: f64 = 299_792_458.0;

fn schema() -> Value {
    params::schema("ImageReconstruction parameters", AGENT.description, PARAMS)
}

fn run(job: &Job, reporter: &mut Reporter<'_>) -> Result<Value, AgentError> {
    let params = Params::check(PARAMS, &job.params)?;
    reporter.progress(0.0, || "reading visibilities".into())?;
    let dataset = Dataset::parse(&job.read_dataset()?)?;

    reporter.phase(0.0, 0.1);
    let flags = flag_baselines(&dataset, &params, reporter)?;
    let mut samples = unflagged(&dataset, &flags);
    let longest = samples.iter().map(|sample| sample.u.hypot(sample.v)).fold(0.0, f64::max);
    if longest == 0.0 {
        let reason = "nothing to image: every visibility is flagged or has u = v = 0; a higher threshold flags less";
        return Err(AgentError::dataset(None, reason));
    }
    let size = params.count("image_size");
    let cell = 1.0 / (longest * params.number("oversampling"));
    if params.choice("weighting") == "uniform" {
        image::weigh_uniformly(&mut samples, 1.0 / (size as f64 * cell));
    }

    reporter.phase(0.1, 0.98);
    let image = image::dirty_image(&samples, size, cell, |rows| {
        reporter.progress(rows as f64 / size as f64, || format!("imaged {rows} of {size} rows"))
    })?;
    write_outputs(job, &dataset, &flags, &image)?;
    Ok(report(&dataset, &flags, &samples, &image))
}

/// Flags per baseline, `time * channels + channel`.
fn flag_baselines(
    dataset: &Dataset,
    params: &Params,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<Vec<bool>>, AgentError> {
    let settings = flag::Settings {
        threshold: params.number("threshold"),
        iterations: params.count("flag_iterations"),
        background_half_width: params.count("background_half_width"),
    };
    let count = dataset.baselines.len();
    let mut flags = Vec::with_capacity(count);
    for (index, baseline) in dataset.baselines.iter().enumerate() {
        let amplitudes: Vec<f64> = baseline.visibilities.iter().map(|visibility| visibility.abs()).collect();
        flags.push(flag::flag(&Plane { amplitudes: &amplitudes, channels: dataset.channels() }, &settings));
        let done = index + 1;
        reporter.progress(done as f64 / count as f64, || format!("flagged {done} of {count} baselines"))?;
    }
    Ok(flags)
}

fn unflagged(dataset: &Dataset, flags: &[Vec<bool>]) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(dataset.len());
    for (baseline, flags) in dataset.baselines.iter().zip(flags) {
        for (cell, &visibility) in baseline.visibilities.iter().enumerate().filter(|(cell, _)| !flags[*cell]) {
            let (u, v) = baseline.uv[cell / dataset.channels()];
            let wavelength = SPEED_OF_LIGHT / dataset.frequencies[cell % dataset.channels()];
            samples.push(Sample { u: u / wavelength, v: v / wavelength, visibility, weight: 1.0 });
        }
    }
    samples
}

/// `flags.csv` and `image.pgm`.
fn write_outputs(job: &Job, dataset: &Dataset, flags: &[Vec<bool>], image: &Image) -> Result<(), AgentError> {
    job.write_output("flags.csv", |file| {
        writeln!(file, "# flagged cells")?;
        writeln!(file, "time_s,antenna_1,antenna_2,channel")?;
        for (baseline, flags) in dataset.baselines.iter().zip(flags) {
            let (first, second) = baseline.antennas;
            for cell in (0..flags.len()).filter(|&cell| flags[cell]) {
                let (time, channel) = (baseline.times[cell / dataset.channels()], cell % dataset.channels());
                writeln!(file, "{time},{first},{second},{channel}")?;
            }
        }
        Ok(())
    })?;
    let lowest = image.dirty.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = image.dirty.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let step = if highest > lowest { (highest - lowest) / 65535.0 } else { 1.0 };
    job.write_output("image.pgm", |file| {
        writeln!(file, "P5")?;
        writeln!(file, "# dirty image, north up, east left, phase centre at column and row {}", image.size / 2)?;
        writeln!(file, "# pixel {:.6} arcsec, Jy/beam = {lowest:.9e} + {step:.9e} * value", image.cell / ARCSEC)?;
        writeln!(file, "{0} {0}\n65535", image.size)?;
        let pixels: Vec<u8> =
            image.dirty.iter().flat_map(|value| (((value - lowest) / step).round() as u16).to_be_bytes()).collect();
        file.write_all(&pixels)
    })
}

fn report(dataset: &Dataset, flags: &[Vec<bool>], samples: &[Sample], image: &Image) -> Value {
    let channels = dataset.channels();
    let mut by_channel = vec![0usize; channels];
    for flags in flags {
        (0..flags.len()).filter(|&cell| flags[cell]).for_each(|cell| by_channel[cell % channels] += 1);
    }
    let flagged: usize = by_channel.iter().sum();
    let per_channel = (dataset.len() / channels) as f64;
    let mut worst: Vec<usize> = (0..channels).filter(|&channel| by_channel[channel] > 0).collect();
    worst.sort_by_key(|&channel| std::cmp::Reverse(by_channel[channel]));
    worst.truncate(5);
    let worst: Vec<Value> = worst
        .into_iter()
        .map(|channel| {
            json!({
                "channel": channel,
                "frequency_mhz": figure(dataset.frequencies[channel] / 1e6),
                "flagged_fraction": figure(by_channel[channel] as f64 / per_channel),
            })
        })
        .collect();
    let (beam, peak, (rms, noise)) = (image::fit_beam(samples), image.peak(), image.noise());
    json!({
        "baselines": dataset.baselines.len(),
        "channels": channels,
        "visibilities": dataset.len(),
        "flagged": flagged,
        "flagged_fraction": figure(flagged as f64 / dataset.len() as f64),
        "most_flagged_channels": worst,
        "image_size": image.size,
        "pixel_arcsec": figure(image.cell / ARCSEC),
        "peak_jy_per_beam": figure(peak.value),
        "peak_east_arcsec": figure(peak.l / ARCSEC),
        "peak_north_arcsec": figure(peak.m / ARCSEC),
        "rms_jy_per_beam": figure(rms),
        "robust_rms_jy_per_beam": figure(noise),
        "beam": {
            "major_arcsec": figure(beam.major / ARCSEC),
            "minor_arcsec": figure(beam.minor / ARCSEC),
            "position_angle_deg": figure(beam.angle.to_degrees()),
            "peak_sidelobe": figure(image.peak_sidelobe(beam.major)),
        },
        "files": ["flags.csv", "image.pgm"],
    })
}
