//! Heap mode against programs that know what their lines hold: who holds it, what was there before, what was filled again, what
//! grows, and whether the parts add up to the kernel's own figure.
//!
//! The programs tell what they hold, hold it on, and the recording is ended then: its last reading shows that moment.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Seek as _},
    process::{Child, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    held::{check_shares_of, check_sum},
    matrix::{on_interpreters, on_interpreters_alone},
    support::{
        capture::Capture,
        expected::{self, Expected},
        interpreters::{Id, Interpreter, find, set_environment},
        recording::Recording,
        records,
        run::{self, pyrobe},
        target::Target,
    },
};

/// A program that was recorded until it told what it holds.
pub(crate) struct Holding {
    pub(crate) capture: Capture,
    pub(crate) expected: Expected,
}

/// What a line holds, by the program's own account.
pub(crate) struct Line {
    pub(crate) mark: String,
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

/// No bound to the cost: what a busy machine makes of it is not what these tests are about.
pub(crate) const UNBOUNDED: [&str; 2] = ["--max-overhead", "0"];

/// `pyrobe record --mode heap OPTIONS` of a workload until its line of JSON.
#[track_caller]
pub(crate) fn holding(
    interpreter: &Interpreter,
    workload: &str,
    options: &[&str],
    arguments: &[&str],
) -> Holding {
    holding_in(interpreter, workload, options, arguments, &[])
}

/// The same with more in the environment.
#[track_caller]
pub(crate) fn holding_in(
    interpreter: &Interpreter,
    workload: &str,
    options: &[&str],
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Holding {
    let script = interpreter.script(workload);
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "heap", "-vv"]);
    command.args(options).arg("-o");
    command
        .arg(&capture.path)
        .arg("--")
        .args(interpreter.command_line());
    set_environment(&mut command);
    command.envs(environment.iter().copied());
    command.arg(&script.path).args(arguments);
    // No pipe: the program has it too, and lives longer than pyrobe.
    let mut log = tempfile::tempfile().expect("a temporary file can be made");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.try_clone().expect("a file can be opened twice"))
        .spawn()
        .expect("pyrobe can be started");
    let input = child.stdin.take();
    let said = first_line(&mut child);
    kill_process(Pid::from_child(&child), Signal::INT).expect("a child can be sent signals by its parent");
    let status = run::wait(&mut child);
    // The program ends when its input does.
    drop(input);
    let mut text = String::new();
    log.rewind()
        .and_then(|()| log.read_to_string(&mut text))
        .expect("pyrobe writes text");
    assert!(
        status.is_some_and(|status| status.success()),
        "{command:?}: {status:?}\n{text}"
    );
    show(&text);
    Holding {
        capture,
        expected: expected::parse(&said).remove(0),
    }
}

/// When what stood, as pyrobe says it.
#[expect(clippy::print_stderr, reason = "the test harness shows it if a check fails")]
fn show(log: &str) {
    eprintln!("{log}");
}

#[track_caller]
fn first_line(child: &mut Child) -> String {
    let output = child.stdout.take().expect("its output is a pipe");
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .expect("the program writes text");
    line
}

impl Holding {
    pub(crate) fn lines(&self) -> Vec<Line> {
        let lines = self.expected.more.get("lines").and_then(Value::as_array);
        let number = |line: &Value, key: &str| line[key].as_u64().expect("a number");
        lines
            .expect("the program tells what its lines hold")
            .iter()
            .map(|line| Line {
                mark: line["mark"].as_str().unwrap_or_default().to_owned(),
                number: number(line, "line"),
                bytes: number(line, "bytes"),
            })
            .collect()
    }

    #[track_caller]
    pub(crate) fn line(&self, mark: &str) -> Line {
        let line = self.lines().into_iter().find(|line| line.mark == mark);
        line.unwrap_or_else(|| panic!("the program has no line {mark:?}"))
    }

    /// A figure of the program's about the whole process.
    #[track_caller]
    pub(crate) fn whole(&self, part: &str, key: &str) -> u64 {
        let figure = self.expected.more.get(part).and_then(|part| part[key].as_u64());
        figure.unwrap_or_else(|| panic!("the program does not tell {part}.{key}"))
    }

    /// Bytes that a line holds according to pyrobe.
    pub(crate) fn seen(&self, table: &Value, line: u64) -> u64 {
        self.of_line(table, line, "live_bytes")
    }

    /// Bytes of it that are not resident.
    pub(crate) fn untouched(&self, table: &Value, line: u64) -> u64 {
        self.of_line(table, line, "untouched_bytes")
    }

    fn of_line(&self, table: &Value, line: u64, key: &str) -> u64 {
        let of_line = |row: &&Value| row["file"] == self.expected.file.as_str() && row["line"] == line;
        let bytes = |row: &Value| row[key].as_u64().unwrap_or(0);
        self.rows(table).filter(of_line).map(bytes).sum()
    }

    /// The rows of its process.
    pub(crate) fn rows<'a>(&self, table: &'a Value) -> impl Iterator<Item = &'a Value> {
        let rows = table["rows"].as_array().expect("a table has rows");
        rows.iter().filter(|row| row["pid"] == self.expected.pid)
    }

    /// Bytes that lines of the program hold according to pyrobe of which it does not tell: they hold next to nothing.
    pub(crate) fn of_other_lines(&self, table: &Value) -> BTreeMap<u64, u64> {
        let known = self.lines();
        let mut others = BTreeMap::new();
        for row in self.rows(table) {
            let line = row["line"].as_u64().unwrap_or(0);
            if row["file"] == self.expected.file.as_str() && known.iter().all(|known| known.number != line) {
                *others.entry(line).or_default() += row["live_bytes"].as_u64().unwrap_or(0);
            }
        }
        others
    }

    /// What the last reading of the process's heap found.
    #[track_caller]
    pub(crate) fn heap(&self) -> Value {
        self.heap_in(&self.capture.report("stats", &[]))
    }

    #[track_caller]
    pub(crate) fn heap_in(&self, stats: &Value) -> Value {
        let processes = stats["processes"].as_array().expect("there are processes");
        let process = processes
            .iter()
            .find(|process| process["pid"] == self.expected.pid);
        process.unwrap_or_else(|| panic!("the program is not in the capture: {stats:#}"))["heap"].clone()
    }
}

/// Bytes in a special row such as `[refilled pools]`.
pub(crate) fn special(table: &Value, name: &str) -> u64 {
    let rows = table["rows"].as_array().expect("a table has rows");
    let row = rows.iter().find(|row| row["function"] == name);
    row.map_or(0, |row| row["live_bytes"].as_u64().unwrap_or(0))
}

#[track_caller]
pub(crate) fn number(of: &Value, key: &str) -> u64 {
    of[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {key:?} in {of:#}"))
}

/// Whether two figures are no more than `percent` of a whole apart.
pub(crate) fn within(seen: u64, truth: u64, whole: u64, percent: u64) -> bool {
    seen.abs_diff(truth) * 100 <= whole * percent
}

on_interpreters_alone! { shares, check_shares,
    debian_311: Id::Debian311,
    pyenv_39: Id::Pyenv(9),
    pyenv_310: Id::Pyenv(10),
    pyenv_312: Id::Pyenv(12),
    sid_313: Id::Sid(13),
    sid_314: Id::Sid(14),
    sid_315: Id::Sid(15),
}

/// Every line that holds over 5% within three points, the sum within 5% of what the allocators count.
pub(crate) fn check_shares(interpreter: &Interpreter) {
    let holding = holding(
        interpreter,
        "heap_shares.py",
        &UNBOUNDED,
        &["--size", "100", "--seconds", "2"],
    );
    let table = check_shares_of(&holding);
    let all = holding.whole("allocators", "total");
    // It was traced from its first instruction.
    let before = special(&table, "[before tracing]");
    assert!(
        before * 200 <= all,
        "{before} of {all} from before tracing\n{table:#}"
    );
}

on_interpreters_alone! { shares_within_the_budget, check_shares_within_the_budget,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// With what `pyrobe record` spends if nobody asks for more, a program that does nothing but to allocate for some seconds is looked at a
/// part of the time. Something is missing from its lines then, and no line is shown with what others hold: of one that makes and
/// drops as many blocks as the others keep that would not be true, as there is hardly a short look in so little time.
fn check_shares_within_the_budget(interpreter: &Interpreter) {
    let arguments = ["--size", "100", "--churn", "500", "--seconds", "2"];
    let holding = holding(interpreter, "heap_shares.py", &[], &arguments);
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let all = holding.whole("allocators", "total");
    for line in holding.lines() {
        let seen = holding.seen(&table, line.number);
        let most = line.bytes + all * 3 / 100;
        let least = line.bytes.saturating_sub(all * 6 / 100);
        assert!(
            (least..=most).contains(&seen),
            "{}: {} held, {seen} seen\n{table:#}",
            line.mark,
            line.bytes
        );
    }
    check_sum(&holding, &table, &holding.heap());
}

on_interpreters_alone! { caches, check_caches,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_313: Id::Sid(13),
    sid_314: Id::Sid(14),
    sid_315: Id::Sid(15),
}

/// Caches that were trimmed and filled again many times, by each other's blocks. An entry lives for less than a second.
pub(crate) fn check_caches(interpreter: &Interpreter) {
    let arguments = ["--size", "60", "--turns", "14"];
    check_shares_of(&holding(interpreter, "heap_cache.py", &UNBOUNDED, &arguments));
}

on_interpreters_alone! { refilled_pools, check_refilled,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

const REFILL: [&str; 4] = ["--pause", "4", "--pace", "30000"];

/// What B put where A's blocks had been is B's, as windows tell in which every small block is seen, and in no other time.
pub(crate) fn check_refilled(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_refill.py", &UNBOUNDED, &REFILL);
    let [seen, _] = refilled(&holding);
    let b = holding.line("b");
    assert!(seen * 10 >= b.bytes * 8, "B holds {}, seen are {seen}", b.bytes);
    let (inside, outside) = records::sampled_blocks(&holding.capture.path);
    assert!(
        inside > 0 && outside == 0,
        "{inside} blocks were seen in windows, {outside} outside"
    );
}

on_interpreters! { refilled_pools_within_the_budget, check_refilled_within_the_budget,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Where the budget allows no window it is B's or nobody's.
pub(crate) fn check_refilled_within_the_budget(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_refill.py", &[], &REFILL);
    let [seen, unknown] = refilled(&holding);
    let b = holding.line("b");
    assert!(
        (seen + unknown) * 10 >= b.bytes * 8,
        "B holds {}, seen are {seen} and {unknown} in refilled pools",
        b.bytes
    );
}

/// What is seen of B, and what in refilled pools is nobody's. None of it is A's.
#[track_caller]
fn refilled(holding: &Holding) -> [u64; 2] {
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let (a, b) = (holding.line("a"), holding.line("b"));
    let seen = holding.seen(&table, a.number);
    assert!(
        seen <= a.bytes + b.bytes / 20,
        "A holds {}, seen are {seen}\n{table:#}",
        a.bytes
    );
    [
        holding.seen(&table, b.number),
        special(&table, "[refilled pools]"),
    ]
}

/// A leak of a megabyte a second beside thirty that are dropped.
pub(crate) const BESIDE_CHURN: [&str; 6] = ["--rate", "60", "--churn", "30", "--seconds", "20"];

on_interpreters! { shares_beside_churn, check_shares_beside_churn,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_313: Id::Sid(13),
    sid_314: Id::Sid(14),
    sid_315: Id::Sid(15),
}

/// Who makes and drops most of all blocks, and so acquires most pools, is not who holds what is in them.
pub(crate) fn check_shares_beside_churn(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_leak.py", &UNBOUNDED, &BESIDE_CHURN);
    check_leak_of(&holding);
    check_shares_of(&holding);
}

on_interpreters! { a_leak, check_leak,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
}

/// A leak beside churn and caches that fill up is what grows most surely.
pub(crate) fn check_leak(interpreter: &Interpreter) {
    check_leak_of(&holding(interpreter, "heap_leak.py", &[], &BESIDE_CHURN));
}

/// The line `leak` comes first.
pub(crate) fn check_leak_of(holding: &Holding) {
    let leaks = holding.capture.report("leaks", &[]);
    let leak = holding.line("leak");
    let first = &leaks["rows"][0];
    assert_eq!(
        (&first["file"], &first["line"]),
        (
            &Value::from(holding.expected.file.as_str()),
            &Value::from(leak.number)
        ),
        "{leaks:#}"
    );
    assert!(
        first["confidence"].as_f64().is_some_and(|sure| sure > 0.9),
        "{leaks:#}"
    );
}

/// Each line within a quarter of what it holds, and little of it with the line that drops all that it makes.
pub(crate) fn check_gaps_of(holding: &Holding) {
    let stats = holding.capture.report("stats", &[]);
    assert_eq!(stats["processes"][0]["partial"], true, "{stats:#}");
    let table = holding.capture.report("table", &["--view", "in-use"]);
    for mark in ["three", "one"] {
        let Line { number, bytes, .. } = holding.line(mark);
        let seen = holding.seen(&table, number);
        assert!(
            seen.abs_diff(bytes) * 4 <= bytes,
            "{mark} holds {bytes}, seen are {seen}\n{table:#}"
        );
    }
    let churned = holding.seen(&table, holding.line("churn").number);
    let all = number(&holding.heap(), "anonymous");
    assert!(
        churned * 20 <= all,
        "churn is said to hold {churned} of {all}\n{table:#}"
    );
}

on_interpreters! { memory_of_extensions, check_native,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
}

/// What C takes from libc and the kernel stands under the line that touched it first.
pub(crate) fn check_native(interpreter: &Interpreter) {
    check_native_of(&holding(interpreter, "heap_native.py", &UNBOUNDED, &[]), 2);
}

/// The same of a program that has run; so many percent of its memory may be nobody's.
#[track_caller]
pub(crate) fn check_native_of(holding: &Holding, percent: u64) {
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let heap = holding.heap();
    let all = number(&heap, "anonymous");
    let of = |mark: &str| {
        let line = holding.line(mark);
        (holding.seen(&table, line.number), line.bytes)
    };
    let (mapped, held) = of("touched");
    assert!(
        within(mapped, held, all, 3),
        "{held} held, {mapped} seen\n{table:#}"
    );
    // Half of what `small` took is free again: libc keeps it, or gives it to `big`. It is resident, and nobody touched it
    // before `small` did.
    let ((small, held_small), (big, held_big)) = (of("small"), of("big"));
    let (seen, held) = (small + big, held_small + held_big);
    assert!(
        big * 2 > held_big
            && small >= held_small
            && held <= seen + all * percent / 100
            && seen + all / 50 <= held + held_small * 11 / 10,
        "{held_small} and {held_big} held, {small} and {big} seen\n{table:#}"
    );
    check_sum(holding, &table, &heap);
}

on_interpreters! { memory_from_before, check_before,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_315: Id::Sid(15),
}

/// A process that runs already: what it held stands in one row, what it takes from then on under its lines.
pub(crate) fn check_before(interpreter: &Interpreter) {
    let mut target = Target::start_with(interpreter, interpreter.script("heap_before.py"), &[]);
    let (pid, capture) = (target.pid().to_string(), Capture::new());
    let mut command = pyrobe(["record", "--mode", "heap", "--pid", &pid]);
    let recording = Recording::start(command.args(UNBOUNDED).arg("-o").arg(&capture.path));
    let said = target.tell("go");
    recording.stop().expect_code(0);
    let holding = Holding {
        capture,
        expected: expected::parse(&said).remove(0),
    };
    target.finish();
    let table = holding.capture.report("table", &[]);
    let heap = holding.heap();
    let all = number(&heap, "anonymous");
    let before: u64 = holding
        .lines()
        .iter()
        .filter(|line| line.mark.starts_with("before"))
        .map(|line| line.bytes)
        .sum();
    let seen = special(&table, "[before tracing]");
    assert!(
        before > all / 3 && seen * 100 >= before * 95 && seen <= before + all / 5,
        "{before} from before, {seen} seen of {all}\n{table:#}"
    );
    check_sum(&holding, &table, &heap);
}

/// Only large blocks, as many as it can: the governor holds their cost near the budget, and says so.
#[test]
fn the_governor_bounds_the_cost_and_says_so() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let arguments = ["--seconds", "20"];
    let holding = holding(
        &interpreter,
        "heap_large.py",
        &["--max-overhead", "1"],
        &arguments,
    );
    let stats = holding.capture.report("stats", &[]);
    let process = &stats["processes"][0];
    assert_eq!(process["partial"], true, "{stats:#}");
    let notes = stats["notes"].to_string();
    assert!(notes.contains("large blocks: over --max-overhead"), "{stats:#}");
    // By its own account: hits that were counted, at what one costs here. It works all the time.
    let overhead = process["overhead_percent"].as_f64();
    assert!(overhead.is_some_and(|overhead| overhead < 2.0), "{stats:#}");
    for report in ["stats", "table", "leaks"] {
        let text = holding.capture.text(report);
        for said in ["over --max-overhead", " of the processes' time by the clock"] {
            assert!(text.contains(said), "{text}");
        }
        assert!(
            report == "leaks" || text.contains("~ this process was traced a part of the time"),
            "{text}"
        );
    }
}
