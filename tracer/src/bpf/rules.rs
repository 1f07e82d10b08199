//! Rules by which the kernel side selects processes on its own, so that none is missed that comes later.
//!
//! Apart from the tracer because it is plain data. Invariant: whatever is not in the rules is no condition.

use tracer_ebpf::config::{RuleKey, rule};

/// What the kernel side can tell of a process at its first hit. Kinds that are given must all be met; of several of
/// one kind, any will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Effective user ids.
    pub users: Vec<u32>,
    /// Control groups (v2): in one of them, or below.
    pub cgroups: Vec<u64>,
    /// The same for those of containers.
    pub containers: Vec<u64>,
    /// What happens to executables.
    pub executables: Executables,
}

/// Who judges the executable of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Executables {
    /// Nobody: any will do.
    #[default]
    Any,
    /// The caller, with [`super::Tracer::add_target`] and [`super::Tracer::reject`]. Until then a process is traced.
    Judged,
}

impl Rules {
    /// Bits of the kinds that are given, and what goes into the rule table.
    pub(super) fn table(&self) -> (u32, Vec<RuleKey>) {
        let users = self.users.iter().map(|&uid| u64::from(uid)).collect();
        let kinds = [
            (rule::USER, users),
            (rule::CGROUP, self.cgroups.clone()),
            (rule::CONTAINER, self.containers.clone()),
        ];
        let mut bits = match self.executables {
            Executables::Any => 0,
            Executables::Judged => rule::EXECUTABLE,
        };
        let mut keys = Vec::new();
        for (kind, values) in kinds.iter().filter(|(_, values)| !values.is_empty()) {
            bits |= kind;
            keys.extend(values.iter().map(|&value| RuleKey {
                kind: *kind,
                reserved: 0,
                value,
            }));
        }
        (bits, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kinds_that_are_given_are_asked_for() {
        assert_eq!(Rules::default().table(), (0, Vec::new()));
        let (kinds, keys) = Rules {
            users: vec![0, 1000],
            containers: vec![7],
            executables: Executables::Judged,
            ..Rules::default()
        }
        .table();
        assert_eq!(kinds, rule::USER | rule::CONTAINER | rule::EXECUTABLE);
        let keys: Vec<(u32, u64)> = keys.iter().map(|key| (key.kind, key.value)).collect();
        assert_eq!(keys, [(rule::USER, 0), (rule::USER, 1000), (rule::CONTAINER, 7)]);
    }
}
