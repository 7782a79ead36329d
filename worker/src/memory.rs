//! How much memory weights and training runs may take.

use std::fmt;
use std::fs;
use std::str::FromStr;

/// Share of a device's memory that is taken where nobody says otherwise, in percent.
const DEFAULT_PERCENT: f64 = 75.0;

/// Where the machine does not say how much memory it has.
const FALLBACK_BYTES: u64 = 8 * 1024 * 1024 * 1024;

/// An amount of memory as a person writes it: `12GiB`, `800MB`, `50%` of the device's memory, or bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryBudget {
    /// So many bytes.
    Bytes(u64),
    /// A share of whatever memory the device has.
    Percent(f64),
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::Percent(DEFAULT_PERCENT)
    }
}

impl MemoryBudget {
    /// Bytes of it, on a device that has `memory` bytes; `None`: it shares the machine's.
    #[must_use]
    pub fn bytes(self, memory: Option<u64>) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (memory.unwrap_or_else(machine_memory) as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no amount of memory: give bytes, or such as 12GiB, 800MB or 50%");
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
        let unit = match text[digits.len()..].trim() {
            "" | "B" => 1.0,
            "K" | "KiB" => 1024.0,
            "M" | "MiB" => 1024.0 * 1024.0,
            "G" | "GiB" => 1024.0 * 1024.0 * 1024.0,
            "T" | "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "%" if number > 0.0 && number <= 100.0 => return Ok(Self::Percent(number)),
            _ => return Err(wrong()),
        };
        let bytes = number * unit;
        if (1.0..=u64::MAX as f64).contains(&bytes) { Ok(Self::Bytes(bytes as u64)) } else { Err(wrong()) }
    }
}

/// As it is read.
impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Bytes of memory: the machine's, or less where a control group says so.
pub fn machine_memory() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    match (total, group) {
        (Some(total), Some(group)) => total.min(group),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => FALLBACK_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read_as_people_write_them() {
        use MemoryBudget::{Bytes, Percent};

        let gib = 1_u64 << 30;
        for (text, budget) in [
            ("12GiB", Bytes(12 * gib)),
            ("1.5 G", Bytes(gib * 3 / 2)),
            ("800MB", Bytes(800_000_000)),
            ("4096", Bytes(4096)),
            ("62.5%", Percent(62.5)),
        ] {
            assert_eq!(text.parse(), Ok(budget), "{text}");
            assert_eq!(budget.to_string().parse(), Ok(budget), "{text}");
        }
        for text in ["", "much", "-1GiB", "0", "0%", "120%", "3 stones", "%"] {
            let refusal = text.parse::<MemoryBudget>().unwrap_err();
            assert!(refusal.contains("no amount of memory"), "{text}");
        }
    }

    #[test]
    fn a_share_is_of_the_device_where_that_has_memory_of_its_own() {
        assert_eq!(MemoryBudget::Percent(25.0).bytes(Some(80)), 20);
        assert_eq!(MemoryBudget::Percent(100.0).bytes(None), machine_memory());
        assert_eq!(MemoryBudget::Bytes(7).bytes(Some(80)), 7);
    }
}
