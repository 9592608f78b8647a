//! The figures of both drivers side by side, for people and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use crate::measure::Figures;

/// One thing that was measured with both drivers.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    linux: f64,
    holdfast: f64,
    /// Holdfast's figure over Linux's.
    ratio: f64,
    better: &'static str,
}

/// A column of a figure that perftest prints, and a field of what `holdfast bench` prints.
struct Source {
    name: &'static str,
    /// `perftest-FILE.txt` and `holdfast-FILE.json`.
    file: &'static str,
    unit: &'static str,
    column: usize,
    field: &'static str,
    /// Of one unit of the field in the table's unit.
    scale: f64,
    better: &'static str,
}

const SOURCES: [Source; 4] = [
    Source {
        name: "write lat, 8 B",
        file: "write_lat",
        unit: "us",
        column: TYPICAL,
        field: "p50_ns",
        scale: 1e-3,
        better: "lower",
    },
    Source {
        name: "send lat, 8 B",
        file: "send_lat",
        unit: "us",
        column: TYPICAL,
        field: "p50_ns",
        scale: 1e-3,
        better: "lower",
    },
    Source {
        name: "write bw, 64 KiB",
        file: "write_bw",
        unit: "Gbit/s",
        column: 3,
        field: "gbit_per_s",
        scale: 1.0,
        better: "higher",
    },
    Source {
        name: "write rate, 8 B",
        file: "write_rate",
        unit: "M/s",
        column: 4,
        field: "mops",
        scale: 1.0,
        better: "higher",
    },
];

/// perftest's column `t_typical`, the median.
const TYPICAL: usize = 4;

/// Reads the folder, prints the table, writes it as JSON.
pub fn run(folder: &Path, json: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for source in &SOURCES {
        let text = read(&folder.join(format!("perftest-{}.txt", source.file)))?;
        let linux = perftest(&text, source.column)
            .with_context(|| format!("perftest printed no figure for {}", source.name))?;
        let text = read(&folder.join(format!("holdfast-{}.json", source.file)))?;
        let value: Value = serde_json::from_str(&text)?;
        let holdfast = value["runs"][0][source.field]
            .as_f64()
            .with_context(|| format!("holdfast bench printed no {}", source.field))?;
        let holdfast = holdfast * source.scale;
        rows.push(Row::new(source.name.to_owned(), source.unit, linux, holdfast, source.better));
    }
    let figures =
        |name: &str| -> Result<Figures> { Ok(serde_json::from_str(&read(&folder.join(name))?)?) };
    let (linux, holdfast) = (figures("linux.json")?, figures("holdfast.json")?);
    for ((size, theirs), (_, ours)) in linux.register_us.iter().zip(&holdfast.register_us) {
        rows.push(Row::new(format!("register {size}"), "us", *theirs, *ours, "lower"));
    }
    let (theirs, ours) = (linux.loops, holdfast.loops);
    for (name, unit, theirs, ours, better) in [
        ("write lat, 8 B", "us", theirs.write_lat_us, ours.write_lat_us, "lower"),
        ("send lat, 8 B", "us", theirs.send_lat_us, ours.send_lat_us, "lower"),
        ("write bw, 64 KiB", "Gbit/s", theirs.write_gbit_per_s, ours.write_gbit_per_s, "higher"),
        ("write rate, 8 B", "M/s", theirs.write_mops, ours.write_mops, "higher"),
    ] {
        rows.push(Row::new(format!("{name}, one thread"), unit, theirs, ours, better));
    }
    let name = "open to first completion".to_owned();
    let (theirs, ours) = (linux.open_to_completion_us, holdfast.open_to_completion_us);
    rows.push(Row::new(name, "us", theirs, ours, "lower"));

    print!("{}", draw(&rows));
    fs::write(json, serde_json::to_vec_pretty(&serde_json::json!({ "rows": rows }))?)
        .with_context(|| format!("cannot write {json:?}"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))
}

/// A column of the last line of figures: perftest starts those with bytes and iterations.
fn perftest(text: &str, column: usize) -> Option<f64> {
    let fields = |line: &str| -> Option<Vec<f64>> {
        line.split_whitespace().map(|word| word.parse().ok()).collect()
    };
    let last = text.lines().rev().filter_map(fields).find(|fields| fields.len() > column)?;
    Some(last[column])
}

impl Row {
    fn new(name: String, unit: &'static str, linux: f64, ours: f64, better: &'static str) -> Self {
        Self { name, unit, linux, holdfast: ours, ratio: ours / linux, better }
    }
}

fn draw(rows: &[Row]) -> String {
    let mut text =
        format!("     {:<28} {:>12} {:>12} {:<7} {:>6}\n", "", "Linux", "Holdfast", "", "ratio");
    for row in rows {
        text += &format!(
            "     {:<28} {:>12} {:>12} {:<7} {:>6.2}  {} is better\n",
            row.name,
            figure(row.linux),
            figure(row.holdfast),
            row.unit,
            row.ratio,
            row.better
        );
    }
    text
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENCY: &str = "\
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]
 8       1000          1.02           9.31         1.10               1.15           0.20   \t\t1.90
---------------------------------------------------------------------------------------
";

    #[test]
    fn perftests_median_is_found_in_its_output() {
        assert_eq!(perftest(LATENCY, TYPICAL), Some(1.10));
        assert_eq!(perftest("Couldn't listen to port 18515\n", TYPICAL), None);
        assert_eq!(perftest("", TYPICAL), None);
    }

    #[test]
    fn the_table_has_both_figures_and_their_ratio() {
        let row = Row::new("write lat, 8 B".to_owned(), "us", 200.0, 50.0, "lower");
        let table = draw(&[row]);
        let line = table.lines().last().unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[4..], ["200", "50.0", "us", "0.25", "lower", "is", "better"]);
    }
}
