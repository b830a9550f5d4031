//! Names for instances that got none: an adjective, a noun and three characters, `calm-ferry-7kq`.

const ADJECTIVES: [&str; 32] = [
    "able", "amber", "bold", "brisk", "calm", "clear", "deft", "eager", "early", "fair", "fleet", "gentle", "glad",
    "handy", "keen", "kind", "light", "lively", "lucky", "mild", "neat", "nimble", "plain", "proud", "quick", "quiet",
    "ready", "sharp", "steady", "sunny", "swift", "warm",
];
const NOUNS: [&str; 32] = [
    "anchor", "barge", "bay", "beacon", "boat", "breeze", "buoy", "canal", "canoe", "cove", "creek", "delta", "dock",
    "ferry", "harbor", "heron", "island", "jetty", "junk", "lagoon", "oar", "otter", "pier", "quay", "raft", "reed",
    "river", "rudder", "sail", "shore", "skiff", "tide",
];
/// Without vowels, so that no word comes out, and without what looks alike.
const TAIL: [u8; 24] = *b"bcdfghjkmnpqrstvwxz23479";

/// A name nobody chose; fourteen million of them.
pub(super) fn made_up() -> String {
    let mut random = [0_u8; 8];
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).is_err() {
        random = std::process::id().to_le_bytes().repeat(2).try_into().unwrap_or_default();
    }
    name(random)
}

fn name(random: [u8; 8]) -> String {
    let [adjective, noun, first, second, more, ..] = random.map(usize::from);
    let tail = |index: usize| char::from(TAIL[index % TAIL.len()]);
    format!(
        "{}-{}-{}{}{}",
        ADJECTIVES[adjective % ADJECTIVES.len()],
        NOUNS[noun % NOUNS.len()],
        tail(first),
        tail(second),
        tail(more)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::label;

    #[test]
    fn every_name_is_one_that_the_service_takes() {
        for seed in 0..=255_u8 {
            let name = name([seed, seed.wrapping_mul(7), seed.wrapping_mul(31), seed, 255 - seed, 0, 0, 0]);
            assert_eq!(label(&name), Ok(name.clone()));
        }
    }
}
