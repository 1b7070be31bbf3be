//! Alternated repetitions and their medians.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::fixtures::Fixtures;
use crate::options::Options;
use crate::row::{Contender, Group};

/// All samples of one contender: a list for each row, or why there is none.
pub(crate) type Samples = Result<Vec<Vec<f64>>, String>;

pub(crate) fn measure(
    group: &Group,
    fixtures: &Fixtures,
    options: &Options,
) -> Result<Vec<(Contender, Samples)>, String> {
    (group.prepare)(fixtures)?;
    let mut all: Vec<(Contender, Samples)> = group
        .work
        .iter()
        .map(|(contender, _)| (*contender, Ok(vec![Vec::new(); group.rows.len()])))
        .collect();
    for repetition in 0..(options.repeat * group.repeat_times).min(group.repeat_max) {
        for turn in order(group.work.len(), repetition) {
            let ((_, work), (_, samples)) = (&group.work[turn], &mut all[turn]);
            let Ok(lists) = samples else { continue };
            match work(fixtures) {
                Ok(numbers) => {
                    for (list, number) in lists.iter_mut().zip(numbers) {
                        list.push(number);
                    }
                }
                Err(reason) => *samples = Err(reason),
            }
        }
    }
    (group.verify)(fixtures)?;
    Ok(all)
}

/// The turns of one repetition, in another order each time, the same in each run: what a contender
/// leaves behind, a processor that has slowed down or a ring that is taken apart, meets all others
/// alike.
fn order(count: usize, repetition: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let state = BuildHasherDefault::<DefaultHasher>::default();
    order.sort_by_cached_key(|turn| state.hash_one((repetition, turn)));
    order
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}
