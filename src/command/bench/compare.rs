//! `holdfast bench compare`: whether two measurements differ, and by more than their noise.
//!
//! What varies between runs (where memory came to lie, where a hypervisor put the processors) does
//! not show within one, however many operations it has. So each run counts once: the logarithms of
//! a figure from the runs of each file give an interval for the ratio of the two (Welch's t), and a
//! difference is one only when that interval says so. The error rate is shared by all figures that
//! are judged.
//!
//! Where the machine itself was another one meanwhile (its own baseline moved), the ratios to the
//! baseline are judged in place of the figures.

mod interval;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use interval::{Interval, Verdict};
use serde::Serialize;
use serde_json::Value;

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

/// Runs by what they measured.
type Runs = BTreeMap<String, Vec<Value>>;

fn read(path: &Path) -> anyhow::Result<Runs> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let report: Value =
        serde_json::from_str(&text).with_context(|| format!("{shown} is no JSON"))?;
    runs(&report).with_context(|| shown.to_string())
}

fn runs(report: &Value) -> anyhow::Result<Runs> {
    let version = report["schema_version"].as_u64();
    ensure!(
        version == Some(u64::from(SCHEMA_VERSION)),
        "it has schema version {}, and this program reads {SCHEMA_VERSION}",
        version.map_or_else(|| "none".to_owned(), |version| version.to_string())
    );
    let mut runs = Runs::new();
    for run in report["runs"].as_array().context("it has no runs")? {
        ensure!(run["errors"] == 0, "a run in it has errors");
        ensure!(run["interrupted"] != true, "a run in it was interrupted");
        runs.entry(kind(run)).or_default().push(run.clone());
    }
    Ok(runs)
}

/// What must be the same for two runs to be comparable.
fn kind(run: &Value) -> String {
    let text = |field: &str| run[field].as_str().unwrap_or_default().to_owned();
    let mut kind = format!(
        "{} {} {} B, {} qps, depth {}, batch {}",
        text("op"),
        text("mode"),
        run["size"],
        run["qps"],
        run["depth"],
        run["batch"]
    );
    if let Some(rate) = run["open"]["rate"].as_f64() {
        let _ = write!(kind, ", {rate}/s");
    }
    let of = text("latency_of");
    if !of.is_empty() {
        let _ = write!(kind, ", {}", of.replace('_', " "));
    }
    if run["bidirectional"] == true {
        kind += ", both ways";
    }
    if let Some(reads) = run["reads_percent"].as_u64() {
        let _ = write!(kind, ", {reads} % reads");
    }
    let _ = write!(kind, ", {}, {}", text("device"), text("region_kind"));
    kind
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
        let moved = found.iter().any(|(role, row)| {
            *role == Role::Baseline && matches!(row.verdict, Verdict::Better | Verdict::Worse)
        });
        let judged = if moved { Role::Relative } else { Role::Judged };
        machine_changed |= moved;
        rows.extend(found.into_iter().map(|(role, row)| Row { judged: role == judged, ..row }));
    }
    let verdict = rows.iter().filter(|row| row.judged).map(|row| row.verdict).max();
    Ok(Comparison {
        schema_version: SCHEMA_VERSION,
        tolerance_percent: options.tolerance,
        confidence_percent: options.confidence,
        verdict: verdict.unwrap_or(Verdict::Unclear),
        machine_changed,
        rows,
    })
}

fn draw(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut last = "";
    for row in &comparison.rows {
        if row.what != last {
            let (before, after) = row.runs;
            let _ = writeln!(text, "{} ({before} runs, {after} runs)", row.what);
            last = &row.what;
        }
        let interval = match row.interval_percent {
            Some((low, high)) => format!("{low:+.1} to {high:+.1} %"),
            None => "one run is no measure of noise".to_owned(),
        };
        let verdict = if row.judged { row.verdict.text() } else { "" };
        let _ = writeln!(
            text,
            "  {:<24} {:>12.2} {:>12.2} {:>+8.1} %   {interval:<22} {verdict}",
            row.figure, row.before, row.after, row.change_percent
        );
    }
    if comparison.machine_changed {
        text += "\nThe machine's own baseline moved: what is judged is the ratio to it.\n";
    }
    let _ = writeln!(
        text,
        "\nverdict: {} (differences up to {} % do not matter; {} % sure)",
        comparison.verdict.text(),
        comparison.tolerance_percent,
        comparison.confidence_percent
    );
    if comparison.verdict == Verdict::Unclear {
        text += "The runs are too few or differ too much among themselves; measure with more --repeat.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options() -> CompareOptions {
        let (before, after) = (PathBuf::new(), PathBuf::new());
        CompareOptions { before, after, tolerance: 5.0, confidence: 95.0, json: false }
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
        super::runs(&json!({ "schema_version": 2, "runs": runs })).unwrap()
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
    fn only_like_is_compared_with_like() {
        let before = latencies(&[200.0, 201.0], 100.0);
        let other = json!({ "schema_version": 2, "runs": [{
            "op": "read", "mode": "lat", "size": 8, "errors": 0, "p50_ns": 1.0 }] });
        let error = compare(&before, &runs(&other).unwrap(), &options()).unwrap_err().to_string();
        assert!(error.contains("nothing in common") && error.contains("read lat"), "{error}");
    }

    #[test]
    fn what_cannot_count_is_refused() {
        for (report, words) in [
            (json!({ "p50_ns": 3 }), "schema version none"),
            (json!({ "schema_version": 9, "runs": [] }), "schema version 9"),
            (json!({ "schema_version": 2, "runs": [{ "errors": 1 }] }), "has errors"),
            (
                json!({ "schema_version": 2, "runs": [{ "errors": 0, "interrupted": true }] }),
                "interrupted",
            ),
        ] {
            let error = runs(&report).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
