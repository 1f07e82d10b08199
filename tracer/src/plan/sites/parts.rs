//! Which ranges of the call frame information are functions of their own, and which are only parts of one.
//!
//! A compiler moves what is seldom run out of a function (`.cold`), and such a part has an entry of its own. A way back
//! through the code must not end there. A part is what nothing refers to but direct jumps: no call, no address in code,
//! none in data, no dynamic symbol. In doubt, as with bytes that only look like a reference, it is a function.

use rustc_hash::FxHashSet;

use super::{body::jump_target, code::Code};
use crate::units::VirtAddr;

/// How far a jump of one byte leads, with its own length.
const SHORT: u64 = 130;

/// The places that ways into functions lead to by something else than a direct jump.
#[derive(Debug, Default)]
pub(super) struct Entries(FxHashSet<u64>);

impl Code<'_> {
    /// Whether ways begin at `address`: it is the start of a function, and not of a part of one.
    pub(super) fn begins(&self, address: u64) -> bool {
        self.is_start(address) && (self.entries().0.contains(&address) || self.is_sibling(address))
    }

    /// Whether a function close by jumps there with one byte. Ways back do not know such jumps
    /// ([`Code::predecessors`]), so they must end there.
    fn is_sibling(&self, address: u64) -> bool {
        let Some(own) = self.function_at(address) else {
            return false;
        };
        let close = address.saturating_sub(SHORT)..address.saturating_add(SHORT);
        close.filter(|from| !own.contains(from)).any(|from| {
            self.at(from).is_some_and(|jump| {
                jump_target(&jump) == Some(address) && !jump.is_jmp_near() && !jump.is_jcc_near()
            })
        })
    }

    /// One pass over code and data.
    pub(super) fn find_entries(&self) -> Entries {
        let starts: FxHashSet<u64> = self
            .functions()
            .ranges()
            .iter()
            .map(|(start, _)| *start)
            .collect();
        let mut found = FxHashSet::default();
        let mut add = |address: u64| {
            if starts.contains(&address) {
                found.insert(address);
            }
        };
        for segment in self.elf().segments() {
            let Some(bytes) = self.elf().bytes_from(segment.address) else {
                continue;
            };
            let start = segment.address.get();
            if segment.executable {
                let mut before = [0_u8; 2];
                for (window, index) in bytes.array_windows::<4>().zip(0_u64..) {
                    let value = i64::from(i32::from_le_bytes(*window)).cast_unsigned();
                    let is_jump = matches!(before, [_, 0xe9] | [0x0f, 0x80..=0x8f]);
                    if !is_jump {
                        add(start.wrapping_add(index).wrapping_add(4).wrapping_add(value));
                        add(value);
                    }
                    let [first, ..] = *window;
                    before = [before[1], first];
                }
            } else {
                for word in bytes.as_chunks().0 {
                    add(u64::from_le_bytes(*word));
                }
            }
        }
        self.elf().relocated_addresses().for_each(|VirtAddr(to)| add(to));
        self.elf().exported_addresses().for_each(|VirtAddr(to)| add(to));
        Entries(found)
    }
}
