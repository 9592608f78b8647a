//! `holdfast bench compare`: whether two measurements differ, and by more than their noise.
//!
//! What varies between runs (where memory came to lie, where a hypervisor put the processors) does
//! not show within one, however many operations it has. So each run counts once: the logarithms of
//! a figure from the runs of each file give an interval for the ratio of the two (Welch's t), and a
//! difference is one only when that interval says so. The error rate is shared by all figures that
//! are judged.
//!
//! Where the machine itself was another one meanwhile (its own baseline moved), the ratios to the
//! baseline are judged in place of the figures. What has no such ratio (an open loop) is judged by
//! its figures all the same, but only "worse" is believed then, and only by more than the baseline
//! moved.

mod interval;
mod runs;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use interval::{Interval, Verdict};
use runs::{Runs, read};
use serde::Serialize;
use serde_json::Value;
use show::draw;

use super::report::SCHEMA_VERSION;
use crate::command::{EXIT_FAILED, print};

/// Exit status where the runs do not suffice for a verdict.
const EXIT_UNCLEAR: u8 = 3;

const EXAMPLES: &str = "\
Examples:
  holdfast bench write lat --repeat 5 --json >before.json
  ...                                   (change something)
  holdfast bench write lat --repeat 5 --json >after.json
  holdfast bench compare before.json after.json

Exit status: 0 the second is not worse; 1 it is worse (or something failed); 3 the runs are too few
or too noisy to tell.";

/// Arguments of `holdfast bench compare`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareOptions {
    /// What was before: a file of `holdfast bench --json`
    before: PathBuf,

    /// What is now
    after: PathBuf,

    /// Differences up to so many percent do not matter
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    tolerance: f64,

    /// How sure a verdict must be, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 95.0, value_parser = confidence)]
    confidence: f64,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|p| (0.0..=100.0).contains(p));
    number.ok_or_else(|| format!("'{text}' is not a number of percent from 0 to 100"))
}

fn confidence(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|p| (50.0..=99.99).contains(p));
    number.ok_or_else(|| format!("'{text}' is not a number of percent from 50 to 99.99"))
}

/// A figure of a run.
#[derive(Debug, Clone, Copy)]
struct Figure {
    /// Field of the JSON.
    field: &'static str,
    /// Whether less of it is better.
    less_is_better: bool,
    /// How it is judged.
    role: Role,
}

/// What part a figure has in the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is judged while the machine is the same.
    Judged,
    /// It is judged where the machine was another.
    Relative,
    /// It says whether the machine was the same.
    Baseline,
    /// It is only shown.
    Shown,
}

const fn figure(field: &'static str, less_is_better: bool, role: Role) -> Figure {
    Figure { field, less_is_better, role }
}

const FIGURES: [Figure; 12] = [
    figure("p50_ns", true, Role::Judged),
    figure("p99_ns", true, Role::Judged),
    figure("p999_ns", true, Role::Shown),
    figure("p9999_ns", true, Role::Shown),
    figure("max_ns", true, Role::Shown),
    figure("mean_ns", true, Role::Shown),
    figure("gbit_per_s", false, Role::Judged),
    figure("mops", false, Role::Shown),
    figure("ratio_to_ping_pong", true, Role::Relative),
    figure("percent_of_memcpy", false, Role::Relative),
    figure("cache_line_ping_pong_ns", true, Role::Baseline),
    figure("memcpy_gbit_per_s", false, Role::Baseline),
];

/// What came of one figure of one kind of run.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    figure: &'static str,
    before: f64,
    after: f64,
    /// Runs on each side.
    runs: (usize, usize),
    /// Change in percent of `before`.
    change_percent: f64,
    /// Interval of the change; none where there are too few runs.
    interval_percent: Option<(f64, f64)>,
    verdict: Verdict,
    judged: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Comparison {
    schema_version: u32,
    tolerance_percent: f64,
    confidence_percent: f64,
    /// Of all figures that are judged, the worst; the second file against the first.
    verdict: Verdict,
    /// Whether the machine's own baseline moved, for some kind of run.
    machine_changed: bool,
    /// Kinds of runs that only one of the files has, which nothing was said about.
    only_before: Vec<String>,
    only_after: Vec<String>,
    rows: Vec<Row>,
}

/// Compares.
pub fn run(options: &CompareOptions) -> anyhow::Result<ExitCode> {
    let comparison = compare(&read(&options.before)?, &read(&options.after)?, options)?;
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&comparison)?))?;
    } else {
        print(draw(&comparison))?;
    }
    Ok(match comparison.verdict {
        Verdict::Worse => ExitCode::from(EXIT_FAILED),
        Verdict::Unclear => ExitCode::from(EXIT_UNCLEAR),
        Verdict::Better | Verdict::Same => ExitCode::SUCCESS,
    })
}

fn compare(before: &Runs, after: &Runs, options: &CompareOptions) -> anyhow::Result<Comparison> {
    let common: Vec<_> =
        before.iter().filter_map(|(kind, b)| Some((kind, b, after.get(kind)?))).collect();
    ensure!(
        !common.is_empty(),
        "the two have nothing in common: one has [{}], the other [{}]",
        before.keys().cloned().collect::<Vec<_>>().join("; "),
        after.keys().cloned().collect::<Vec<_>>().join("; ")
    );
    // At most so many are judged: figures of one kind of run are of one mode.
    let judged_at_most = 2 * common.len();
    let error = (1.0 - options.confidence / 100.0) / judged_at_most as f64;
    let mut rows = Vec::new();
    let mut machine_changed = false;
    let mut verdict = None;
    for (kind, before, after) in common {
        let values = |runs: &[Value], figure: &Figure| -> Vec<f64> {
            let values = runs.iter().map(|run| run[figure.field].as_f64());
            values.collect::<Option<Vec<_>>>().unwrap_or_default()
        };
        let row = |figure: &Figure| {
            let (before, after) = (values(before, figure), values(after, figure));
            if before.is_empty() || after.is_empty() {
                return None;
            }
            let interval = Interval::of_ratio(&before, &after, error);
            let verdict = interval.verdict(options.tolerance / 100.0, figure.less_is_better);
            Some(Row {
                what: kind.clone(),
                figure: figure.field,
                before: interval::geometric_mean(&before),
                after: interval::geometric_mean(&after),
                runs: (before.len(), after.len()),
                change_percent: interval.change * 100.0,
                interval_percent: interval.bounds.map(|(low, high)| (low * 100.0, high * 100.0)),
                verdict,
                judged: false,
            })
        };
        let found: Vec<_> =
            FIGURES.iter().filter_map(|figure| Some((figure.role, row(figure)?))).collect();
        let baseline = found.iter().find(|(role, row)| {
            *role == Role::Baseline && matches!(row.verdict, Verdict::Better | Verdict::Worse)
        });
        let moved = baseline.map(|(_, row)| row.change_percent.abs());
        machine_changed |= moved.is_some();
        let has_ratio = found.iter().any(|(role, _)| *role == Role::Relative);
        let judged = if moved.is_some() && has_ratio { Role::Relative } else { Role::Judged };
        let judge = |(role, row): (Role, Row)| {
            let verdict = match moved.filter(|_| role == Role::Judged) {
                Some(moved) => without_ratio(&row, moved),
                None => row.verdict,
            };
            Row { judged: role == judged, verdict, ..row }
        };
        let before = rows.len();
        rows.extend(found.into_iter().map(judge));
        let judged = rows[before..].iter().filter(|row| row.judged).map(|row| row.verdict);
        verdict = verdict.max(Some(judged.max().unwrap_or(Verdict::Unclear)));
    }
    let only = |one: &Runs, other: &Runs| -> Vec<String> {
        one.keys().filter(|kind| !other.contains_key(*kind)).cloned().collect()
    };
    Ok(Comparison {
        schema_version: SCHEMA_VERSION,
        tolerance_percent: options.tolerance,
        confidence_percent: options.confidence,
        verdict: verdict.unwrap_or(Verdict::Unclear),
        machine_changed,
        only_before: only(before, after),
        only_after: only(after, before),
        rows,
    })
}

/// What is left of a verdict on a figure where the machine was another one, by so many percent, and
/// no ratio to it exists.
fn without_ratio(row: &Row, moved: f64) -> Verdict {
    match row.verdict {
        Verdict::Worse if row.change_percent.abs() > moved => Verdict::Worse,
        _ => Verdict::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options() -> CompareOptions {
        let (before, after) = (PathBuf::new(), PathBuf::new());
        CompareOptions { before, after, tolerance: 5.0, confidence: 95.0, json: false }
    }

    /// Those of an open loop, which has no ratio to the baseline.
    fn open_loop(p50: &[f64], line: f64) -> Runs {
        let mut open = latencies(p50, line);
        open.values_mut().flatten().for_each(|run| {
            run["open"] = json!({ "rate": 1000.0 });
            run["ratio_to_ping_pong"] = Value::Null;
        });
        open.into_values().map(|runs| ("open loop".to_owned(), runs)).collect()
    }

    /// Runs with these medians; p99 is ten times that.
    fn latencies(p50: &[f64], line: f64) -> Runs {
        let run = |p50: &f64| {
            json!({
                "op": "write", "mode": "lat", "size": 8, "qps": 1, "depth": 1, "batch": 1,
                "errors": 0, "interrupted": false, "p50_ns": p50, "p99_ns": p50 * 10.0,
                "cache_line_ping_pong_ns": line, "ratio_to_ping_pong": p50 / line,
            })
        };
        let runs: Vec<_> = p50.iter().map(run).collect();
        runs::runs(&json!({ "schema_version": 2, "runs": runs })).unwrap()
    }

    fn verdict(before: &[f64], after: &[f64]) -> Verdict {
        let (before, after) = (latencies(before, 100.0), latencies(after, 100.0));
        compare(&before, &after, &options()).unwrap().verdict
    }

    #[test]
    fn a_difference_is_one_only_beyond_the_noise_of_the_runs() {
        let before = [200.0, 202.0, 198.0, 201.0, 199.0];
        for (after, expected) in [
            (&[200.5, 201.0, 199.0, 200.0, 202.0][..], Verdict::Same),
            (&[230.0, 232.0, 229.0, 231.0, 228.0], Verdict::Worse),
            (&[170.0, 172.0, 169.0, 171.0, 168.0], Verdict::Better),
            // As large a difference of means, but the runs are all over the place.
            (&[150.0, 320.0, 170.0, 350.0, 160.0], Verdict::Unclear),
            (&[230.0], Verdict::Unclear),
        ] {
            assert_eq!(verdict(&before, after), expected, "{after:?}");
        }
    }

    #[test]
    fn where_the_machine_changed_the_ratio_to_its_baseline_is_judged() {
        let before = latencies(&[200.0, 202.0, 198.0, 201.0], 100.0);
        for (factor, expected) in [(2.0, Verdict::Same), (3.0, Verdict::Worse)] {
            let p50: Vec<_> = [200.0, 202.0, 198.0, 201.0].iter().map(|ns| ns * factor).collect();
            let comparison = compare(&before, &latencies(&p50, 200.0), &options()).unwrap();
            assert!(comparison.machine_changed);
            assert_eq!(comparison.verdict, expected);
            let judged: Vec<_> = comparison.rows.iter().filter(|row| row.judged).collect();
            assert_eq!(judged.len(), 1);
            assert_eq!(judged[0].figure, "ratio_to_ping_pong");
        }
    }

    #[test]
    fn an_open_loop_is_judged_though_the_machine_changed() {
        let closed = |line: f64| latencies(&[200.0, 202.0, 198.0, 201.0].map(|ns| ns * line), line);
        let before = [1000.0, 1010.0, 990.0, 1000.0];
        for (factor, line, expected) in [
            (50.0, 2.0, Verdict::Worse),
            (2.5, 2.0, Verdict::Worse),
            (2.5, 0.5, Verdict::Worse),
            // No more than the machine, which may be the reason or not; nor does the same figure
            // on another machine say anything.
            (1.5, 2.0, Verdict::Unclear),
            (1.0, 2.0, Verdict::Unclear),
            (0.5, 0.5, Verdict::Unclear),
        ] {
            let mut first = closed(1.0);
            first.append(&mut open_loop(&before, 1.0));
            let mut second = closed(line);
            second.append(&mut open_loop(&before.map(|ns| ns * factor), line));
            let comparison = compare(&first, &second, &options()).unwrap();
            assert!(comparison.machine_changed);
            assert_eq!(comparison.verdict, expected, "{factor} times, line {line}");
            let judged = comparison.rows.iter().filter(|row| row.judged && row.what == "open loop");
            let figures: Vec<_> = judged.map(|row| row.figure).collect();
            assert_eq!(figures, ["p50_ns", "p99_ns"]);
        }
    }

    #[test]
    fn what_only_one_file_has_is_named() {
        let before = latencies(&[200.0, 201.0], 100.0);
        let mut after = before.clone();
        after.append(&mut open_loop(&[300.0, 301.0], 100.0));
        for (first, second, place) in [(&before, &after, "second"), (&after, &before, "first")] {
            let text = draw(&compare(first, second, &options()).unwrap());
            let words = format!("not compared, only in the {place} file: open loop");
            assert!(text.contains(&words), "{text}");
        }
    }

    #[test]
    fn a_kind_without_a_figure_to_judge_is_not_called_the_same() {
        let mut before = latencies(&[200.0, 201.0, 199.0], 100.0);
        let bare = json!({ "op": "write", "mode": "rate", "mops": 1.0 });
        before.insert("bare".to_owned(), vec![bare; 3]);
        let comparison = compare(&before, &before.clone(), &options()).unwrap();
        assert_eq!(comparison.verdict, Verdict::Unclear);
    }

    #[test]
    fn only_like_is_compared_with_like() {
        let before = latencies(&[200.0, 201.0], 100.0);
        let other = json!({ "schema_version": 2, "runs": [{
            "op": "read", "mode": "lat", "size": 8, "errors": 0, "p50_ns": 1.0 }] });
        let error =
            compare(&before, &runs::runs(&other).unwrap(), &options()).unwrap_err().to_string();
        assert!(error.contains("nothing in common") && error.contains("read lat"), "{error}");
    }
}
