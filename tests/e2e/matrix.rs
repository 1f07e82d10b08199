//! One test for each interpreter, so that a failure names the interpreter.

/// Makes a module of that name with a test for each interpreter, which calls `$check(&interpreter)`.
macro_rules! on_every_interpreter {
    ($name:ident, $check:expr) => {
        crate::matrix::on_interpreters! { $name, $check,
            pyenv_39: Id::Pyenv(9),
            pyenv_310: Id::Pyenv(10),
            pyenv_311: Id::Pyenv(11),
            pyenv_312: Id::Pyenv(12),
            pyenv_313: Id::Pyenv(13),
            debian_311: Id::Debian311,
            sid_313: Id::Sid(13),
            sid_314: Id::Sid(14),
            sid_315: Id::Sid(15),
        }
    };
}

/// The same for the builds whose allocator functions have one copy each.
macro_rules! on_plain_interpreters {
    ($name:ident, $check:expr) => {
        crate::matrix::on_interpreters! { $name, $check,
            pyenv_39: Id::Pyenv(9),
            pyenv_310: Id::Pyenv(10),
            pyenv_311: Id::Pyenv(11),
            pyenv_312: Id::Pyenv(12),
            pyenv_313: Id::Pyenv(13),
        }
    };
}

/// The same for the builds of the slow tier, which need `cargo xtask pythons`: ignored unless asked for with
/// `cargo xtask test --tier slow`.
macro_rules! on_built_interpreters {
    ($name:ident, $check:expr) => {
        crate::matrix::on_interpreters! { $name, $check,
            #[ignore = "slow tier"] clang: Id::Built(Built::Clang),
            #[ignore = "slow tier"] shared: Id::Built(Built::Shared),
            #[ignore = "slow tier"] free_threaded: Id::Built(Built::FreeThreaded),
        }
    };
}

/// The same for those of them with a GIL: the others do not reuse the addresses of code objects so soon.
macro_rules! on_gil_built_interpreters {
    ($name:ident, $check:expr) => {
        crate::matrix::on_interpreters! { $name, $check,
            #[ignore = "slow tier"] clang: Id::Built(Built::Clang),
            #[ignore = "slow tier"] shared: Id::Built(Built::Shared),
        }
    };
}

/// The same for those of them without a GIL.
macro_rules! on_free_threaded_interpreters {
    ($name:ident, $check:expr) => {
        crate::matrix::on_interpreters! { $name, $check,
            #[ignore = "slow tier"] free_threaded: Id::Built(Built::FreeThreaded),
        }
    };
}

macro_rules! on_interpreters {
    ($name:ident, $check:expr, $($(#[$attribute:meta])* $test:ident: $id:expr,)*) => {
        mod $name {
            use super::*;
            #[allow(unused_imports, reason = "not every matrix has builds of the slow tier")]
            use crate::support::interpreters::{Built, Id, find};
            $(
                $(#[$attribute])*
                #[test]
                fn $test() {
                    if let Some(interpreter) = find($id) {
                        $check(&interpreter);
                    }
                }
            )*
        }
    };
}

/// The same for programs that fill a heap in a few seconds, of which much is to be seen: `cargo xtask test` runs nothing beside these. On
/// two processors two programs and two recorders each get half of that time, and a program pays for the other's windows if both run
/// the same file.
macro_rules! on_interpreters_alone {
    ($name:ident, $check:expr, $($tests:tt)*) => {
        mod $name {
            use super::*;
            crate::matrix::on_interpreters! { alone, $check, $($tests)* }
        }
    };
}

pub(crate) use {
    on_built_interpreters, on_every_interpreter, on_free_threaded_interpreters, on_gil_built_interpreters,
    on_interpreters, on_interpreters_alone, on_plain_interpreters,
};
