//! The slow tier: what is promised of the usual interpreters, on those that `cargo xtask pythons` builds; and what takes
//! minutes on the usual ones.
//!
//! Ignored unless asked for: `cargo xtask test --tier slow`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    audit, budget, census,
    heap::{self, check_leak_of, holding},
    held, host,
    matrix::{
        on_built_interpreters, on_free_threaded_interpreters, on_gil_built_interpreters, on_interpreters,
    },
    stacks,
    support::{capture::record, interpreters::Interpreter},
    truth,
};

macro_rules! workload {
    ($name:ident) => {
        on_built_interpreters!($name, |interpreter: &Interpreter| {
            stacks::check(interpreter, concat!(stringify!($name), ".py"));
        });
    };
}

workload!(plain_calls);
workload!(methods);
workload!(comprehensions);
workload!(generators);
workload!(async_tasks);
workload!(callbacks_from_c);
workload!(threads);
workload!(fork);
on_gil_built_interpreters!(exec_reuse, stacks::check_exec_reuse);
on_built_interpreters!(recursion, stacks::check_recursion);
on_built_interpreters!(without_gil, stacks::check_without_gil);
on_built_interpreters!(ps_names_the_interpreter, host::check_row);
on_gil_built_interpreters!(counted, census::check_counted);
on_gil_built_interpreters!(mixed_load, audit::check_mixed_load);
on_interpreters! { a_minute_of_mixed_load, audit::check_a_minute,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] sid_313: Id::Sid(13),
    #[ignore = "slow tier"] sid_314: Id::Sid(14),
    #[ignore = "slow tier"] sid_315: Id::Sid(15),
}
on_built_interpreters!(live_at_exit, |interpreter: &Interpreter| {
    truth::check_live_at_exit(interpreter, &[]);
});
on_free_threaded_interpreters!(blocks_occupy_what_mimalloc_gives, check_sizes);
on_free_threaded_interpreters!(threads_that_free_for_each_other, check_exchange);

/// Blocks of one requested size, as the program sees them.
#[derive(Debug, Deserialize)]
struct Size {
    line: u64,
    count: u64,
    /// Distance of neighbours.
    step: u64,
}

/// What the tracer says a block occupies is how far apart the interpreter's own addresses of such blocks are.
fn check_sizes(interpreter: &Interpreter) {
    let recorded = record(interpreter, "mimalloc_sizes.py", &[], &[]);
    let sizes = recorded.expected[0].more["sizes"].clone();
    let sizes: Vec<Size> = serde_json::from_value(sizes).expect("the program's figures are sizes");
    assert!(sizes.len() > 30, "too few sizes for a test: {sizes:?}");
    let table = recorded.capture.report("table", &["--by", "line"]);
    let mut seen: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for row in table["rows"].as_array().expect("a table has rows") {
        if row["file"] == recorded.expected[0].file.as_str() {
            let line = seen.entry(row["line"].as_u64().unwrap_or(0)).or_default();
            line.0 += row["live_count"].as_u64().expect("a count");
            line.1 += row["live_bytes"].as_u64().expect("a size");
        }
    }
    for size in &sizes {
        let (count, bytes) = seen.get(&size.line).copied().unwrap_or_default();
        // A line has a code object of its own, for which the interpreter keeps a small block. A wrong class would differ
        // by more: 8 bytes for each of 200 blocks at least.
        let (more, more_bytes) = (
            count.wrapping_sub(size.count),
            bytes.wrapping_sub(size.count * size.step),
        );
        assert!(
            more <= 1 && more_bytes <= more * 512,
            "{count} blocks of {bytes} bytes at {size:?}"
        );
    }
}

/// Threads that run at the same time hand each other blocks to free, and grow and shrink blocks that another one made:
/// no event is lost, none comes before the one that it needs, and nothing that was freed counts as live.
fn check_exchange(interpreter: &Interpreter) {
    let recorded = record(interpreter, "exchange.py", &[], &[]);
    let expected = &recorded.expected[0];
    let table = recorded.capture.report("table", &["--by", "line"]);
    let stats = recorded.capture.report("stats", &[]);
    assert_eq!(
        table["losses"]["total"], 0,
        "something was lost: {}",
        table["losses"]
    );
    let of_line = |mark: &str, key: &str| -> u64 {
        let line = &expected.more["lines"][mark];
        let rows = table["rows"].as_array().expect("a table has rows");
        rows.iter()
            .filter(|row| row["file"] == expected.file.as_str() && row["line"] == *line)
            .map(|row| row[key].as_u64().expect("a number"))
            .sum()
    };
    let made = expected.more["made"].as_u64().expect("a number");
    let kept = expected.more["kept"].as_u64().expect("a number");
    let live = of_line("make", "live_count");
    assert!(
        of_line("make", "own_count").abs_diff(made) * 200 <= made,
        "{} blocks instead of {made}\n{stats}",
        of_line("make", "own_count")
    );
    assert!(
        live.abs_diff(kept) * 200 <= made,
        "{live} blocks are live instead of {kept}\n{stats}"
    );
    for mark in ["array", "grow"] {
        let live = of_line(mark, "live_count");
        assert_eq!(live, 0, "blocks of `{mark}` are live that were freed\n{stats}");
    }
}

on_gil_built_interpreters!(heap_shares, heap::check_shares);
on_gil_built_interpreters!(refilled_pools, heap::check_refilled);
on_gil_built_interpreters!(caches, heap::check_caches);
on_gil_built_interpreters!(shares_beside_churn, heap::check_shares_beside_churn);

on_interpreters! { shares_of_half_a_gigabyte, check_large_shares,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
    #[ignore = "slow tier"] sid_313: Id::Sid(13),
    #[ignore = "slow tier"] sid_314: Id::Sid(14),
    #[ignore = "slow tier"] sid_315: Id::Sid(15),
}

/// The largest heap that shares are promised for.
fn check_large_shares(interpreter: &Interpreter) {
    let arguments = ["--size", "500", "--seconds", "2"];
    held::check_shares_of(&holding(
        interpreter,
        "heap_shares.py",
        &heap::UNBOUNDED,
        &arguments,
    ));
}

on_interpreters! { a_slow_leak, check_a_slow_leak,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
}

on_interpreters! { large_blocks_with_gaps, check_gaps,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
}

on_interpreters! { large_blocks_beside_churn, budget::check_large_beside_churn,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
}

on_interpreters! { shares_of_a_minute_within_the_budget, budget::check_shares_of_a_minute,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
    #[ignore = "slow tier"] sid_314: Id::Sid(14),
}

on_interpreters! { caches_of_a_minute_within_the_budget, budget::check_caches_of_a_minute,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
    #[ignore = "slow tier"] sid_315: Id::Sid(15),
}

on_interpreters! { fast_caches_of_a_minute_within_the_budget, budget::check_fast_caches_of_a_minute,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
    #[ignore = "slow tier"] sid_315: Id::Sid(15),
}

on_interpreters! { shares_of_half_a_gigabyte_within_the_budget, check_large_shares_within_the_budget,
    #[ignore = "slow tier"] debian_311: Id::Debian311,
    #[ignore = "slow tier"] pyenv_312: Id::Pyenv(12),
    #[ignore = "slow tier"] sid_315: Id::Sid(15),
}

/// Ten megabytes a second, by the default budget.
fn check_large_shares_within_the_budget(interpreter: &Interpreter) {
    budget::check_shares_at_a_pace(interpreter, "500");
}

/// What stays of large blocks that are traced a part of the time is known from those that are seen; who makes more that do not
/// stay is not taken for who holds the memory that these touched first. The program does little: by the default budget there would be
/// two looks in this minute.
fn check_gaps(interpreter: &Interpreter) {
    heap::check_gaps_of(&holding(
        interpreter,
        "heap_gaps.py",
        &["--max-overhead", "20"],
        &[],
    ));
}

/// A megabyte a minute beside a hundred a second that come and go: after three minutes it comes first.
fn check_a_slow_leak(interpreter: &Interpreter) {
    let arguments = ["--rate", "1", "--churn", "100", "--seconds", "180"];
    let holding = holding(interpreter, "heap_leak.py", &[], &arguments);
    // As much as it was asked for, or nearly: the machine does other things, too.
    let churned = holding.expected.more["churned_a_second"].as_u64();
    assert!(
        churned.is_some_and(|bytes| bytes > 70_000_000),
        "{churned:?} bytes a second"
    );
    check_leak_of(&holding);
}
