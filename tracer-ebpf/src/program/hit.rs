//! A hit: who, where, and what the registers say.

use aya_ebpf::{bindings::pt_regs, helpers::bpf_get_current_pid_tgid};
use tracer_ebpf::{
    config::Config,
    process::ProcessState,
    reason::Reason,
    record::{Head, block, stack_id::UNREADABLE},
    site::{Operand, Role, Site, flag, operand},
};

use crate::{
    emit::{lose, lose_unattributed},
    maps::{IMAGES, SITES, config},
    memory, process, read,
    walk::{self, Walker},
};

/// Bit of the flags register that a compare sets if both sides are equal.
const ZERO_FLAG: u64 = 1 << 6;

const _: () = assert!(block::POOL == 0);

/// A hit of a site.
pub(crate) struct Hit {
    pub(crate) config: &'static Config,
    pub(crate) site: &'static Site,
    pub(crate) index: u64,
    /// Process and thread.
    pub(crate) thread: u64,
    pub(crate) pid: u32,
}

impl Hit {
    #[inline(always)]
    pub(crate) fn new(cookie: u64) -> Option<Self> {
        let thread = bpf_get_current_pid_tgid();
        let (Some(config), Some(site)) = (config(), SITES.get(cookie as u32)) else {
            lose_unattributed(Reason::SiteUnknown);
            return None;
        };
        Some(Self {
            config,
            site,
            index: cookie,
            thread,
            pid: (thread >> 32) as u32,
        })
    }

    #[inline(always)]
    pub(crate) fn is(&self, role: Role) -> bool {
        self.site.role == role as u32
    }

    #[inline(always)]
    pub(crate) fn has(&self, bit: u32) -> bool {
        self.site.flags & bit != 0
    }

    /// The kind of the blocks that the interpreter's own allocator makes, computed without a branch.
    #[inline(always)]
    pub(crate) fn pool_kind(&self) -> u8 {
        (self.site.flags / flag::MIMALLOC & 1) as u8 * block::MIMALLOC
    }

    /// Whether the compare before the jump came out as the site wants it.
    #[inline(always)]
    pub(crate) fn counts(&self, regs: &pt_regs) -> bool {
        let is_zero = regs.eflags & ZERO_FLAG != 0;
        !(self.has(flag::IF_ZERO) && !is_zero || self.has(flag::IF_NOT_ZERO) && is_zero)
    }

    #[inline(always)]
    pub(crate) fn head(&self, kind: u8, flags: u8, len: usize) -> Head {
        Head {
            kind,
            flags,
            len: len as u16,
            pid: self.pid,
        }
    }

    #[inline(always)]
    pub(crate) fn stack(&self, state: *mut ProcessState) -> u64 {
        let Some(layout) = IMAGES.get(self.site.image) else {
            lose(state, Reason::SiteUnknown);
            return UNREADABLE;
        };
        let Some(memory) = memory::of(self.thread) else {
            lose(state, Reason::ThreadTableFull);
            return UNREADABLE;
        };
        let walker = Walker {
            config: self.config,
            layout,
            state,
            memory,
            pid: self.pid,
            tid: self.thread as u32,
        };
        walk::stack(&walker, process::bias_of(state, self.site.image))
    }
}

/// The value that an operand names; 0 if there is none or its memory cannot be read.
#[inline(always)]
pub(crate) fn value(of: Operand, regs: &pt_regs) -> u64 {
    let register = register(of.register, regs);
    if of.kind == operand::REGISTER {
        return register;
    }
    if of.kind == operand::MEMORY {
        return read::user_or_zero(register.wrapping_add(i64::from(of.displacement) as u64));
    }
    0
}

/// A general purpose register by its number. The context must be read at fixed offsets, hence the copy; a function
/// of its own, because the stack of all that is called together is 512 bytes.
#[inline(never)]
fn register(number: u8, regs: &pt_regs) -> u64 {
    let all = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    all[usize::from(number & 15)]
}
