//! One file from the hub to the cache: resumed where an earlier attempt (ours or Python's) broke off, verified
//! against what the hub announced, and visible under its name only when it is whole.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};

use super::DownloadError;
use super::protocol::{ATTEMPTS, Attempt, FileInfo, Protocol};
use crate::cache::RepoCache;
use crate::fingerprint::sha256;
use crate::progress::Progress;

const COPY_BYTES: usize = 256 << 10;
/// How often progress is told, in bytes.
const TELL_BYTES: u64 = 4 << 20;

/// Makes `file` of a commit present in its snapshot.
pub(super) fn fetch(
    protocol: &Protocol<'_>,
    cache: &RepoCache,
    commit: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<(), DownloadError> {
    if cache.snapshot_dir(commit).join(file).exists() {
        return Ok(());
    }
    let info =
        protocol.describe(commit, file)?.ok_or_else(|| protocol.strange(&format!("`{file}` is gone")))?;
    let disk = |reason| DownloadError::Disk { file: file.to_owned(), reason };
    let _lock = cache.lock(&info.etag).map_err(disk)?;
    let blob = cache.blob(&info.etag);
    if !fs::metadata(&blob).is_ok_and(|found| found.len() == info.size) {
        receive(protocol, cache, commit, file, &info, progress)?;
        fs::rename(cache.incomplete(&info.etag), &blob).map_err(disk)?;
    }
    cache.link(commit, file, &info.etag).map_err(disk)?;
    Ok(())
}

/// Brings the whole content into the incomplete file, and proves it.
fn receive(
    protocol: &Protocol<'_>,
    cache: &RepoCache,
    commit: &str,
    file: &str,
    info: &FileInfo,
    progress: &dyn Progress,
) -> Result<(), DownloadError> {
    let disk = |reason| DownloadError::Disk { file: file.to_owned(), reason };
    let path = cache.incomplete(&info.etag);
    let mut out =
        File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(disk)?;
    let mut have = out.metadata().map_err(disk)?.len();
    if have > info.size {
        have = 0;
    }
    progress.started(file, have, info.size);
    let mut started_over = have == 0;
    let mut failed = 0;
    loop {
        while have < info.size {
            let before = have;
            match append(protocol, commit, file, info, &mut out, &mut have, progress) {
                Ok(()) => {}
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again { reason, pause }) => {
                    // An attempt that moved something was worth it.
                    failed = if have > before { 1 } else { failed + 1 };
                    if failed >= ATTEMPTS {
                        return Err(DownloadError::Interrupted { file: file.to_owned(), reason });
                    }
                    protocol.pause(failed, &format!("`{file}` broke off ({reason})"), pause);
                }
            }
        }
        out.set_len(info.size).map_err(disk)?;
        out.sync_all().map_err(disk)?;
        match verify(&mut out, file, info) {
            Ok(()) => return Ok(()),
            // A part that an earlier attempt left may have been the bad one.
            Err(DownloadError::Damaged { .. }) if !started_over => {
                progress.note(&format!("`{file}` arrived damaged, starting over"));
                started_over = true;
                have = 0;
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        }
    }
}

/// One request: appends what comes at `have`, counting it.
fn append(
    protocol: &Protocol<'_>,
    commit: &str,
    file: &str,
    info: &FileInfo,
    out: &mut File,
    have: &mut u64,
    progress: &dyn Progress,
) -> Result<(), Attempt> {
    let disk = |reason| Attempt::Final(DownloadError::Disk { file: file.to_owned(), reason });
    let (start, body) = protocol.open(commit, file, *have)?;
    if let Some(length) = body.content_length()
        && start.saturating_add(length) != info.size
    {
        let found = start.saturating_add(length).to_string();
        return Err(Attempt::Final(damaged(file, "size", found, info.size.to_string())));
    }
    *have = start;
    out.seek(SeekFrom::Start(start)).map_err(disk)?;
    let mut reader = body.into_with_config().limit(info.size - start + 1).reader();
    let mut buffer = vec![0; COPY_BYTES];
    let mut told = *have;
    loop {
        let got = match reader.read(&mut buffer) {
            Ok(0) if *have < info.size => {
                return Err(Attempt::Again { reason: "the connection ended early".into(), pause: None });
            }
            Ok(got) => got,
            Err(error) => return Err(Attempt::Again { reason: error.to_string(), pause: None }),
        };
        if got as u64 > info.size - *have {
            let found = format!("more than {}", info.size);
            return Err(Attempt::Final(damaged(file, "size", found, info.size.to_string())));
        }
        out.write_all(&buffer[..got]).map_err(disk)?;
        *have += got as u64;
        if *have - told >= TELL_BYTES || *have == info.size {
            told = *have;
            progress.advanced(file, *have, info.size);
        }
        if got == 0 || *have == info.size {
            return Ok(());
        }
    }
}

/// Large files are named by their SHA-256. Git's hash of small ones covers them with their length, as SHA-1; their
/// size is checked, and what they say is checked when they are read.
fn verify(out: &mut File, file: &str, info: &FileInfo) -> Result<(), DownloadError> {
    let is_sha256 = info.etag.len() == 64 && info.etag.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_sha256 {
        return Ok(());
    }
    let disk = |reason| DownloadError::Disk { file: file.to_owned(), reason };
    out.seek(SeekFrom::Start(0)).map_err(disk)?;
    let found = sha256(out).map_err(disk)?;
    if found.eq_ignore_ascii_case(&info.etag) {
        return Ok(());
    }
    Err(damaged(file, "SHA-256", found, info.etag.clone()))
}

fn damaged(file: &str, what: &'static str, found: String, announced: String) -> DownloadError {
    DownloadError::Damaged { file: file.to_owned(), what, found, announced }
}
