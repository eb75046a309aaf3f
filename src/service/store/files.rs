//! Files that are whole or not there.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::host_limits::or_no_files;

/// Suffix of files that are being written.
const PART: &str = ".part";

/// Writes a temporary file beside `path`, syncs it, and renames it to `path`: readers see the old content or the new.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = tempfile::Builder::new().prefix(".evalpool-").suffix(PART).tempfile_in(folder_of(path));
    // Its error has a path in place of the system's number.
    let mut part = part.map_err(or_no_files)?;
    part.write_all(bytes)?;
    part.as_file().sync_all()?;
    part.persist(path)?;
    Ok(())
}

/// Syncs a file's folder, so that renames and removals in it survive a failure of the machine.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Removes the temporary files that a killed server left in a folder, and returns the paths of the rest.
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

/// Removes a file that is no longer needed, if it exists. A failure is logged; the next start tries again.
pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "a file that nobody needs cannot be removed");
        }
        _ => {}
    }
}
