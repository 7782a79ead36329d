//! The deadline that travels with a call.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// The time that the caller gives a call (`grpc-timeout`); `None` when it gives any.
///
/// Source: "Timeout" in the gRPC over HTTP/2 specification.
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_writes_them() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(text));
            timeout(&metadata)
        };
        assert_eq!(timeout(&MetadataMap::new()), None);
        for (text, seconds) in
            [("2H", 7200.0), ("3M", 180.0), ("5S", 5.0), ("20m", 0.02), ("7u", 7e-6), ("90n", 9e-8)]
        {
            assert_eq!(of(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "5", "S", "123456789S", "-1S", "5s", "1.5S"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
