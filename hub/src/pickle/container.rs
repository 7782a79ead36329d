//! The two containers of `torch.save`: a zip archive (`<name>/data.pkl`, `<name>/data/<key>`), and, before
//! PyTorch 1.6, pickles that follow each other with the storages behind them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use zip::{CompressionMethod, ZipArchive};

use super::PickleError;
use super::machine::{Machine, Value};
use crate::header::Dtype;
use crate::writer::Segment;

/// The pickle names every tensor in about 200 bytes; the largest models have some thousands.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// Start of every zip archive that has a member.
const ZIP_SIGNATURE: &[u8] = b"PK\x03\x04";

const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;

/// Where each storage's bytes are.
type Storages = HashMap<String, Segment>;

/// Runs the file's pickle on `machine`: its value, and where the storages are.
pub(super) fn read(file: &File, machine: &mut Machine) -> Result<(Value, Storages), PickleError> {
    let mut start = [0; 4];
    let held = file.metadata()?.len();
    if held < 4 {
        return Err(PickleError::Truncated);
    }
    file.read_exact_at(&mut start, 0)?;
    if start == ZIP_SIGNATURE { read_zip(file, machine) } else { read_legacy(file, held, machine) }
}

fn read_zip(file: &File, machine: &mut Machine) -> Result<(Value, Storages), PickleError> {
    let damaged = |error: zip::result::ZipError| PickleError::Archive(error.to_string());
    let mut archive = ZipArchive::new(file).map_err(damaged)?;
    let names = archive.file_names().map(|name| name.map(|name| name.to_string()).map_err(damaged));
    let names = names.collect::<Result<Vec<String>, _>>()?;
    let prefix = names.iter().find_map(|name| name.strip_suffix("/data.pkl"));
    let prefix = prefix.ok_or(PickleError::Malformed("the archive has no data.pkl"))?.to_owned();

    if let Ok(mut order) = archive.by_name(&format!("{prefix}/byteorder")) {
        let mut text = String::new();
        order.by_ref().take(16).read_to_string(&mut text)?;
        if text.trim() != "little" {
            return Err(PickleError::Malformed("its numbers are not little-endian"));
        }
    }
    let mut pickle = Vec::new();
    {
        let member = archive.by_name(&format!("{prefix}/data.pkl")).map_err(damaged)?;
        if member.size() > MAX_PICKLE_BYTES {
            return Err(PickleError::Malformed("its pickle is larger than any model's"));
        }
        member.take(MAX_PICKLE_BYTES).read_to_end(&mut pickle)?;
    }
    let (root, _) = machine.run(&pickle)?;

    let held = file.metadata()?.len();
    let mut storages = Storages::new();
    for storage in machine.storages() {
        if storages.contains_key(&storage.key) {
            continue;
        }
        let missing = || PickleError::Storage(storage.key.clone());
        let member = archive.by_name(&format!("{prefix}/data/{}", storage.key)).map_err(|_| missing())?;
        if member.compression() != CompressionMethod::Stored || member.encrypted() {
            return Err(PickleError::Malformed("its storages are compressed"));
        }
        let offset = member.data_start().ok_or_else(missing)?;
        let bytes = member.size();
        if offset.checked_add(bytes).is_none_or(|end| end > held) {
            return Err(PickleError::Truncated);
        }
        storages.insert(storage.key.clone(), Segment { offset, bytes });
    }
    Ok((root, storages))
}

/// Magic number, protocol, system, the state dict, the keys of the storages in the order of their bytes: five
/// pickles; then each storage as its length in elements (`i64`) and its bytes.
fn read_legacy(file: &File, held: u64, machine: &mut Machine) -> Result<(Value, Storages), PickleError> {
    let mut pickles = Vec::new();
    file.try_clone()?.take(MAX_PICKLE_BYTES).read_to_end(&mut pickles)?;
    let mut at = 0;
    let mut next = |machine: &mut Machine| -> Result<(Value, usize), PickleError> {
        let (value, length) = machine.run(&pickles[at..])?;
        at += length;
        Ok((value, at))
    };
    let foreign = PickleError::Malformed("it is neither a zip archive nor a pickle of torch.save");
    match next(machine) {
        Ok((Value::Int(LEGACY_MAGIC), _)) => {}
        Ok(_) | Err(PickleError::Malformed(_)) => return Err(foreign),
        Err(other) => return Err(other),
    }
    if !matches!(next(machine)?.0, Value::Int(LEGACY_PROTOCOL)) {
        return Err(foreign);
    }
    let (system, _) = next(machine)?;
    let little = machine.dict(&system).unwrap_or(&[]).iter().any(|(key, value)| {
        matches!(key, Value::Text(key) if &**key == "little_endian") && matches!(value, Value::Bool(true))
    });
    if !little {
        return Err(PickleError::Malformed("its numbers are not little-endian"));
    }
    let (root, _) = next(machine)?;
    let (keys, end) = next(machine)?;

    let dtypes: HashMap<&str, Dtype> =
        machine.storages().iter().map(|storage| (storage.key.as_str(), storage.dtype)).collect();
    let keys = machine.list(&keys).ok_or(PickleError::Malformed("it has no list of storages"))?;
    let mut storages = Storages::new();
    let mut offset = end as u64;
    for key in keys {
        let Value::Text(key) = key else {
            return Err(PickleError::Malformed("a storage has no key"));
        };
        let dtype = dtypes.get(&**key).ok_or_else(|| PickleError::Storage(key.to_string()))?;
        let mut count = [0; 8];
        file.read_exact_at(&mut count, offset).map_err(|_| PickleError::Truncated)?;
        let bytes = u64::from_le_bytes(count).checked_mul(dtype.size()).ok_or(PickleError::Truncated)?;
        let start = offset + 8;
        offset = start.checked_add(bytes).filter(|end| *end <= held).ok_or(PickleError::Truncated)?;
        storages.insert(key.to_string(), Segment { offset: start, bytes });
    }
    Ok((root, storages))
}
