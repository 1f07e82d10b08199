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

/// The same for all builds that have sites in every copy of the allocator: 3.10 and newer.
macro_rules! on_site_interpreters {
    ($name:ident, $check:expr) => {
        crate::matrix::on_interpreters! { $name, $check,
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

macro_rules! on_interpreters {
    ($name:ident, $check:expr, $($test:ident: $id:expr,)*) => {
        mod $name {
            use super::*;
            use crate::support::interpreters::{Id, find};
            $(
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

pub(crate) use {on_every_interpreter, on_interpreters, on_plain_interpreters, on_site_interpreters};
