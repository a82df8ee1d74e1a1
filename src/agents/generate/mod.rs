//! Makes the datasets that ship with the binary, with known truth: the same bytes every time.
//!
//! The files below `datasets/` are this module's output, and a test holds them against it. Tests
//! of the agents run them on these files and compare what they find with the truth.

mod calibration;
mod imaging;
mod time_series;

use std::io;
use std::path::Path;

use super::datasets::{CATALOGUE_FILE, Catalogue, Entry};

#[cfg(test)]
pub(super) use calibration::CalibrationTruth;
#[cfg(test)]
pub(super) use imaging::ImagingTruth;
#[cfg(test)]
pub(super) use time_series::SeriesTruth;

/// A generated dataset.
pub(super) struct Generated<T> {
    pub id: &'static str,
    pub description: &'static str,
    pub contents: String,
    #[cfg_attr(not(test), expect(dead_code, reason = "the truth is for tests; nothing ships it"))]
    pub truth: T,
}

pub(super) use calibration::datasets as calibration_datasets;
pub(super) use imaging::datasets as imaging_datasets;
pub(super) use time_series::datasets as series_datasets;

/// Path below the datasets directory and contents of every file, the catalogue last.
pub fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut catalogue = Catalogue { datasets: Vec::new() };
    add("AlphaCal", calibration_datasets(), &mut files, &mut catalogue);
    add("ImageReconstruction", imaging_datasets(), &mut files, &mut catalogue);
    add("AnomalyDetection", series_datasets(), &mut files, &mut catalogue);
    let entries = toml::to_string(&catalogue).expect("strings are TOML");
    files.push((
        CATALOGUE_FILE.into(),
        format!("# The datasets of this directory and the agents that read them.\n\n{entries}"),
    ));
    files
}

fn add<T>(agent: &str, generated: Vec<Generated<T>>, files: &mut Vec<(String, String)>, catalogue: &mut Catalogue) {
    for dataset in generated {
        catalogue.datasets.push(Entry {
            id: dataset.id.into(),
            agent: agent.into(),
            description: dataset.description.into(),
        });
        files.push((dataset.id.into(), dataset.contents));
    }
}

/// Writes [`files`] into `dir`, replacing what is there.
pub fn write_to(dir: &Path) -> io::Result<()> {
    for (name, contents) in files() {
        let target = dir.join(name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(target, contents)?;
    }
    Ok(())
}
