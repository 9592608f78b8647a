//! The figures of both drivers side by side, for people and as JSON.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::measure::Figures;

/// One thing that was measured with both drivers.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    better: &'static str,
    /// Medians of the rounds.
    linux: f64,
    holdfast: f64,
    /// Holdfast's figure over Linux's: the median of the rounds, the lowest and the highest.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    /// Both figures of each round.
    rounds: Vec<(f64, f64)>,
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

/// Reads the rounds, prints the table, writes it as JSON.
pub fn run(rounds: &[PathBuf], json: &Path) -> Result<()> {
    let mut rows: Vec<Row> = Vec::new();
    for folder in rounds {
        let found = round(folder).with_context(|| format!("in {folder:?}"))?;
        for (number, figures) in found.into_iter().enumerate() {
            match rows.get_mut(number) {
                Some(row) => row.rounds.push((figures.linux, figures.holdfast)),
                None => rows.push(Row::new(figures)),
            }
        }
    }
    rows.iter_mut().for_each(Row::sum_up);
    print!("{}", draw(&rows));
    fs::write(json, serde_json::to_vec_pretty(&serde_json::json!({ "rows": rows }))?)
        .with_context(|| format!("cannot write {json:?}"))
}

/// One thing in one round.
#[derive(Debug)]
struct Pair {
    name: String,
    unit: &'static str,
    linux: f64,
    holdfast: f64,
    better: &'static str,
}

/// What a round's folder has, always in the same order.
fn round(folder: &Path) -> Result<Vec<Pair>> {
    let mut found = Vec::new();
    let mut pair = |name: String, unit, linux: f64, holdfast: f64, better| {
        let sound = |figure: f64| figure.is_finite() && figure > 0.0;
        ensure!(sound(linux) && sound(holdfast), "{name}: {linux} and {holdfast} are no figures");
        found.push(Pair { name, unit, linux, holdfast, better });
        Ok(())
    };
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
        pair(source.name.to_owned(), source.unit, linux, holdfast, source.better)?;
    }
    let figures =
        |name: &str| -> Result<Figures> { Ok(serde_json::from_str(&read(&folder.join(name))?)?) };
    let (linux, holdfast) = (figures("linux.json")?, figures("holdfast.json")?);
    for ((size, theirs), (_, ours)) in linux.register_us.iter().zip(&holdfast.register_us) {
        pair(format!("register {size}"), "us", *theirs, *ours, "lower")?;
    }
    let (theirs, ours) = (linux.loops, holdfast.loops);
    for (name, unit, theirs, ours, better) in [
        ("write lat, 8 B", "us", theirs.write_lat_us, ours.write_lat_us, "lower"),
        ("send lat, 8 B", "us", theirs.send_lat_us, ours.send_lat_us, "lower"),
        ("write bw, 64 KiB", "Gbit/s", theirs.write_gbit_per_s, ours.write_gbit_per_s, "higher"),
        ("write rate, 8 B", "M/s", theirs.write_mops, ours.write_mops, "higher"),
    ] {
        pair(format!("{name}, one thread"), unit, theirs, ours, better)?;
    }
    let name = "open to first completion".to_owned();
    let (theirs, ours) = (linux.open_to_completion_us, holdfast.open_to_completion_us);
    pair(name, "us", theirs, ours, "lower")?;
    Ok(found)
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
    /// A row of one round so far.
    fn new(figures: Pair) -> Self {
        let Pair { name, unit, linux, holdfast, better } = figures;
        let rounds = vec![(linux, holdfast)];
        let (ratio, ratio_min, ratio_max) = (0.0, 0.0, 0.0);
        Self { name, unit, better, linux, holdfast, ratio, ratio_min, ratio_max, rounds }
    }

    /// Works out what is said of all rounds together.
    fn sum_up(&mut self) {
        let sorted = |figure: fn(&(f64, f64)) -> f64| {
            let mut figures: Vec<f64> = self.rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures
        };
        let median = |sorted: &[f64]| {
            let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
            (low + high) / 2.0
        };
        let ratios = sorted(|(linux, holdfast)| holdfast / linux);
        let (linux, holdfast) = (sorted(|one| one.0), sorted(|one| one.1));
        (self.linux, self.holdfast) = (median(&linux), median(&holdfast));
        (self.ratio, self.ratio_min) = (median(&ratios), ratios[0]);
        self.ratio_max = ratios[ratios.len() - 1];
    }
}

fn draw(rows: &[Row]) -> String {
    let count = rows.first().map_or(0, |row| row.rounds.len());
    let mut text = format!("     medians of {count} rounds\n");
    text += &format!(
        "     {:<28} {:>12} {:>12} {:<7} {:>6} {:>13}\n",
        "", "Linux", "Holdfast", "", "ratio", "min to max"
    );
    for row in rows {
        let range = format!("{:.2} to {:.2}", row.ratio_min, row.ratio_max);
        text += &format!(
            "     {:<28} {:>12} {:>12} {:<7} {:>6.2} {range:>13}  {} is better\n",
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
    fn the_table_has_the_medians_of_the_rounds_and_how_far_apart_they_are() {
        let (name, unit, better) = ("write lat, 8 B".to_owned(), "us", "lower");
        let mut row = Row::new(Pair { name, unit, linux: 200.0, holdfast: 50.0, better });
        row.rounds.extend([(100.0, 40.0), (300.0, 270.0)]);
        row.sum_up();
        let table = draw(&[row]);
        assert!(table.contains("medians of 3 rounds"));
        let line = table.lines().last().unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let figures = ["200", "50.0", "us", "0.40", "0.25", "to", "0.90", "lower", "is", "better"];
        assert_eq!(words[4..], figures);
    }
}
