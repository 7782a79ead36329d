//! Over how many workers a model is split: as many as are asked for, else as many as its memory needs.

use crate::{
    planner::graph::{DeviceMemory, OpenError},
    store::ResolvedModel,
};

/// How a generator is held in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// Workers that hold one copy together.
    pub(super) ranks: u32,
    /// Weights on each; 0: unknown.
    pub(super) rank_bytes: u64,
    /// Why it is split, where nobody asked for it.
    pub(super) reason: String,
}

/// Splits `model`, which people call `name`, over `asked` workers; 0: over one, or where it fits on none of those that are
/// connected, over the smallest number that divides its attention heads and makes it fit. Memory is what workers have
/// for weights: room for activations is not part of it.
pub(super) fn split(
    name: &str,
    model: &ResolvedModel,
    asked: u32,
    memory: DeviceMemory,
) -> Result<Split, OpenError> {
    let (bytes, heads) = (model.weight_bytes, model.attention_heads);
    let each = |ranks: u32| bytes.div_ceil(u64::from(ranks));
    // Workers that can hold a slice; before one has come, those that are here are taken for a measure.
    let room = if memory.largest_of_ranks > 0 { memory.largest_of_ranks } else { memory.largest };
    let needs = || format!("{name} needs {}{}", gib(bytes), in_dtype(&model.dtype));
    match asked {
        0 if bytes == 0 || memory.largest == 0 || bytes <= memory.largest => {
            Ok(Split { ranks: 1, rank_bytes: bytes, reason: String::new() })
        }
        0 => {
            let fitting = divisors(heads).find(|ranks| *ranks > 1 && each(*ranks) <= room);
            let Some(ranks) = fitting else {
                let most = match heads {
                    0 | 1 => "it cannot be split".to_owned(),
                    _ => format!("even over {heads} workers each would need {}", gib(each(heads))),
                };
                return Err(OpenError(format!(
                    "{}, the largest worker has room for {}, and {most}; give workers a larger --memory-budget, or \
                     choose a smaller --dtype",
                    needs(),
                    gib(room)
                )));
            };
            let reason = format!(
                "{}, the largest worker has room for {}: split over {ranks}",
                needs(),
                gib(memory.largest)
            );
            Ok(Split { ranks, rank_bytes: each(ranks), reason })
        }
        1 => Ok(Split { ranks: 1, rank_bytes: 0, reason: String::new() }),
        ranks if heads > 0 && heads % ranks != 0 => {
            let good: Vec<String> = divisors(heads).map(|ranks| ranks.to_string()).collect();
            Err(OpenError(format!(
                "{name} has {heads} attention heads, which {ranks} shards do not divide; choose one of {}",
                good.join(", ")
            )))
        }
        ranks if room > 0 && each(ranks) > room => Err(OpenError(format!(
            "{}: {} on each of {ranks} workers, and the largest has room for {}; choose more shards",
            needs(),
            gib(each(ranks)),
            gib(room)
        ))),
        ranks => Ok(Split { ranks, rank_bytes: each(ranks), reason: String::new() }),
    }
}

fn divisors(heads: u32) -> impl Iterator<Item = u32> {
    (1..=heads).filter(move |ranks| heads.is_multiple_of(*ranks))
}

fn in_dtype(dtype: &str) -> String {
    if dtype.is_empty() { String::new() } else { format!(" in {dtype}") }
}

/// `45.0 GiB`, `312 MiB`
fn gib(bytes: u64) -> String {
    const MIB: f64 = (1_u64 << 20) as f64;
    let mib = bytes as f64 / MIB;
    if mib < 1000.0 { format!("{:.0} MiB", mib.ceil()) } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn model(weight_bytes: u64, attention_heads: u32) -> ResolvedModel {
        let dtype = "f32".to_owned();
        ResolvedModel { weight_bytes, dtype, attention_heads, ..Default::default() }
    }

    fn memory(largest: u64, largest_of_ranks: u64) -> DeviceMemory {
        DeviceMemory { largest, largest_of_ranks }
    }

    #[test]
    fn the_smallest_number_that_divides_the_heads_and_fits_is_taken() {
        for (bytes, heads, asked, memory, ranks, rank_bytes) in [
            (45 * GIB, 64, 0, memory(24 * GIB, 24 * GIB), 2, 45 * GIB / 2),
            (45 * GIB, 64, 0, memory(48 * GIB, 24 * GIB), 1, 45 * GIB),
            (45 * GIB, 64, 0, memory(24 * GIB, 12 * GIB), 4, 45 * GIB / 4),
            (45 * GIB, 64, 0, memory(24 * GIB, 0), 2, 45 * GIB / 2),
            (45 * GIB, 6, 0, memory(12 * GIB, 12 * GIB), 6, 45 * GIB / 6),
            (45 * GIB, 64, 0, memory(0, 0), 1, 45 * GIB),
            (0, 0, 0, memory(GIB, GIB), 1, 0),
            (45 * GIB, 64, 1, memory(GIB, GIB), 1, 0),
            (GIB, 6, 3, memory(8 * GIB, 8 * GIB), 3, GIB.div_ceil(3)),
            (GIB, 0, 3, memory(8 * GIB, 0), 3, GIB.div_ceil(3)),
        ] {
            let split = split("xxl", &model(bytes, heads), asked, memory).unwrap();
            assert_eq!(
                (split.ranks, split.rank_bytes),
                (ranks, rank_bytes),
                "{bytes} {heads} {asked} {memory:?}"
            );
            assert_eq!(split.reason.is_empty(), asked > 0 || ranks == 1, "{}", split.reason);
        }
        let split = split("flan-t5-xxl", &model(45 * GIB, 64), 0, memory(24 * GIB, 24 * GIB)).unwrap();
        assert_eq!(
            split.reason,
            "flan-t5-xxl needs 45.0 GiB in f32, the largest worker has room for 24.0 GiB: split over 2"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_all_numbers() {
        for (bytes, heads, asked, memory, words) in [
            (
                GIB,
                6,
                4,
                memory(8 * GIB, 8 * GIB),
                "6 attention heads, which 4 shards do not divide; choose one of 1, 2, 3, 6",
            ),
            (45 * GIB, 8, 0, memory(4 * GIB, 4 * GIB), "even over 8 workers each would need 5.6 GiB"),
            (45 * GIB, 0, 0, memory(4 * GIB, 4 * GIB), "it cannot be split"),
            (
                45 * GIB,
                8,
                2,
                memory(4 * GIB, 4 * GIB),
                "22.5 GiB on each of 2 workers, and the largest has room for 4.0 GiB",
            ),
        ] {
            let told = split("xxl", &model(bytes, heads), asked, memory).unwrap_err().to_string();
            assert!(told.contains(words), "{told}");
        }
        assert_eq!(gib(312 << 20), "312 MiB");
    }
}
