//! Compares the blocks believed alive with those that the interpreter's pools hold.
//!
//! Apart from `process`, whose path per event stays small: one comparison of times. An audit is compared with the live set as it
//! was when the pools were read, that is after the process's last event before that; the process ran on meanwhile, so
//! the live set is noted at both ends of the reading. Invariant: what cannot be compared is counted, never guessed.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    python::SIZE_CLASSES,
    units::{BootNs, MonotonicNs, Pid},
};

/// Bytes between two of them.
const ALIGNMENT: u64 = 16;

/// Blocks by size class: of 16, 32, ... 512 bytes.
pub type ByClass = [u64; SIZE_CLASSES];

/// The size class of a block that occupies so many bytes; `None` if no pool has such blocks.
pub(super) fn class_of(size: u64) -> Option<usize> {
    let index = size.div_ceil(ALIGNMENT).checked_sub(1)?;
    usize::try_from(index).ok().filter(|&index| index < SIZE_CLASSES)
}

/// What the pools of a process held at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolAudit {
    /// Process id.
    pub pid: Pid,
    /// When it started; with the pid it names the process.
    pub start: BootNs,
    /// When reading began, on the clock of the events.
    pub began: MonotonicNs,
    /// When it ended.
    pub ended: MonotonicNs,
    /// Whether the process was traced before it had any block.
    pub since_start: bool,
    /// Whether all pools were read.
    pub complete: bool,
    /// Pools in use.
    pub pools: u64,
    /// Blocks in use.
    #[serde(with = "super::stored")]
    pub used: ByClass,
}

/// What came of the audits of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audits {
    /// Audits that were compared.
    pub made: u64,
    /// Audits that could not be: the heap was too large to be read in bounded time.
    pub incomplete: u64,
    /// The most that any of them was apart, percent of the blocks in the pools.
    pub worst_percent: f64,
    /// The last one.
    pub last: Option<Comparison>,
}

/// Apart by more than this, percent, is told in every report.
const FAR_OFF: f64 = 1.0;

impl Audits {
    /// Whether the last audit was far off, more than what changed while it was made, of a process of which no block is
    /// from before tracing.
    pub fn is_far_off(&self) -> bool {
        self.last.as_ref().is_some_and(|last| {
            let unexplained = last.apart().saturating_sub(last.drift());
            last.audit.since_start && percent_of(unexplained, last.used()) > FAR_OFF
        })
    }
}

/// One audit beside what was believed then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparison {
    /// What the pools held.
    pub audit: PoolAudit,
    /// Blocks believed alive when reading began.
    #[serde(with = "super::stored")]
    pub believed_began: ByClass,
    /// The same when it ended.
    #[serde(with = "super::stored")]
    pub believed_ended: ByClass,
}

/// One size class of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassComparison {
    /// Bytes of its blocks.
    pub size: u64,
    /// Blocks believed alive: the mean of both ends of the reading.
    pub believed: u64,
    /// Blocks in the pools.
    pub used: u64,
    /// How much `believed` changed during the reading: the comparison is not more exact than that.
    pub drift: u64,
}

impl ClassComparison {
    /// Believed minus used: below 0, allocations were missed; above, frees were.
    pub fn difference(self) -> i64 {
        self.believed.cast_signed().wrapping_sub(self.used.cast_signed())
    }
}

impl Comparison {
    /// Each size class.
    pub fn classes(&self) -> impl Iterator<Item = ClassComparison> + '_ {
        let believed = self.believed_began.iter().zip(&self.believed_ended);
        let sizes = (ALIGNMENT..).step_by(usize::try_from(ALIGNMENT).unwrap_or(1));
        believed
            .zip(&self.audit.used)
            .zip(sizes)
            .map(|(((&began, &ended), &used), size)| ClassComparison {
                size,
                believed: began.midpoint(ended),
                used,
                drift: began.abs_diff(ended),
            })
    }

    /// Blocks believed alive.
    pub fn believed(&self) -> u64 {
        self.sum(|class| class.believed)
    }

    /// Blocks in the pools.
    pub fn used(&self) -> u64 {
        self.sum(|class| class.used)
    }

    /// Believed minus used.
    pub fn difference(&self) -> i64 {
        self.classes()
            .map(ClassComparison::difference)
            .fold(0, i64::saturating_add)
    }

    /// Blocks by which the two are apart, each class by itself: what is missing in one does not make up for what is
    /// too many in another.
    pub fn apart(&self) -> u64 {
        self.sum(|class| class.difference().unsigned_abs())
    }

    /// The same, percent of the blocks in the pools.
    pub fn percent(&self) -> f64 {
        percent_of(self.apart(), self.used())
    }

    /// Blocks by which what is believed changed during the reading.
    pub fn drift(&self) -> u64 {
        self.sum(|class| class.drift)
    }

    /// The class that is furthest apart; `None` if none is apart.
    pub fn worst(&self) -> Option<ClassComparison> {
        self.classes()
            .filter(|class| class.difference() != 0)
            .max_by_key(|class| class.difference().unsigned_abs())
    }

    fn sum(&self, of: impl Fn(ClassComparison) -> u64) -> u64 {
        self.classes().map(of).fold(0, u64::saturating_add)
    }
}

fn percent_of(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

/// The audits of one process, some of which wait for the events before them.
#[derive(Debug)]
pub(super) struct AuditLog {
    /// The first event later than this has something to compare.
    next: u64,
    waiting: VecDeque<Waiting>,
    audits: Audits,
}

#[derive(Debug)]
struct Waiting {
    audit: PoolAudit,
    believed_began: Option<ByClass>,
}

impl Default for AuditLog {
    fn default() -> Self {
        Self {
            next: u64::MAX,
            waiting: VecDeque::new(),
            audits: Audits::default(),
        }
    }
}

impl AuditLog {
    /// What came of those that did not have to wait any more.
    pub(super) fn audits(&self) -> &Audits {
        &self.audits
    }

    /// An audit; it is compared once an event comes that is later.
    pub(super) fn add(&mut self, audit: PoolAudit) {
        if audit.complete {
            self.waiting.push_back(Waiting {
                audit,
                believed_began: None,
            });
            self.find_next();
        } else {
            self.audits.incomplete += 1;
        }
    }

    /// Whether an event of this time comes after something that is to be compared first.
    #[inline]
    pub(super) fn is_due(&self, time: MonotonicNs) -> bool {
        time.0 > self.next
    }

    /// Compares what lies before `time` with the blocks that are believed alive.
    #[cold]
    pub(super) fn compare(&mut self, time: MonotonicNs, believed: &ByClass) {
        while let Some(waiting) = self.waiting.front_mut() {
            if time <= waiting.audit.began {
                break;
            }
            waiting.believed_began.get_or_insert(*believed);
            if time <= waiting.audit.ended {
                break;
            }
            if let Some(done) = self.waiting.pop_front() {
                let comparison = Comparison {
                    believed_began: done.believed_began.unwrap_or(*believed),
                    believed_ended: *believed,
                    audit: done.audit,
                };
                self.audits.made += 1;
                self.audits.worst_percent = self.audits.worst_percent.max(comparison.percent());
                self.audits.last = Some(comparison);
            }
        }
        self.find_next();
    }

    /// Forgets what waits: the process ended before it.
    pub(super) fn end(&mut self) {
        self.waiting.clear();
        self.find_next();
    }

    fn find_next(&mut self) {
        self.next = self.waiting.front().map_or(u64::MAX, |waiting| {
            let audit = &waiting.audit;
            match waiting.believed_began {
                None => audit.began.0,
                Some(_) => audit.ended.0,
            }
        });
    }
}
