//! A program that becomes Python by loading a library with dlopen: `tests/workloads/embed.c`, compiled.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{
    interpreters::{Interpreter, set_environment, workloads},
    run::run,
};

/// `PROGRAM LIBRARY ARGUMENTS...` behaves as `python ARGUMENTS...`; the program goes when this is dropped.
pub(crate) struct Embedding {
    pub(crate) program: PathBuf,
    /// The interpreter's shared library.
    pub(crate) library: PathBuf,
    home: PathBuf,
    _directory: TempDir,
}

impl Embedding {
    /// Compiles it, for the library of a pyenv-style build.
    #[track_caller]
    pub(crate) fn of(interpreter: &Interpreter) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let program = directory.path().join("embed");
        let mut compiler = Command::new("cc");
        compiler.arg("-o").arg(&program);
        compiler.arg(workloads().join("embed.c")).arg("-ldl");
        run(&mut compiler).expect_code(0);
        let home = interpreter.program.ancestors().nth(2).map(Path::to_path_buf);
        let home = home.expect("a pyenv-style build has a directory");
        Self {
            program,
            library: home.join(format!("lib/libpython3.{}.so.1.0", interpreter.id.minor())),
            home,
            _directory: directory,
        }
    }

    /// That of the interpreters, with the place of the standard library: it cannot be told from the program's own.
    pub(crate) fn set_environment(&self, command: &mut Command) {
        set_environment(command);
        command.env("PYTHONHOME", &self.home);
    }
}
