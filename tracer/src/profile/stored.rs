//! Tables of counts as a capture stores them: as lists, because another version may have more or fewer.
//!
//! For `#[serde(with)]`. Invariant: what is missing is 0, and what is not known is left out.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<S: Serializer, const N: usize>(
    counts: &[u64; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    counts.as_slice().serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u64; N], D::Error> {
    let mut counts = [0; N];
    for (to, from) in counts.iter_mut().zip(Vec::<u64>::deserialize(deserializer)?) {
        *to = from;
    }
    Ok(counts)
}
