//! Which method does what wrong.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

use cappy_plugin_abi::{Control, Failure};

/// How often a hanging call looks whether it is cancelled.
const POLL: Duration = Duration::from_millis(1);

/// Faults by method.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    faults: Vec<(String, Fault)>,
    /// Exists once a fault has struck.
    once: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Panic,
    Nan,
    Short,
    Hang,
    Abort,
    Segfault,
    OutOfMemoryAbove(usize),
    Unsupported,
    Internal,
}

impl Plan {
    /// The plan in `CAPPY_FAULTY` and `CAPPY_FAULTY_ONCE`; none: no faults.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn of_environment() -> Result<Self, Failure> {
        let plan = Self::parse(&std::env::var("CAPPY_FAULTY").unwrap_or_default())?;
        Ok(Self { once: std::env::var_os("CAPPY_FAULTY_ONCE").map(PathBuf::from), ..plan })
    }

    /// Reads `METHOD:FAULT,...`.
    ///
    /// # Errors
    /// `InvalidArgument` naming the part that cannot be read.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let faults = parts.map(|part| {
            let fault =
                part.split_once(':').and_then(|(method, fault)| Some((method.into(), Fault::of(fault)?)));
            fault.ok_or_else(|| Failure::invalid_argument(format!("fault `{part}` is not METHOD:FAULT")))
        });
        Ok(Self { faults: faults.collect::<Result<_, _>>()?, once: None })
    }

    /// Does what is planned for a call before its work, for a batch of `rows`.
    ///
    /// # Errors
    /// The planned failure.
    pub fn strike(&self, method: &str, rows: usize, control: Option<&dyn Control>) -> Result<(), Failure> {
        for fault in self.of(method) {
            match fault {
                Fault::Nan | Fault::Short => continue,
                Fault::OutOfMemoryAbove(limit) if rows <= limit => continue,
                _ if !self.may_strike() => continue,
                Fault::OutOfMemoryAbove(limit) => {
                    return Err(Failure::out_of_memory(format!("{rows} rows, there is memory for {limit}")));
                }
                Fault::Panic => panic!("{method} panics as planned"),
                Fault::Abort => std::process::abort(),
                Fault::Segfault => segfault(),
                Fault::Unsupported => return Err(Failure::unsupported(format!("{method} fails as planned"))),
                Fault::Internal => return Err(Failure::internal(format!("{method} fails as planned"))),
                Fault::Hang => {
                    while !control.is_some_and(|control| control.cancelled()) {
                        std::thread::sleep(POLL);
                    }
                    return Err(Failure::cancelled(format!("{method} hung until it was cancelled")));
                }
            }
        }
        Ok(())
    }

    /// Does what is planned for a call to its result.
    pub fn spoil(&self, method: &str, mut values: Vec<f32>) -> Vec<f32> {
        for fault in self.of(method) {
            match fault {
                Fault::Nan if self.may_strike() => {
                    if let Some(last) = values.last_mut() {
                        *last = f32::NAN;
                    }
                }
                Fault::Short if self.may_strike() => {
                    values.pop();
                }
                _ => {}
            }
        }
        values
    }

    fn of(&self, method: &str) -> impl Iterator<Item = Fault> {
        self.faults.iter().filter(move |(it, _)| it == method).map(|&(_, fault)| fault)
    }

    fn may_strike(&self) -> bool {
        let first = |file: &PathBuf| OpenOptions::new().write(true).create_new(true).open(file).is_ok();
        self.once.as_ref().is_none_or(first)
    }
}

impl Fault {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "panic" => Self::Panic,
            "nan" => Self::Nan,
            "short" => Self::Short,
            "hang" => Self::Hang,
            "abort" => Self::Abort,
            "segfault" => Self::Segfault,
            "unsupported" => Self::Unsupported,
            "internal" => Self::Internal,
            other => Self::OutOfMemoryAbove(other.strip_prefix("oom>")?.parse().ok()?),
        })
    }
}

fn segfault() -> ! {
    let nowhere = std::ptr::without_provenance_mut::<u8>(1);
    // SAFETY: none, and that is the point: page 0 is never mapped, so the process ends by SIGSEGV here.
    unsafe { nowhere.write_volatile(0) };
    std::process::abort()
}
