//! Taking turns: every round measures each side once, and another side begins each time, so that a slow minute of the
//! machine hits all of them.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::interrupt::{self, is_cause_of};
use crate::peers::announce;

/// A turn, preparation included, is announced when it takes so long.
const ANNOUNCED_FROM: Duration = Duration::from_secs(2);

/// Measures `sides` (ours is the first) in `rounds`. A peer that fails is announced, and its series is empty from then
/// on; when we fail, so does the whole.
pub(crate) fn take(
    rounds: u32,
    sides: &[&str],
    mut measure: impl FnMut(usize) -> Result<Duration>,
) -> Result<Vec<Vec<Duration>>> {
    let mut series: Vec<Option<Vec<Duration>>> = vec![Some(Vec::new()); sides.len()];
    for round in 0..rounds as usize {
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len();
            let (Some(name), Some(Some(times))) = (sides.get(side), series.get_mut(side)) else { continue };
            interrupt::check()?;
            let begin = Instant::now();
            match measure(side) {
                Ok(time) => {
                    times.push(time);
                    let turn = begin.elapsed();
                    if turn > ANNOUNCED_FROM {
                        announce(&format!("round {}: {name}: {time:.2?} in a turn of {turn:.1?}", round + 1))?;
                    }
                }
                Err(error) if side == 0 || is_cause_of(&error) => return Err(error),
                Err(error) => {
                    announce(&format!("PEER FAILS: {name}: {error:#}"))?;
                    series[side] = None;
                }
            }
        }
    }
    Ok(series.into_iter().map(Option::unwrap_or_default).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_side_begins_each_time() {
        let mut order = Vec::new();
        let series = take(3, &["a", "b", "c"], |side| {
            order.push(side);
            Ok(Duration::from_secs(side as u64))
        });
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(series.unwrap()[2], [Duration::from_secs(2); 3]);
    }

    #[test]
    fn a_failing_peer_is_left_out_and_we_are_not() {
        let fail = |who: usize| move |side| if side == who { anyhow::bail!("no") } else { Ok(Duration::ZERO) };
        let series = take(2, &["a", "b"], fail(1)).unwrap();
        assert_eq!((series[0].len(), series[1].len()), (2, 0));
        assert!(take(2, &["a", "b"], fail(0)).is_err());
    }
}
