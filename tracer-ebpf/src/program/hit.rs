//! A hit: who, where, and what the registers say.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{bindings::pt_regs, helpers::bpf_get_current_pid_tgid};
use tracer_ebpf::{
    config::Config,
    process::ProcessState,
    reason::Reason,
    record::{Head, block, stack_id::UNREADABLE},
    site::{Operand, PointKey, Role, Site, event, flag, group::GROUPS, operand},
};

use crate::{
    emit::{lose, lose_unattributed},
    loops::Loops,
    maps::{IMAGES, POINTS, PROCESSES, SITES, config},
    memory::{self, Memory},
    process, read,
    timing::Start,
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
    start: Start,
}

impl Hit {
    /// What a cookie stands for. `None` if the recording has ended.
    #[inline(always)]
    pub(crate) fn new(cookie: u64) -> Option<Self> {
        let thread = bpf_get_current_pid_tgid();
        let config = config()?;
        if config.stopped != 0 {
            return None;
        }
        let start = Start::now(config.nothing);
        let index = site_index(config, cookie);
        let Some(site) = SITES.get(index) else {
            lose_unattributed(Reason::SiteUnknown);
            return None;
        };
        Some(Self {
            config,
            site,
            index: u64::from(index),
            thread,
            pid: (thread >> 32) as u32,
            start,
        })
    }

    /// The program is through with it.
    #[inline(always)]
    pub(crate) fn over(&self) {
        self.start
            .over(|| PROCESSES.get_ptr_mut(self.pid), self.site.group);
    }

    #[inline(always)]
    pub(crate) fn is(&self, role: Role) -> bool {
        self.site.role == role as u32
    }

    #[inline(always)]
    pub(crate) fn has(&self, bit: u32) -> bool {
        self.site.flags & bit != 0
    }

    /// Whether nothing but its number counts.
    #[inline(always)]
    pub(crate) fn is_muted(&self) -> bool {
        self.config.muted >> (self.site.group & (GROUPS as u32 - 1)) & 1 != 0
    }

    /// The kind of the blocks that the interpreter's own allocator makes, computed without a branch.
    #[inline(always)]
    pub(crate) fn pool_kind(&self) -> u8 {
        (self.site.flags / flag::MIMALLOC & 1) as u8 * block::MIMALLOC
            + (self.site.flags / flag::DOMAIN & 1) as u8 * block::DOMAIN
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
    pub(crate) fn stack<L: Loops>(&self, state: *mut ProcessState) -> u64 {
        stack_of::<L>(self.config, state, self.site.image, self.thread)
    }
}

/// The id of the current thread's Python stack, as the interpreter of that image has it.
#[inline(always)]
pub(crate) fn stack_of<L: Loops>(
    config: &'static Config,
    state: *mut ProcessState,
    image: u32,
    thread: u64,
) -> u64 {
    let Some(layout) = IMAGES.get(image) else {
        lose(state, Reason::SiteUnknown);
        return UNREADABLE;
    };
    let Some(memory) = memory::take(thread) else {
        lose(state, Reason::NoWorkplace);
        return UNREADABLE;
    };
    let walker = Walker {
        config,
        layout,
        state,
        memory,
        thread,
        pid: (thread >> 32) as u32,
    };
    let id = walk::stack::<L>(&walker, process::bias_of(state, image));
    // SAFETY: it was taken above, and nothing uses it from here on.
    unsafe { Memory::give_back(memory) };
    id
}

/// Index of the site that is hit; one that no site has, if it cannot be told.
#[inline(always)]
fn site_index(config: &Config, cookie: u64) -> u32 {
    if cookie & event::COOKIE == 0 {
        return cookie as u32;
    }
    let found = probe_offset(config).and_then(|offset| {
        // SAFETY: a lookup; the value is copied at once.
        unsafe { POINTS.get(PointKey { cookie, offset }) }.copied()
    });
    found.unwrap_or(u32::MAX)
}

/// Where in the file the probe of an event stands. Neither the instruction pointer (in the second half of a call it is where
/// the call returns to) nor a helper of the kernels that this is for says so, but the event's own handler has left it for
/// what it calls: `current->utask->vaddr` leads to a `struct uprobe_dispatch_data`, which begins with the probe.
/// <https://github.com/torvalds/linux/blob/v6.1/kernel/trace/trace_uprobe.c>
#[inline(always)]
fn probe_offset(config: &Config) -> Option<u64> {
    let utask: u64 = read::kernel(read::task() + u64::from(config.task_utask))?;
    let data: u64 = read::kernel(utask + u64::from(config.utask_vaddr))?;
    let probe: u64 = read::kernel(data)?;
    read::kernel(probe + u64::from(config.probe_offset))
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

/// A general purpose register by its number.
#[inline(always)]
fn register(number: u8, regs: &pt_regs) -> u64 {
    match number & 15 {
        0 => saved::<{ offset_of!(pt_regs, rax) as i32 }>(regs),
        1 => saved::<{ offset_of!(pt_regs, rcx) as i32 }>(regs),
        2 => saved::<{ offset_of!(pt_regs, rdx) as i32 }>(regs),
        3 => saved::<{ offset_of!(pt_regs, rbx) as i32 }>(regs),
        4 => saved::<{ offset_of!(pt_regs, rsp) as i32 }>(regs),
        5 => saved::<{ offset_of!(pt_regs, rbp) as i32 }>(regs),
        6 => saved::<{ offset_of!(pt_regs, rsi) as i32 }>(regs),
        7 => saved::<{ offset_of!(pt_regs, rdi) as i32 }>(regs),
        8 => saved::<{ offset_of!(pt_regs, r8) as i32 }>(regs),
        9 => saved::<{ offset_of!(pt_regs, r9) as i32 }>(regs),
        10 => saved::<{ offset_of!(pt_regs, r10) as i32 }>(regs),
        11 => saved::<{ offset_of!(pt_regs, r11) as i32 }>(regs),
        12 => saved::<{ offset_of!(pt_regs, r12) as i32 }>(regs),
        13 => saved::<{ offset_of!(pt_regs, r13) as i32 }>(regs),
        14 => saved::<{ offset_of!(pt_regs, r14) as i32 }>(regs),
        _ => saved::<{ offset_of!(pt_regs, r15) as i32 }>(regs),
    }
}

/// The word at a fixed offset in the context: it must be read so, and the compiler would make one load of all.
#[inline(always)]
fn saved<const OFFSET: i32>(regs: &pt_regs) -> u64 {
    let value: u64;
    // SAFETY: a word of the context.
    unsafe {
        asm!("{value} = *(u64 *)({regs} + {offset})", value = out(reg) value, regs = in(reg) regs,
            offset = const OFFSET, options(pure, readonly, nostack));
    }
    value
}
