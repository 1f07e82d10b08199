//! Groups of sites that can be taken off, and the parts of the budget that they live on.

use std::time::Duration;

use tracer_ebpf::site::group;

use crate::plan::group_name;

/// A part of the budget, for groups that give way for each other. What is left of it is for what is not charged: page faults, which
/// thin themselves out, deaths of code objects, code that is in pages of its own where probes stand, and what the recorder takes
/// from the same processors; and for what a hit costs more than is charged in a program that goes through the kernel all the time,
/// half as much again (`cargo xtask bench peers --only service --option=--max-overhead=0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// For what heap mode rests on. A heap that grows fast costs more than its share for a while and less later, and what is not
    /// seen of it is not found again.
    Base,
    /// For large blocks, which are known from a sample, too.
    Large,
    /// For windows.
    Windows,
}

impl Share {
    pub(super) const COUNT: usize = 3;
    /// What one does not need is for the next.
    pub(super) const ALL: [Self; Self::COUNT] = [Self::Base, Self::Large, Self::Windows];

    pub(super) const fn part(self) -> f64 {
        match self {
            Self::Base | Self::Windows => 0.22,
            Self::Large => 0.16,
        }
    }

    /// A process that uses less of the time than this has the budget of one that uses so much. A hundredth of nothing would be
    /// nothing, and such a process is not where a host's time goes; but there can be many of them `at_work`, and then they share what
    /// a few have of what is known from a sample.
    pub(super) fn least_use(self, at_work: f64) -> f64 {
        let part = (FEW / at_work).min(1.0);
        match self {
            Self::Base => 0.35,
            Self::Large => 0.3 * part,
            Self::Windows => 0.2 * part,
        }
    }

    /// What a process begins with that began while it was recorded: it fills its heap then, and who does is not seen again. One that
    /// ran before has done so. (A fork without an exec has its parent's heap, and fills what it does not share.) It is paid in advance,
    /// for so many seconds of its processor time, since a program that ends soon is not to cost more than its budget either; of windows, a
    /// first one of 15 ms at the default budget.
    pub(super) const fn first(self) -> f64 {
        match self {
            Self::Base => 1.4,
            Self::Large => 3.0,
            Self::Windows => 3.4,
        }
    }

    /// For how long it can be saved up; seconds of its processor time.
    pub(super) const fn reserve(self) -> f64 {
        match self {
            Self::Base => 5.5,
            Self::Large => 8.0,
            Self::Windows => 24.0,
        }
    }

    /// For how long a process saves up, once it owes nothing, before a group is put back that was too dear: what it is then
    /// looked at for is what it earned in this time, however little it does.
    pub(super) const fn rest(self) -> Duration {
        match self {
            Self::Base => Duration::from_secs(1),
            Self::Large => Duration::from_secs(2),
            Self::Windows => Duration::from_secs(3),
        }
    }

    /// Putting its groups in place and taking them off, which the kernel does in every process that maps the file, takes one part in
    /// so many of a processor, of the recorder's own time; less where many processes are at work.
    pub(super) const fn change_share(self) -> u64 {
        match self {
            Self::Base => 250,
            Self::Large | Self::Windows => 500,
        }
    }

    /// For how long its groups are to stand at least: what is put in place for less tells little for what that costs.
    pub(super) const fn least_look(self) -> Duration {
        match self {
            Self::Large => Duration::from_millis(20),
            Self::Base | Self::Windows => Duration::ZERO,
        }
    }
}

/// Groups of sites that can be taken off: whose budget they live on, and their number.
pub(super) const GROUPS: [Group; 4] = [
    Group::new(Share::Large, group::LARGE),
    Group::new(Share::Large, group::DOMAINS),
    BLOCKS,
    Group::new(Share::Base, group::POOLS),
];
/// Stands in heap mode for a moment now and then only, and is only counted there.
pub(super) const BLOCKS: Group = Group::new(Share::Windows, group::BLOCKS);

/// So many processes are few: they have the least budget to the full.
pub(super) const FEW: f64 = 4.0;

/// See [`GROUPS`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) struct Group {
    pub(super) share: Share,
    pub(in super::super) number: u32,
    pub(in super::super) name: &'static str,
}

impl Group {
    const fn new(share: Share, number: u32) -> Self {
        Self {
            share,
            number,
            name: group_name(number),
        }
    }

    pub(super) fn of_number(number: u32) -> Self {
        let found = GROUPS.into_iter().find(|group| group.number == number);
        found.unwrap_or(BLOCKS)
    }

    pub(super) fn place(self) -> usize {
        usize::try_from(self.number).unwrap_or_default()
    }
}
