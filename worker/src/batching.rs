//! Which rows go into which batch: sorted by length, within a token budget, each distinct row once.
//!
//! Ragged batches carry no padding, so a batch's cost is its tokens; rows of like length beside each other keep the
//! attention of a batch even. Longest first: a batch that does not fit in memory shows itself at once.

use std::{collections::HashMap, hash::Hash};

use cappy_plugin_abi::{Code, Failure};

/// How large a batch may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tokens; a longer row goes alone.
    pub tokens: usize,
    /// Rows.
    pub rows: usize,
}

/// Batches of row indices, longest rows first; equal lengths stay in row order. Every index comes exactly once.
pub fn pack(lengths: &[usize], budget: Budget) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for row in order {
        match batches.last_mut() {
            Some(batch) if tokens + lengths[row] <= budget.tokens && batch.len() < budget.rows.max(1) => {
                tokens += lengths[row];
                batch.push(row);
            }
            _ => {
                tokens = lengths[row];
                batches.push(vec![row]);
            }
        }
    }
    batches
}

/// How many of the first `rows` go into one batch: as many as fit, and at least one.
pub fn fitting(rows: &[usize], lengths: &[usize], budget: Budget) -> usize {
    let mut tokens = 0;
    let fit = rows.iter().take(budget.rows).take_while(|&&row| {
        tokens += lengths[row];
        tokens <= budget.tokens
    });
    fit.count().max(1).min(rows.len())
}

/// The distinct items in order of first appearance, and for each item the index of its representative.
pub fn distinct<T: Hash + Eq>(items: impl IntoIterator<Item = T>) -> (Vec<T>, Vec<usize>) {
    let mut indices: HashMap<T, usize> = HashMap::new();
    let places: Vec<usize> = items
        .into_iter()
        .map(|item| {
            let next = indices.len();
            *indices.entry(item).or_insert(next)
        })
        .collect();
    let mut unique: Vec<(T, usize)> = indices.into_iter().collect();
    unique.sort_by_key(|(_, index)| *index);
    (unique.into_iter().map(|(item, _)| item).collect(), places)
}

/// Runs `attempt` on the items; where it runs out of memory, on each half of them, down to single items.
///
/// # Errors
/// The first failure that is not about memory, or that of a single item.
pub fn halving<T>(items: &[T], attempt: &mut dyn FnMut(&[T]) -> Result<(), Failure>) -> Result<(), Failure> {
    match attempt(items) {
        Err(failure) if failure.code == Code::OutOfMemory && items.len() > 1 => {
            let (head, tail) = items.split_at(items.len().div_ceil(2));
            tracing::info!(rows = items.len(), "out of memory, halving the batch");
            halving(head, attempt)?;
            halving(tail, attempt)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_comes_once_and_no_batch_is_over_the_budget(
            lengths in prop::collection::vec(1usize..600, 0..300),
            tokens in 1usize..4000,
            rows in 1usize..40,
        ) {
            let budget = Budget { tokens, rows };
            let batches = pack(&lengths, budget);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            prop_assert!(seen.windows(2).all(|pair| lengths[pair[0]] >= lengths[pair[1]]));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let total: usize = batch.iter().map(|&row| lengths[row]).sum();
                prop_assert!(batch.len() == 1 || (total <= tokens && batch.len() <= rows));
            }
            // Greedy: two neighbours that fit into one batch would have been one.
            for pair in batches.windows(2) {
                let head: usize = pair[0].iter().map(|&row| lengths[row]).sum();
                prop_assert!(head + lengths[pair[1][0]] > tokens || pair[0].len() == rows);
            }
        }

        #[test]
        fn pieces_of_a_batch_are_as_large_as_they_may_be(
            lengths in prop::collection::vec(1usize..600, 1..60),
            tokens in 1usize..4000,
            rows in 1usize..40,
        ) {
            let all: Vec<usize> = (0..lengths.len()).collect();
            let budget = Budget { tokens, rows };
            let taken = fitting(&all, &lengths, budget);
            let total = |count: usize| lengths[..count].iter().sum::<usize>();
            prop_assert!(taken == 1 || (total(taken) <= tokens && taken <= rows));
            prop_assert!(taken == all.len() || taken == rows || total(taken + 1) > tokens);
        }

        #[test]
        fn representatives_restore_the_items(items in prop::collection::vec(0u8..9, 0..60)) {
            let (unique, places) = distinct(items.iter().copied());
            let restored: Vec<u8> = places.iter().map(|&place| unique[place]).collect();
            prop_assert_eq!(restored, items);
            let again = distinct(unique.iter().copied()).0;
            prop_assert_eq!(again, unique);
        }
    }

    #[test]
    fn a_batch_is_halved_until_it_fits() {
        let items: Vec<u32> = (0..11).collect();
        let mut done = Vec::new();
        halving(&items, &mut |part| {
            if part.len() > 2 {
                return Err(Failure::out_of_memory("too large"));
            }
            done.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        assert_eq!(done, items);

        let mut calls = 0;
        let failure = halving(&items, &mut |_| {
            calls += 1;
            Err(Failure::out_of_memory("never fits"))
        })
        .unwrap_err();
        assert_eq!((failure.code, calls), (Code::OutOfMemory, 5));
    }
}
