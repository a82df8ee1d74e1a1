//! The datasets that ship with the binary and their catalogue.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rust_embed::RustEmbed;
use serde::{Deserialize, Serialize};

/// Name of the catalogue file in a datasets directory.
pub const CATALOGUE_FILE: &str = "catalogue.toml";

#[derive(RustEmbed)]
#[folder = "datasets/"]
struct Shipped;

/// `catalogue.toml`: what the files of a datasets directory are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(default, rename = "dataset")]
    pub datasets: Vec<Entry>,
}

/// One dataset of a catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Path below the datasets directory, with `/`.
    pub id: String,
    /// Name of the agent that reads it.
    pub agent: String,
    pub description: String,
}

impl Catalogue {
    /// Parses the text of a catalogue file; the error names line and field.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

/// Writes the shipped datasets and their catalogue into `dir`, which is created if need be. A file
/// that exists is left alone, whatever is in it; a new one appears whole or not at all.
pub fn install(dir: &Path) -> io::Result<()> {
    for name in Shipped::iter() {
        // In a debug build the folder is read at run time: editors leave their files there.
        if !(name.ends_with(".csv") || name == CATALOGUE_FILE) {
            continue;
        }
        let target = dir.join(&*name);
        if fs::symlink_metadata(&target).is_err()
            && let Some(file) = Shipped::get(&name)
        {
            write_new(&target, &file.data)?;
        }
    }
    Ok(())
}

/// Creates `target` with `contents` unless something of that name exists.
fn write_new(target: &Path, contents: &[u8]) -> io::Result<()> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(parent)?;
    let part = parent.join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()?;
        // Unlike a rename, a link never replaces a file that appeared meanwhile; not every file
        // system has links.
        match fs::hard_link(&part, target) {
            Ok(()) => fs::remove_file(&part),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&part),
            Err(_) => fs::rename(&part, target),
        }
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
    }
    written.map_err(|error| io::Error::new(error.kind(), format!("dataset {}: {error}", target.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{ALL, generate};

    #[test]
    fn shipped_files_are_what_the_generator_makes() {
        let generated = generate::files();
        let mut names: Vec<String> = Shipped::iter().map(|name| name.into_owned()).collect();
        names.sort();
        let mut expected: Vec<&str> = generated.iter().map(|(name, _)| name.as_str()).collect();
        expected.sort();
        assert_eq!(names, expected);
        for (name, contents) in &generated {
            let shipped = Shipped::get(name).unwrap();
            assert!(
                *shipped.data == *contents.as_bytes(),
                "{name}: run `event-gateway agent generate-datasets datasets`"
            );
        }
        let bytes: usize = generated.iter().map(|(_, contents)| contents.len()).sum();
        assert!(bytes < 600_000, "{bytes} bytes");
    }

    #[test]
    fn the_catalogue_lists_every_file_with_an_agent_that_exists() {
        let text = Shipped::get(CATALOGUE_FILE).unwrap();
        let catalogue = Catalogue::parse(std::str::from_utf8(&text.data).unwrap()).unwrap();
        for entry in &catalogue.datasets {
            assert!(Shipped::get(&entry.id).is_some(), "{}", entry.id);
            assert!(!entry.description.is_empty());
            let agent = ALL.iter().find(|agent| agent.name == entry.agent).unwrap();
            assert!(entry.id.starts_with(&format!("{}/", agent.datasets)), "{}", entry.id);
        }
        assert_eq!(catalogue.datasets.len() + 1, Shipped::iter().count());
        for agent in ALL {
            assert!(catalogue.datasets.iter().filter(|entry| entry.agent == agent.name).count() >= 2);
        }
        assert!(
            Catalogue::parse("[[dataset]]\nid = 'x'\nagent = 'y'\n").unwrap_err().to_string().contains("description")
        );
    }

    #[test]
    fn install_writes_what_is_missing_and_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("datasets");
        install(&root).unwrap();
        let (mine, missing) = (generate::files()[0].clone(), generate::files()[1].clone());
        fs::write(root.join(&mine.0), "my own").unwrap();
        fs::remove_file(root.join(&missing.0)).unwrap();
        install(&root).unwrap();
        assert_eq!(fs::read_to_string(root.join(&mine.0)).unwrap(), "my own");
        assert_eq!(fs::read_to_string(root.join(&missing.0)).unwrap(), missing.1);
        let parent = root.join(&missing.0).parent().unwrap().to_owned();
        assert!(
            fs::read_dir(parent).unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.'))
        );
    }

    #[test]
    fn a_dangling_link_counts_as_a_file_of_the_user() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join(CATALOGUE_FILE)).unwrap();
        install(dir.path()).unwrap();
        assert!(fs::symlink_metadata(dir.path().join(CATALOGUE_FILE)).unwrap().is_symlink());
        assert!(!dir.path().join("nowhere").exists());
    }
}
