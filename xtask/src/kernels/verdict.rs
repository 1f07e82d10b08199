//! What a guest wrote, against what pyrobe has to do on its kernel. Pure.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Expected, guest::TESTS};

/// One line on what went well, or what did not.
pub(super) fn judge(said: &str, expected: Expected) -> Result<String> {
    // The console ends lines with CR LF.
    let said = said.replace('\r', "");
    ensure!(said.contains("\n@@ end\n"), "the guest did not get to its end");
    let doctor = between(&said, "@@ doctor\n", "@@ doctor ended")?;
    let doctor: Value = serde_json::from_str(doctor).context("`doctor --json` wrote something else")?;
    let release = check(&doctor, "kernel")
        .and_then(|check| check.get("found")?.as_str())
        .unwrap_or("?");
    let doctor_code = code(&said, "doctor")?;
    let record_code = code(&said, "record")?;
    match expected {
        Expected::Refusal => {
            ensure!(
                check(&doctor, "kernel").is_some_and(|check| check.get("ok") == Some(&Value::Bool(false))),
                "doctor does not say that the kernel is too old: {doctor}"
            );
            ensure!(doctor_code == 2, "doctor ended with {doctor_code}, not 2");
            ensure!(record_code == 2, "record ended with {record_code}, not 2");
            let words = between(&said, "@@ doctor ended", "@@ record ended")?;
            ensure!(
                words.contains("too old") && words.contains("hint:"),
                "record does not say that the kernel is too old, but:\n{words}"
            );
            Ok(format!("{release}: refused, with the reason"))
        }
        Expected::Links(links) => {
            ensure!(
                doctor_code == 0,
                "doctor ended with {doctor_code}: {}",
                problems(&doctor)
            );
            let found = check(&doctor, "links").and_then(|check| check.get("found")?.as_str());
            ensure!(found == Some(links), "the links are {found:?} and not {links}");
            let tests = between(&said, "@@ tests\n", "@@ tests ended")?;
            let failed: Vec<&str> = TESTS
                .iter()
                .copied()
                .filter(|test| !tests.contains(&format!("test {test} ... ok")))
                .collect();
            ensure!(failed.is_empty(), "not passed: {}", failed.join(", "));
            ensure!(!tests.contains("skipped: "), "tests were skipped");
            Ok(format!("{release}: {links} links, {} tests passed", TESTS.len()))
        }
    }
}

/// One of doctor's checks.
fn check<'a>(doctor: &'a Value, name: &str) -> Option<&'a Value> {
    let checks = doctor.get("checks")?.as_array()?;
    checks
        .iter()
        .find(|check| check.get("name").is_some_and(|found| found == name))
}

/// What doctor found to be wrong.
fn problems(doctor: &Value) -> String {
    let checks = doctor
        .get("checks")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let found: Vec<&str> = checks
        .iter()
        .filter(|check| check.get("ok") == Some(&Value::Bool(false)))
        .filter_map(|check| check.get("found")?.as_str())
        .collect();
    found.join("; ")
}

/// The exit code that the guest's script saw.
fn code(said: &str, command: &str) -> Result<i32> {
    let text = between(said, &format!("@@ {command} ended with "), "\n")?;
    text.parse()
        .with_context(|| format!("{command} ended with `{text}`"))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Result<&'a str> {
    let Some((inner, _)) = text.split_once(start).and_then(|(_, rest)| rest.split_once(end)) else {
        bail!("the guest wrote no `{}`", start.trim());
    };
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(links: &str, kernel_ok: bool, code: i32, record: &str, failed: Option<&str>) -> String {
        let doctor = serde_json::json!({
            "checks": [
                {"name": "kernel", "ok": kernel_ok, "found": "6.1.0"},
                {"name": "links", "ok": true, "found": links},
            ],
            "hit_cost_ns": 5000.0,
        });
        let lines: Vec<String> = TESTS
            .iter()
            .map(|test| {
                let result = if failed == Some(*test) { "FAILED" } else { "ok" };
                format!("test {test} ... {result}\r\n")
            })
            .collect();
        let tests = lines.concat();
        format!(
            "boot\r\n@@ doctor\r\n{doctor}\r\n@@ doctor ended with {code}\r\n{record}@@ record ended with {code}\r\n\
             @@ tests\r\n{tests}@@ tests ended with 0\r\n@@ end\r\n"
        )
    }

    #[track_caller]
    fn check(said: &str, expected: Expected, problem: Option<&str>) {
        match (judge(said, expected), problem) {
            (Ok(_), None) => {}
            (Err(error), Some(problem)) => {
                let error = format!("{error:#}");
                assert!(error.contains(problem), "{error}");
            }
            (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
        }
    }

    #[test]
    fn a_guest_in_which_all_is_well_is_believed() {
        check(&said("multi", true, 0, "", None), Expected::Links("multi"), None);
        let refusal = "error: too old\r\nhint: newer\r\n";
        check(&said("multi", false, 2, refusal, None), Expected::Refusal, None);
    }

    #[test]
    fn what_is_not_well_is_named() {
        let links = Expected::Links("multi");
        check(&said("per-point", true, 0, "", None), links, Some("per-point"));
        check(&said("multi", true, 0, "", Some(TESTS[0])), links, Some(TESTS[0]));
        check(&said("multi", true, 2, "", None), links, Some("ended with 2"));
        check("@@ doctor\r\n", links, Some("did not get to its end"));
        check(
            &said("multi", false, 2, "", None),
            Expected::Refusal,
            Some("record"),
        );
        check(
            &said("multi", true, 2, "", None),
            Expected::Refusal,
            Some("doctor"),
        );
    }
}
