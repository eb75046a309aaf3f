//! Files that are whole or not there.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Ends the names of files that are being written.
const PART: &str = ".part";

/// Writes a file in one step: beside it first, then synced, then renamed over whatever had its name.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = tempfile::Builder::new().prefix(".evalpool-").suffix(PART).tempfile_in(folder_of(path))?;
    part.write_all(bytes)?;
    part.as_file().sync_all()?;
    part.persist(path)?;
    Ok(())
}

/// Makes what was renamed in a file's folder, or removed from it, survive a failure of the machine.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// What is in a folder, without what a server that was killed had not written to its end: that is removed.
pub(super) fn tidied(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut whole = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".evalpool-") && name.ends_with(PART) {
            remove(&path);
        } else {
            whole.push(path);
        }
    }
    Ok(whole)
}

/// Removes a file that nobody needs, if it is there. A failure costs its space, until the next start.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "a file that nobody needs cannot be removed");
        }
        _ => {}
    }
}
