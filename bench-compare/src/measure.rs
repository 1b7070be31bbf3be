//! Alternated repetitions and their medians.

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
    for _ in 0..options.repeat.min(group.repeat_max) {
        for ((_, work), (_, samples)) in group.work.iter().zip(&mut all) {
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

pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}
