//! How each interpreter of the slow tier is configured, and what that needs.
//!
//! Plain data. A change here makes `cargo xtask pythons` build that interpreter anew.

/// The source package, and the release of Debian that has it.
pub(super) const SOURCE_PACKAGE: &str = "python3.13";
/// See [`SOURCE_PACKAGE`].
pub(super) const SUITE: &str = "trixie";

/// Debian packages, and what each is for.
pub(super) const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "compiler"),
    ("make", "build of CPython"),
    ("dpkg-dev", "source packages"),
    ("xz-utils", "source packages"),
    ("binutils", "strip"),
    ("pkg-config", "build of CPython"),
    ("clang-19", "compiler of `clang`"),
    ("lld-19", "linker of `clang`"),
    ("llvm-19", "profiles of `clang`"),
    ("libclang-rt-19-dev", "profiles of `clang`"),
    ("zlib1g-dev", "module zlib"),
    ("libbz2-dev", "module bz2"),
    ("liblzma-dev", "module lzma"),
    ("libffi-dev", "module ctypes"),
];

/// Given to every `configure`: what the tests have no use for only costs time.
const COMMON: &[&str] = &["--with-ensurepip=no", "--disable-test-modules"];

/// For `Modules/Setup.local`: modules that no test imports.
pub(super) const MODULES: &str = "\
*disabled*
_tkinter
_curses
_curses_panel
readline
_gdbm
_dbm
_sqlite3
_ssl
_hashlib
_elementtree
pyexpat
_decimal
_lsprof
_codecs_cn
_codecs_hk
_codecs_iso2022
_codecs_jp
_codecs_kr
_codecs_tw
";

/// What the interpreter runs to learn what is hot: short, since the shape of the code is what matters here.
const PROFILE_TASK: (&str, &str) = (
    "PROFILE_TASK",
    "-m test --pgo test_json test_re test_list test_dict",
);

/// One interpreter.
pub(super) struct Recipe {
    /// Its directory below the cache.
    pub(super) name: &'static str,
    /// For `configure`, besides [`COMMON`].
    options: &'static [&'static str],
    /// For `configure`; `{prefix}` is where it will be installed.
    pub(super) environment: &'static [(&'static str, &'static str)],
}

impl Recipe {
    /// The arguments of `configure`, but for the prefix.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &'static str> {
        COMMON.iter().chain(self.options).copied()
    }

    /// In one line, as one would type it.
    pub(super) fn shown(&self) -> String {
        let environment = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}='{value}'"));
        let words: Vec<String> = environment
            .chain(["./configure".to_owned()])
            .chain(self.arguments().map(str::to_owned))
            .collect();
        words.join(" ")
    }
}

/// All of them; the order is the one in which they are built.
pub(super) const RECIPES: &[Recipe] = &[
    // As macOS, FreeBSD and the builds of `uv` and `rye` have it: no guards, another schedule.
    Recipe {
        name: "clang",
        options: &["--enable-optimizations", "--with-lto=thin"],
        environment: &[
            // The tools by their paths: `configure` takes no others.
            ("CC", "clang-19"),
            ("CXX", "clang++-19"),
            ("LDFLAGS", "-fuse-ld=lld-19"),
            ("LLVM_PROFDATA", "/usr/lib/llvm-19/bin/llvm-profdata"),
            ("LLVM_AR", "/usr/lib/llvm-19/bin/llvm-ar"),
            ("OPT", "-DNDEBUG -fwrapv -O3 -Wall"),
            PROFILE_TASK,
        ],
    },
    // No GIL, mimalloc instead of pymalloc, objects with another header.
    Recipe {
        name: "free-threaded",
        options: &["--disable-gil"],
        environment: &[("OPT", "-DNDEBUG -fwrapv -O2 -Wall")],
    },
    // As container images have it.
    Recipe {
        name: "shared",
        options: &["--enable-shared", "--enable-optimizations", "--with-lto"],
        environment: &[
            // Lets `bin/python3.13` find its library without LD_LIBRARY_PATH.
            ("LDFLAGS", "-Wl,-rpath,{prefix}/lib"),
            ("OPT", "-DNDEBUG -fwrapv -O3 -Wall"),
            PROFILE_TASK,
        ],
    },
];
