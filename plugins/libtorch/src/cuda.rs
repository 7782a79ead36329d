//! What is called in libtorch_cuda, which is not everywhere.
//!
//! So the C++ that calls it is a library of its own (`cpp/cuda/`), opened at the first call and never where there is no
//! GPU. This plugin carries it along as bytes: it fits the plugin's other C++ whatever lies beside the plugin's file.

use std::ffi::c_int;
use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::group::ffi::{Connections, RawGroup, RawStore, Store};
use crate::shim::{Said, Text, said, said_at_length};

/// Empty: built where CUDA's and NCCL's headers were not.
static LIBRARY: &[u8] = include_bytes!(env!("CAPPY_CUDA_LIBRARY"));

type NcclOpen = unsafe extern "C" fn(*mut RawStore, c_int, c_int, c_int, i64, *mut RawGroup) -> Text;
type Memory = unsafe extern "C" fn(c_int, *mut u64) -> Text;

/// The library's functions, as cpp/cuda/ documents them.
struct Functions {
    nccl_open: NcclOpen,
    memory: Memory,
    /// Never unmapped: NCCL's threads outlive groups.
    _library: ManuallyDrop<Library>,
}

fn functions() -> Result<&'static Functions, String> {
    static OPENED: OnceLock<Result<Functions, String>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref().map_err(String::clone)
}

fn open() -> Result<Functions, String> {
    if LIBRARY.is_empty() {
        return Err("this plugin was built without the headers of CUDA and NCCL".into());
    }
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"cappy_cuda".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(format!("there is no memory for a library: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: just opened, and nobody else's.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(LIBRARY).map_err(|error| error.to_string())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // Its own text says only that it failed.
    let text = |error: libloading::Error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        source.unwrap_or_else(|| error.to_string())
    };
    // SAFETY: its content is this plugin's own; its constructors register nothing.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(text)?;
    // SAFETY: the functions have these types in cpp/cuda/.
    let (nccl_open, memory) = unsafe {
        (
            *library.get::<NcclOpen>(b"cappy_nccl_open\0").map_err(text)?,
            *library.get::<Memory>(b"cappy_cuda_memory\0").map_err(text)?,
        )
    };
    Ok(Functions { nccl_open, memory, _library: ManuallyDrop::new(library) })
}

/// Whether NCCL can be called here.
pub fn has_nccl() -> bool {
    functions().is_ok()
}

/// Connects this rank's GPU, `device`, with those of all other ranks, who do the same at the same time.
///
/// # Errors
/// What NCCL said, such as that two ranks have the same GPU.
pub fn nccl_connect(
    connections: &Connections,
    store: &Store,
    (rank, world): (usize, usize),
    device: usize,
    timeout_ms: i64,
) -> Said<()> {
    let nccl_open = functions()?.nccl_open;
    let (rank, world, device) = (rank as c_int, world as c_int, device as c_int);
    // SAFETY: store and group are open, and nobody uses the group yet.
    let reason = unsafe { nccl_open(store.raw(), rank, world, device, timeout_ms, connections.raw()) };
    said_at_length(reason).map_err(|text| telling(&text).to_owned())
}

/// Bytes of memory of a GPU, used or not.
///
/// # Errors
/// What CUDA said.
pub fn memory(device: usize) -> Said<u64> {
    let mut bytes = 0;
    // SAFETY: the place for the result outlives the call.
    said(unsafe { (functions()?.memory)(device as c_int, &mut bytes) })?;
    Ok(bytes)
}

/// The line that tells most of what NCCL said: what it calls its last error, or the first.
fn telling(said: &str) -> &str {
    let last = said.split_once("Last error:").map(|(_, rest)| rest.trim()).filter(|rest| !rest.is_empty());
    last.unwrap_or(said).lines().next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_that_tells_most() {
        let usage = "NCCL error in: NCCLUtils.cpp:94, invalid usage\nncclInvalidUsage: This usually\nLast error:\n\
                     Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 61000\n";
        assert_eq!(telling(usage), "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 61000");
        assert_eq!(telling("unhandled\nLast error:\n\n"), "unhandled");
        assert_eq!(telling(""), "");
    }

    /// The library is in the plugin; without libtorch's part for CUDA only that is missing which it calls there.
    #[test]
    fn the_library_is_carried_along() {
        assert!(LIBRARY.starts_with(b"\x7fELF"), "built without the headers");
        match functions() {
            Ok(_) => assert!(tch::Cuda::device_count() > 0 || memory(0).is_err()),
            Err(why) => assert!(why.contains("undefined symbol"), "{why}"),
        }
    }
}
