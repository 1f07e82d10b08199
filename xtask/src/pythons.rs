//! `cargo xtask pythons`: builds CPython in the ways that no package here does, for the slow test tier.
//!
//! Debian's distributions of CPython are all static, built by gcc and with the GIL. What other people run is
//! built here from Debian's source package (without Debian's patches: as upstream, container images and pyenv
//! have it), installed below the cache and left alone until the recipe changes. Each interpreter is stripped, as
//! the ones that people run are; the files with symbols stay beside it in `symbols/`, as a truth for people.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{archive::Archive, process, setup, workspace};

mod recipes;

use recipes::{MODULES, PACKAGES, RECIPES, Recipe, SOURCE_PACKAGE, SUITE};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which interpreters; all of them if none is named
    names: Vec<String>,
    /// How many compilers run at a time
    #[arg(long, short, default_value_t = 2)]
    jobs: u32,
}

/// Builds what is not there yet.
pub(crate) fn run(args: &Args) -> Result<()> {
    for name in &args.names {
        if !RECIPES.iter().any(|recipe| recipe.name == name) {
            let known: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
            bail!("no recipe for `{name}`\nhint: there are {}", known.join(", "));
        }
    }
    let missing: Vec<&Recipe> = RECIPES
        .iter()
        .filter(|recipe| args.names.is_empty() || args.names.iter().any(|name| recipe.name == name))
        .filter(|recipe| !is_built(recipe))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    setup::install(PACKAGES)?;
    let source = Source::get()?;
    for recipe in missing {
        let start = Instant::now();
        build(recipe, &source, args.jobs)?;
        println!("{}: built in {} s", recipe.name, start.elapsed().as_secs());
    }
    Ok(())
}

/// Where the interpreters are, one directory each.
pub(crate) fn directory() -> PathBuf {
    workspace::cache().join("pythons")
}

/// What a finished build leaves behind: it is built again when this would differ.
fn stamp(recipe: &Recipe) -> String {
    format!("{SOURCE_PACKAGE} of {SUITE}\n{}\n{MODULES}", recipe.shown())
}

fn is_built(recipe: &Recipe) -> bool {
    let file = directory().join(recipe.name).join("pyrobe-recipe");
    fs::read_to_string(file).is_ok_and(|text| text.ends_with(&stamp(recipe)))
}

/// A source package, downloaded.
struct Source {
    dsc: PathBuf,
}

impl Source {
    fn get() -> Result<Self> {
        let directory = directory().join("source");
        setup::remove(&directory)?;
        make(&directory)?;
        let dsc = Archive::open(SUITE)?.source(SOURCE_PACKAGE, &directory)?;
        Ok(Self { dsc })
    }

    /// Unpacks it, as upstream released it.
    fn unpack(&self, into: &Path) -> Result<()> {
        process::run_quietly(
            Command::new("dpkg-source")
                .args(["--no-check", "--skip-patches", "--extract"])
                .arg(&self.dsc)
                .arg(into),
        )
    }

    /// The version with which it can be told from another: the name of the description.
    fn version(&self) -> String {
        self.dsc
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

fn build(recipe: &Recipe, source: &Source, jobs: u32) -> Result<()> {
    let prefix = directory().join(recipe.name);
    let work = directory().join(format!("{}.build", recipe.name));
    let log = directory().join(format!("{}.log", recipe.name));
    setup::remove(&work)?;
    setup::remove(&prefix)?;
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    source.unpack(&work)?;
    fs::write(work.join("Modules/Setup.local"), MODULES).context("cannot write the list of modules")?;
    let mut configure = Command::new("./configure");
    configure
        .current_dir(&work)
        .arg(format!("--prefix={}", prefix.display()))
        .args(recipe.arguments())
        .envs(
            recipe
                .environment
                .iter()
                .map(|(name, value)| (name, value.replace("{prefix}", &prefix.to_string_lossy()))),
        );
    process::run_logged(&mut configure, &log)?;
    let make = || {
        let mut command = Command::new("make");
        command.current_dir(&work);
        command
    };
    process::run_logged(make().arg(format!("-j{jobs}")), &log)?;
    // No bytecode of all the library: what is imported is compiled once, by whoever may write.
    process::run_logged(make().args(["altinstall", "COMPILEALL_OPTS=-x ."]), &log)?;
    separate_symbols(&prefix)?;
    setup::remove(&work)?;
    let text = format!("{}\n{}", source.version(), stamp(recipe));
    fs::write(prefix.join("pyrobe-recipe"), text).context("cannot write the recipe beside what it made")
}

/// Strips the interpreter and its library; keeps what they were in `symbols/`.
fn separate_symbols(prefix: &Path) -> Result<()> {
    let symbols = prefix.join("symbols");
    make(&symbols)?;
    for file in binaries(prefix)? {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(&file, symbols.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
        process::run(Command::new("strip").arg("--strip-unneeded").arg(&file))?;
    }
    Ok(())
}

/// `bin/python3.X` and `lib/libpython3.X.so.1.0`, whatever the version and the suffix.
fn binaries(prefix: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut inodes) = (Vec::new(), BTreeSet::new());
    for directory in ["bin", "lib"] {
        let path = prefix.join(directory);
        let entries = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_interpreter = directory == "bin" && name.starts_with("python3.") && !name.contains('-');
            let is_library = name.starts_with("libpython3.") && name.ends_with(".so.1.0");
            let metadata = entry
                .metadata()
                .with_context(|| format!("cannot read {}", entry.path().display()))?;
            // Links to one of these, hard ones too, are left alone.
            if (is_interpreter || is_library) && metadata.is_file() && inodes.insert(metadata.ino()) {
                found.push(entry.path());
            }
        }
    }
    if found.is_empty() {
        bail!("no interpreter in {}", prefix.display());
    }
    Ok(found)
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}
