//! A comparison for people.

use std::fmt::Write as _;

use super::Comparison;
use super::interval::Verdict;

/// A line for each figure, what was not compared, and the verdict.
pub fn draw(comparison: &Comparison) -> String {
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
        text += "\nThe machine's own baseline moved: what is judged is the ratio to it; what has none \
                 (--rate) can be\nseen to be worse, but not to be the same or better.\n";
    }
    for (kinds, file) in [(&comparison.only_before, "first"), (&comparison.only_after, "second")] {
        for kind in kinds {
            let _ = writeln!(text, "\nnot compared, only in the {file} file: {kind}");
        }
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
