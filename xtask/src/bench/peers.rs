//! What pyrobe costs the programs that it watches, in one table with the tools that people use today.
//!
//! The same programs, the same interpreter, the same run. In each round every tool runs each program once, and is held against
//! a run without any tool. pyrobe's goal is far below what a machine drifts from one run to the next, so its two runs go on at
//! the same time and share a processor, which alternates between them in milliseconds. A row without any tool shows what
//! chance gives.
//! A tool that fails on a program is not tried on it again, and its place says why.

mod client;
mod environment;
mod rounds;
mod session;
mod table;
mod tools;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::target::{describe_machine, pyrobe, scratch};
use crate::workspace;
use rounds::{Cells, Rounds};
use session::Took;
use table::{Cell, Row};
use tools::{Places, Tool};

/// A program that runs under the tools.
struct Program {
    name: &'static str,
    /// What it stands for.
    what: &'static str,
    /// At most so much slower under pyrobe.
    goal: f64,
    /// Pairs of a round whose two runs go on at the same time: more where chance makes more of one than what is looked for.
    pairs: usize,
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "mix",
        what: "allocates heavily: JSON, regular expressions, sorting, dicts",
        goal: 1.02,
        pairs: 1,
    },
    Program {
        name: "service",
        what: "a web service with JSON handlers under load",
        goal: 1.02,
        pairs: 2,
    },
    Program {
        name: "arrays",
        what: "a data program on numpy",
        goal: 1.02,
        pairs: 1,
    },
    // Twice the default budget.
    Program {
        name: "worst",
        what: "nothing but large blocks, as fast as can be",
        goal: 1.04,
        pairs: 1,
    },
];

/// What can be asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds: a pair of runs of each program under each tool, two of the service under pyrobe
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Only this program or tool; can be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Go on with the rounds that an interrupted run of the same pyrobe has done, up to so many
    #[arg(long)]
    go_on: bool,
    /// pyrobe's mode
    #[arg(long, default_value = "heap")]
    mode: String,
    /// A further option of `pyrobe record`, as `--option=--max-overhead=5`; can be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    option: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (programs, tools) = chosen(&args.only)?;
    let python = environment::make()?;
    let places = Places {
        pyrobe: pyrobe()?,
        copies: environment::copies(&python)?,
        python,
        scratch: scratch("peers")?,
        mode: args.mode.clone(),
        options: args.option.clone(),
    };
    let rounds = rounds_of(args, &places, &programs)?;
    let keys: Vec<&str> = tools.iter().map(|tool| tool.key()).collect();
    let (done, mut cells) = if args.go_on {
        rounds.load(&keys, &programs)?
    } else {
        (0, Cells::new())
    };
    for round in done..args.rounds {
        for Program {
            name: program, pairs, ..
        } in chosen_of(&programs)
        {
            let (program, file) = (*program, file_of(program));
            let mut without: Option<Took> = None;
            for &tool in &tools {
                let cell = cells.entry((tool.key(), program)).or_default();
                if cell.failure.is_some() {
                    continue;
                }
                if tool.is_exact() {
                    for pair in 0..*pairs {
                        let pair = session::run_beside(&places, tool, &file, round + pair)
                            .with_context(|| format!("{program} under {}", tool.key()))?;
                        cell.pairs.push(pair);
                        if tool.is_pyrobe() {
                            cell.estimates.push(places.estimate(tool)?);
                        }
                    }
                    continue;
                }
                let beside = match without {
                    Some(took) => took,
                    None => session::run(&places, Tool::Nothing, &file, tool.times())
                        .with_context(|| format!("{program} without any tool"))?,
                };
                without = Some(beside);
                match session::run(&places, tool, &file, tool.times()) {
                    Ok(took) => cell.pairs.push((beside, took)),
                    Err(error) => {
                        println!("{program} under {}: {error:#}", tool.key());
                        cell.failure = Some(format!("{error}"));
                    }
                }
            }
        }
        rounds.save(round + 1, &cells)?;
        println!("round {} of {} is done", round + 1, args.rounds);
        print_goals(&programs, &tools, &cells);
    }
    print(args, &places, &programs, &tools, &cells)
}

fn print(args: &Args, places: &Places, programs: &[&str], tools: &[Tool], cells: &Cells) -> Result<()> {
    describe_machine(&places.pyrobe, &places.python)?;
    println!("{}", environment::versions(&places.python)?);
    for Program {
        name, what, pairs, ..
    } in chosen_of(programs)
    {
        println!("{name}: {what}");
        if *pairs > 1 {
            println!("  {pairs} times as many pairs under pyrobe as of the others");
        }
        for (is_exact, under) in [(true, "pyrobe"), (false, "the others")] {
            let of_these = tools.iter().filter(|tool| tool.is_exact() == is_exact);
            let bare = of_these
                .filter_map(|tool| cells.get(&(tool.key(), *name)))
                .flat_map(|cell| cell.pairs.iter().map(|(without, _)| without.wall))
                .collect();
            if let Some(seconds) = table::Ratio::of(bare) {
                println!("  the work that it does under {under} takes {seconds} s without any tool");
            }
        }
    }
    println!(
        "medians of the ratios of {} pairs of runs, with against without, each two that follow each other as one (middle half of these)\n",
        args.rounds
    );
    let empty = Cell::default();
    let rows: Vec<Row> = tools
        .iter()
        .map(|tool| Row {
            title: tool.title(&args.mode),
            cells: programs
                .iter()
                .map(|program| cells.get(&(tool.key(), *program)).unwrap_or(&empty))
                .collect(),
        })
        .collect();
    let exact: Vec<String> = tools
        .iter()
        .filter(|tool| tool.is_exact())
        .map(|tool| tool.title(&args.mode))
        .collect();
    println!("{}", table::markdown(programs, &rows, &exact));
    print_goals(programs, tools, cells);
    Ok(())
}

/// How near pyrobe is to its goals so far.
fn print_goals(programs: &[&str], tools: &[Tool], cells: &Cells) {
    for tool in tools.iter().filter(|tool| tool.is_pyrobe()) {
        for Program { name, goal, .. } in chosen_of(programs) {
            let Some(cell) = cells.get(&(tool.key(), *name)) else {
                continue;
            };
            if let (Some(ratio), Some(estimate)) = (cell.ratio(|took| took.wall), cell.estimated()) {
                println!(
                    "{name} under {}: {ratio}, by its own estimate {estimate}; goal at most {goal}: {}",
                    tool.key(),
                    if ratio.median <= *goal { "met" } else { "missed" }
                );
            }
        }
    }
}

fn chosen_of<'p>(names: &'p [&str]) -> impl Iterator<Item = &'static Program> + 'p {
    PROGRAMS.iter().filter(|program| names.contains(&program.name))
}

/// What is asked for: all programs or all tools if none of them is named.
fn chosen(only: &[String]) -> Result<(Vec<&'static str>, Vec<Tool>)> {
    let named = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    let all_programs = PROGRAMS.map(|program| program.name);
    let known = |name: &String| {
        all_programs.contains(&name.as_str()) || Tool::ALL.iter().any(|tool| tool.key() == name)
    };
    if let Some(unknown) = only.iter().find(|name| !known(name)) {
        bail!(
            "no program or tool {unknown:?}\nhint: there are {}, {}",
            all_programs.join(", "),
            Tool::ALL.map(Tool::key).join(", ")
        );
    }
    let mut programs: Vec<&str> = all_programs.into_iter().filter(|name| named(name)).collect();
    let mut tools: Vec<Tool> = Tool::ALL.into_iter().filter(|tool| named(tool.key())).collect();
    if programs.is_empty() {
        programs = all_programs.to_vec();
    }
    if tools.is_empty() {
        tools = Tool::ALL.to_vec();
    }
    Ok((programs, tools))
}

/// Where rounds are kept of what is measured here.
fn rounds_of(args: &Args, places: &Places, programs: &[&str]) -> Result<Rounds> {
    let mut files: Vec<PathBuf> = programs.iter().map(|program| file_of(program)).collect();
    files.push(places.pyrobe.clone());
    let mut options = args.only.clone();
    options.push(args.mode.clone());
    options.extend(args.option.iter().cloned());
    let path = workspace::target_dir().join("bench/peers-rounds.json");
    Rounds::new(path, &files, &options)
}

fn file_of(program: &str) -> PathBuf {
    workspace::root()
        .join("xtask/src/bench/peers")
        .join(program)
        .with_extension("py")
}
