//! The runs of a report, by what they measured: only like is compared with like.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::super::report::SCHEMA_VERSION;

/// Runs by what they measured.
pub type Runs = BTreeMap<String, Vec<Value>>;

/// Those of a file.
pub fn read(path: &Path) -> anyhow::Result<Runs> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let report: Value =
        serde_json::from_str(&text).with_context(|| format!("{shown} is no JSON"))?;
    runs(&report).with_context(|| shown.to_string())
}

/// Those of a report, each of which must count.
pub fn runs(report: &Value) -> anyhow::Result<Runs> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
