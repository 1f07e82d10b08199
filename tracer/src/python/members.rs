//! Checks a code object's layout against the attribute table that the image itself uses.
//!
//! `PyCode_Type.tp_members` is an array of `PyMemberDef { name, type, offset, flags, doc }` in the file's data:
//! <https://github.com/python/cpython/blob/v3.11.0/Include/structmember.h#L16-L24>. It names `co_filename` and
//! others with their offsets, so that a changed structure is noticed without debug information.

use tracer_ebpf::layout::ImageLayout;

use super::{WhyNot, version::Version};
use crate::{elf::Elf, units::VirtAddr};

/// `sizeof(PyMemberDef)`.
const MEMBER_BYTES: u64 = 40;
/// `offsetof(PyMemberDef, offset)`.
const MEMBER_OFFSET: u64 = 16;
/// Attributes looked at; real tables have about twenty.
const MAX_MEMBERS: u64 = 64;

pub(super) fn check(
    elf: &Elf<'_>,
    version: Version,
    tp_members: u64,
    layout: &ImageLayout,
) -> Result<(), WhyNot> {
    let missing = WhyNot::SymbolMissing { name: "PyCode_Type" };
    let code_type = elf.exported("PyCode_Type").ok_or_else(|| missing.clone())?;
    let members = code_type
        .address
        .checked_add(tp_members)
        .and_then(|slot| elf.address_at(slot));
    let members = members.ok_or(missing)?;
    let expected = [
        ("co_filename", layout.code_filename),
        (
            if version.minor >= 11 {
                "co_qualname"
            } else {
                "co_name"
            },
            layout.code_qualname,
        ),
        ("co_firstlineno", layout.code_first_line),
    ];
    for (what, expected) in expected {
        let expected = u64::from(expected);
        let found = offset_of(elf, members, what);
        if found != Some(expected) {
            return Err(WhyNot::LayoutMismatch {
                what,
                expected,
                found,
            });
        }
    }
    Ok(())
}

fn offset_of(elf: &Elf<'_>, members: VirtAddr, name: &str) -> Option<u64> {
    for index in 0..MAX_MEMBERS {
        let member = members.checked_add(index * MEMBER_BYTES)?;
        let member_name = elf.address_at(member)?;
        if elf.text(member_name, 64) == Some(name) {
            return elf.word(member.checked_add(MEMBER_OFFSET)?);
        }
    }
    None
}
