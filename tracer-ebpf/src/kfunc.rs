//! Numbers that stand for kernel functions in the object's call instructions, until the loader resolves them.

/// `bpf_session_is_return`.
pub const SESSION_IS_RETURN: u32 = 0x7f00_0001;
/// `bpf_session_cookie`.
pub const SESSION_COOKIE: u32 = 0x7f00_0002;

/// Each number with the name in the kernel's BTF.
pub const ALL: [(u32, &str); 2] = [
    (SESSION_IS_RETURN, "bpf_session_is_return"),
    (SESSION_COOKIE, "bpf_session_cookie"),
];
