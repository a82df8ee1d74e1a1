//! Datasets: what jobs may read, by ids that are paths below one directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::libc;
use serde::Deserialize;

/// Name of the file in the datasets directory that describes its datasets.
pub const CATALOGUE_FILE: &str = "catalogue.toml";

/// The longest dataset id, in bytes.
pub const MAX_ID_BYTES: usize = 500;

/// The most datasets that are listed; more can still be used.
const MAX_LISTED: usize = 1_000;
/// How deep below the datasets directory files are listed.
const MAX_DEPTH: usize = 8;
const MAX_CATALOGUE_BYTES: u64 = 1 << 20;

/// A dataset an agent can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Path below the datasets directory, with `/`.
    pub id: String,
    pub bytes: u64,
    /// From `catalogue.toml`; `None` when it says nothing of this file.
    pub description: Option<String>,
}

/// Why a dataset id names nothing that may be read. Says nothing of what lies outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatasetError {
    #[error("a dataset id is a relative path such as `survey/field-1.csv`, without `..`, of at most 500 bytes")]
    Malformed,
    /// Missing, outside the directory by way of a link, or neither file nor directory.
    #[error("there is no dataset `{0}`; GET /api/v1/agents lists those there are")]
    NotFound(String),
    /// Could not be looked at; may be different later.
    #[error("dataset `{id}`: {reason}")]
    Unreadable { id: String, reason: String },
}

impl DatasetError {
    /// May the same id work later without anybody changing it?
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }
}

/// The absolute path of dataset `id` below `root`: a regular file or a directory (some
/// formats are directories). Blocking; links are followed and must stay inside.
pub fn resolve(root: &Path, id: &str) -> Result<PathBuf, DatasetError> {
    if !is_well_formed(id) {
        return Err(DatasetError::Malformed);
    }
    let unreadable = |error: io::Error| match error.raw_os_error() {
        // A link to itself, a name that is too long or below a file: there is no such thing.
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG) => DatasetError::NotFound(id.to_owned()),
        _ => DatasetError::Unreadable { id: id.to_owned(), reason: error.kind().to_string() },
    };
    let root = root.canonicalize().map_err(|error| DatasetError::Unreadable {
        id: id.to_owned(),
        reason: format!("the datasets directory cannot be read: {}", error.kind()),
    })?;
    let path = root.join(id).canonicalize().map_err(unreadable)?;
    if path == root || !path.starts_with(&root) {
        return Err(DatasetError::NotFound(id.to_owned()));
    }
    let kind = fs::metadata(&path).map_err(unreadable)?.file_type();
    // A pipe or device could block its reader or worse.
    if !(kind.is_file() || kind.is_dir()) {
        return Err(DatasetError::NotFound(id.to_owned()));
    }
    Ok(path)
}

/// Is `id` a relative path of plain names?
fn is_well_formed(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_ID_BYTES
        && !id.ends_with('/')
        && !id.chars().any(char::is_control)
        && Path::new(id).components().all(|component| matches!(component, Component::Normal(_)))
}

#[derive(Deserialize)]
struct Catalogue {
    #[serde(default, rename = "dataset")]
    datasets: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    /// Without one it is for every agent.
    agent: Option<String>,
    description: Option<String>,
}

/// The datasets `agent` can be given: those the catalogue has for it, and files the
/// catalogue does not mention. Sorted by id, at most 1,000. Blocking.
///
/// A directory that does not exist has none; a catalogue that cannot be parsed is an
/// error that names file and line.
pub fn list(root: &Path, agent: &str) -> io::Result<Vec<Dataset>> {
    list_below(root, Path::new(""), agent)
}

/// [`list`], but only datasets below the directory `below` of `root`. Ids stay relative to
/// `root`.
pub fn list_below(root: &Path, below: &Path, agent: &str) -> io::Result<Vec<Dataset>> {
    let root = match root.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        root => root?,
    };
    let mut catalogue: BTreeMap<String, Entry> =
        read_catalogue(&root)?.into_iter().map(|entry| (entry.id.clone(), entry)).collect();
    let mut ids = Vec::new();
    walk(&root, "", 0, &mut ids)?;
    // A catalogued directory is one dataset; its files are not.
    let directories: Vec<String> = catalogue
        .keys()
        .filter(|id| resolve(&root, id).is_ok_and(|path| path.is_dir()))
        .map(|id| format!("{id}/"))
        .collect();
    ids.retain(|id| !directories.iter().any(|directory| id.starts_with(directory)));
    ids.extend(directories.iter().map(|directory| directory.trim_end_matches('/').to_owned()));
    ids.sort_unstable();
    ids.dedup();

    let mut datasets = Vec::new();
    for id in ids.into_iter().filter(|id| Path::new(id).starts_with(below)) {
        let entry = catalogue.remove(&id);
        let for_other = entry.as_ref().and_then(|entry| entry.agent.as_deref()).is_some_and(|name| name != agent);
        if for_other {
            continue;
        }
        let Ok(path) = resolve(&root, &id) else { continue };
        let bytes = tree_bytes(&path);
        datasets.push(Dataset { id, bytes, description: entry.and_then(|entry| entry.description) });
        if datasets.len() == MAX_LISTED {
            break;
        }
    }
    Ok(datasets)
}

fn read_catalogue(root: &Path) -> io::Result<Vec<Entry>> {
    let path = root.join(CATALOGUE_FILE);
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {reason}", path.display()));
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(metadata) if metadata.len() > MAX_CATALOGUE_BYTES => {
            return Err(invalid("larger than 1 MiB".to_owned()));
        }
        _ => {}
    }
    let text = fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), invalid(error.to_string())))?;
    toml::from_str::<Catalogue>(&text).map(|catalogue| catalogue.datasets).map_err(|error| invalid(error.to_string()))
}

/// Collects the ids of the regular files below `directory`; hidden ones are left out.
fn walk(directory: &Path, prefix: &str, depth: usize, ids: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || (prefix.is_empty() && name == CATALOGUE_FILE) || ids.len() >= 10 * MAX_LISTED {
            continue;
        }
        let id = format!("{prefix}{name}");
        // Links are not descended into (they may form a circle), but a link to a file counts.
        let kind = entry.file_type()?;
        if kind.is_dir() && depth < MAX_DEPTH {
            // One that may not be read must not hide the others.
            if let Err(error) = walk(&entry.path(), &format!("{id}/"), depth + 1, ids) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot list a directory of datasets");
            }
        } else if kind.is_file() || (kind.is_symlink() && entry.path().is_file()) {
            ids.push(id);
        }
    }
    Ok(())
}

/// The bytes of a file, or of the regular files below a directory as far as they can be
/// read (links not followed, at most 100,000 entries). Blocking.
pub(super) fn tree_bytes(path: &Path) -> u64 {
    let mut total = 0u64;
    let mut left = 100_000;
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_file() {
            total = total.saturating_add(metadata.len());
        } else if metadata.is_dir()
            && let Ok(entries) = fs::read_dir(&path)
        {
            for entry in entries.flatten().take(left) {
                left -= 1;
                open.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("datasets");
        fs::create_dir_all(root.join("survey")).unwrap();
        fs::create_dir_all(root.join("field.ms/table")).unwrap();
        fs::write(root.join("survey/a.csv"), "12345").unwrap();
        fs::write(root.join("survey/b.csv"), "1").unwrap();
        fs::write(root.join("loose.csv"), "123").unwrap();
        fs::write(root.join(".hidden"), "x").unwrap();
        fs::write(root.join("field.ms/table/f0"), "1234567").unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../secret", root.join("escape")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("loose.csv", root.join("alias.csv")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        dir
    }

    #[test]
    fn resolves_files_directories_and_links_inside() {
        let dir = tree();
        let root = dir.path().join("datasets");
        let real = root.canonicalize().unwrap();
        assert_eq!(resolve(&root, "survey/a.csv").unwrap(), real.join("survey/a.csv"));
        assert_eq!(resolve(&root, "field.ms").unwrap(), real.join("field.ms"));
        assert_eq!(resolve(&root, "alias.csv").unwrap(), real.join("loose.csv"));
    }

    #[test]
    fn refuses_whatever_leaves_the_directory() {
        let dir = tree();
        let root = dir.path().join("datasets");
        let secret = dir.path().join("secret");
        for id in
            ["", ".", "..", "../secret", "survey/../../secret", "survey/..", "./loose.csv", "survey/", "a\0b", "a\nb"]
                .into_iter()
                .chain([secret.to_str().unwrap(), "/", &"x".repeat(501)])
        {
            assert_eq!(resolve(&root, id), Err(DatasetError::Malformed), "{id:?}");
        }
        for id in ["escape", "up", "up/secret", "loop", "missing", "loose.csv/x", &"x".repeat(400)] {
            assert_eq!(resolve(&root, id), Err(DatasetError::NotFound(id.to_owned())), "{id:?}");
        }
    }

    #[test]
    fn refuses_what_is_neither_file_nor_directory() {
        let dir = tree();
        let root = dir.path().join("datasets");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(resolve(&root, "pipe"), Err(DatasetError::NotFound("pipe".into())));
        assert!(list(&root, "A").unwrap().iter().all(|dataset| dataset.id != "pipe"));
    }

    #[test]
    fn a_missing_root_is_the_operators_fault_not_the_jobs() {
        let error = resolve(Path::new("/nonexistent-datasets"), "a").unwrap_err();
        assert!(error.is_retriable(), "{error}");
        assert_eq!(list(Path::new("/nonexistent-datasets"), "A").unwrap(), []);
    }

    #[test]
    fn lists_what_an_agent_can_read() {
        let dir = tree();
        let root = dir.path().join("datasets");
        fs::write(
            root.join(CATALOGUE_FILE),
            "[[dataset]]\nid = 'survey/a.csv'\nagent = 'A'\ndescription = 'first'\n\
             [[dataset]]\nid = 'survey/b.csv'\nagent = 'B'\ndescription = 'second'\n\
             [[dataset]]\nid = 'field.ms'\nagent = 'A'\ndescription = 'a directory'\n\
             [[dataset]]\nid = 'gone.csv'\nagent = 'A'\ndescription = 'deleted'\n\
             [[dataset]]\nid = '../secret'\nagent = 'A'\ndescription = 'outside'\n",
        )
        .unwrap();
        let found: Vec<_> = list(&root, "A")
            .unwrap()
            .into_iter()
            .map(|dataset| (dataset.id, dataset.bytes, dataset.description.unwrap_or_default()))
            .collect();
        let expected =
            [("alias.csv", 3, ""), ("field.ms", 7, "a directory"), ("loose.csv", 3, ""), ("survey/a.csv", 5, "first")];
        assert_eq!(found, expected.map(|(id, bytes, text)| (id.to_owned(), bytes, text.to_owned())));
        let below = list_below(&root, Path::new("survey"), "B").unwrap();
        assert_eq!(below.iter().map(|dataset| dataset.id.as_str()).collect::<Vec<_>>(), ["survey/b.csv"]);
    }

    #[test]
    fn a_broken_catalogue_names_file_and_line() {
        let dir = tree();
        let root = dir.path().join("datasets");
        fs::write(root.join(CATALOGUE_FILE), "[[dataset]]\nagent = 1\n").unwrap();
        let error = list(&root, "A").unwrap_err().to_string();
        assert!(error.contains("catalogue.toml") && error.contains("line 2"), "{error}");
    }
}
