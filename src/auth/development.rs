//! The secret of development mode: random, kept in the data directory, for its owner only.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rand::TryRngCore;

use super::SetupError;

const FILE: &str = "development-secret";
const BYTES: usize = 32;

/// The secret of `data_dir`; made when there is none yet.
pub(super) fn secret(data_dir: &Path) -> Result<String, SetupError> {
    let path = data_dir.join(FILE);
    read_or_create(data_dir, &path)
        .map_err(|source| SetupError::DevelopmentSecret { path: path.display().to_string(), source })
}

fn read_or_create(data_dir: &Path, path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => return checked(path, text),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let mut bytes = [0; BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    let secret = hex::encode(bytes);
    // Written aside and linked into place: nobody sees half a secret, and of two processes
    // that start together the second takes the first one's.
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all())?;
    let linked = fs::hard_link(&aside, path);
    fs::remove_file(&aside)?;
    match linked {
        Ok(()) => Ok(secret),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => checked(path, fs::read_to_string(path)?),
        Err(error) => Err(error),
    }
}

fn checked(path: &Path, text: String) -> io::Result<String> {
    let secret = text.trim_end().to_owned();
    if secret.len() < 2 * BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, "is damaged; delete it and a new one is made"));
    }
    let others_may = fs::metadata(path)?.permissions().mode() & 0o077 != 0;
    if others_may {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(secret)
}
