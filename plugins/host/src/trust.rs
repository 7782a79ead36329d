//! Whether somebody else could have put a file in place. Opening a library is running its code.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Refusal;

/// The real path of `file`, when it lies in the real path of `directory` and only its owner and group can write to
/// it and to the directories above it.
pub(crate) fn checked(directory: &Path, file: &Path) -> Result<PathBuf, Refusal> {
    let directory = directory.canonicalize().map_err(Refusal::Unreadable)?;
    let real = file.canonicalize().map_err(Refusal::Unreadable)?;
    if !real.starts_with(&directory) {
        return Err(Refusal::OutsideDirectory);
    }
    let metadata = fs::metadata(&real).map_err(Refusal::Unreadable)?;
    if !metadata.is_file() {
        return Err(Refusal::NotAFile);
    }
    refuse_writable_by_others(&real, &directory, &metadata)?;
    Ok(real)
}

/// Whether `file` belongs to the system or to the owner of `of`: what lies near a file that is trusted need not be.
#[cfg(unix)]
pub(crate) fn same_owner(file: &Path, of: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let owner = |path| fs::metadata(path).map(|metadata: fs::Metadata| metadata.uid());
    owner(file)
        .is_ok_and(|owner_of_file| owner_of_file == 0 || owner(of).is_ok_and(|other| other == owner_of_file))
}

#[cfg(unix)]
fn refuse_writable_by_others(file: &Path, directory: &Path, metadata: &fs::Metadata) -> Result<(), Refusal> {
    use std::os::unix::fs::PermissionsExt;

    const WRITABLE_BY_OTHERS: u32 = 0o002;
    const STICKY: u32 = 0o1000;

    let mode = metadata.permissions().mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(Refusal::WorldWritableFile { mode });
    }
    for above in file.ancestors().skip(1) {
        let mode = fs::metadata(above).map_err(Refusal::Unreadable)?.permissions().mode() & 0o7777;
        // Above the plugin directory a sticky bit (/tmp) keeps others from renaming what is not theirs.
        let kept = mode & STICKY != 0 && !above.starts_with(directory);
        if mode & WRITABLE_BY_OTHERS != 0 && !kept {
            return Err(Refusal::WorldWritableDirectory { directory: above.display().to_string(), mode });
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn same_owner(_: &Path, _: &Path) -> bool {
    true
}

#[cfg(not(unix))]
fn refuse_writable_by_others(_: &Path, _: &Path, _: &fs::Metadata) -> Result<(), Refusal> {
    Ok(())
}
