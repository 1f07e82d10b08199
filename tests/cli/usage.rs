//! Help, versions and wrong usage: what goes to which stream, with which exit code.

use crate::support::run::{Run, pyrobe, run};

#[track_caller]
fn pyrobe_says(arguments: &[&str]) -> Run {
    run(&mut pyrobe(arguments))
}

#[track_caller]
fn check_usage_error(arguments: &[&str]) {
    let run = pyrobe_says(arguments).expect_code(2).expect_stderr("error: ");
    assert_eq!(run.stdout_text(), "", "an error belongs on standard error\n{run}");
}

#[test]
fn help_goes_to_standard_output() {
    for arguments in [
        &["--help"][..],
        &["record", "--help"],
        &["report", "table", "--help"],
        &["ps", "--help"],
    ] {
        let run = pyrobe_says(arguments).expect_code(0);
        assert!(run.stdout_text().contains("Usage: pyrobe"), "{run}");
        assert_eq!(run.stderr, "", "{run}");
    }
}

#[test]
fn help_names_every_command() {
    let help = pyrobe_says(&["--help"]).stdout_text();
    for command in ["ps", "doctor", "record", "report", "export"] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "no {command} in\n{help}"
        );
    }
}

#[test]
fn hidden_options_are_not_in_the_help() {
    let run = pyrobe_says(&["record", "--help"]);
    assert!(!run.stdout_text().contains("ring-bytes"), "{run}");
}

#[test]
fn the_version_goes_to_standard_output() {
    let run = pyrobe_says(&["--version"]).expect_code(0);
    assert!(run.stdout_text().starts_with("pyrobe "), "{run}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    check_usage_error(&["no-such-command"]);
    check_usage_error(&["record", "--no-such-option"]);
    check_usage_error(&["record", "--pid", "not-a-number"]);
    check_usage_error(&["record", "--mode", "no-such-mode"]);
    check_usage_error(&["report", "stats"]);
    check_usage_error(&["report", "table", "file.pyrobe", "--view", "no-such-view"]);
    check_usage_error(&["export", "collapsed", "file.pyrobe", "--metric", "no-such-metric"]);
}

#[test]
fn sizes_of_files_that_cannot_be_kept_are_an_error_with_a_hint() {
    for options in [
        &["--rotate", "3"][..],
        &["--rotate", "1", "--max-size", "10M"],
        &["--rotate", "3", "--max-size", "1000"],
        &["--rotate", "3", "--max-size", "10M", "-o", "-"],
    ] {
        let run = pyrobe_says(&[&["record"], options].concat()).expect_code(2);
        run.expect_error_with_hint().expect_stderr("--rotate");
    }
    check_usage_error(&["record", "--rotate", "some"]);
    check_usage_error(&["record", "--rotate", "3", "--max-size", "10M", "--aggregate"]);
    check_usage_error(&["record", "--save-interval", "1s"]);
}

#[test]
fn a_target_that_means_nothing_is_an_error_with_a_hint() {
    for target in [
        ["--exe", "[ab"],
        ["--user", "no-such-user"],
        ["--cgroup", "/no/such/group"],
        ["--container", "not-an-id"],
        ["--container", "fffffffffffffffffffffffffff"],
    ] {
        for command in [&["ps"][..], &["record", "-o", "-"]] {
            let run = pyrobe_says(&[command, &target].concat()).expect_code(2);
            run.expect_error_with_hint().expect_stderr("caused by: ");
        }
    }
    check_usage_error(&["record", "--user", "root", "--", "true"]);
}

#[test]
fn no_command_shows_the_usage_and_fails() {
    let run = pyrobe_says(&[]).expect_code(2);
    assert!(run.stderr.contains("Usage: pyrobe"), "{run}");
}

#[test]
fn a_file_that_is_not_there_is_an_error_with_its_name() {
    for arguments in [
        &["report", "stats", "/no/such/file.pyrobe"][..],
        &["report", "table", "/no/such/file.pyrobe", "--json"],
        &["report", "flamegraph", "/no/such/file.pyrobe", "-o", "-"],
        &["export", "collapsed", "/no/such/file.pyrobe"],
    ] {
        let run = pyrobe_says(arguments)
            .expect_code(2)
            .expect_stderr("/no/such/file.pyrobe");
        let run = run.expect_stderr("caused by: ");
        assert_eq!(run.stdout_text(), "", "{run}");
    }
}
