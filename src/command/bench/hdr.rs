//! The latencies as an HdrHistogram log (V2), which HistogramLogProcessor, HistogramLogAnalyzer,
//! hdr-plot and others open. They expect nanoseconds, so that is what it has: round trips are whole.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::report::{Report, Run};
use crate::command::histogram::Latencies;

/// Shortest interval: the log tells times in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// The column of the longest latency is in milliseconds, as the tools that made the format have it.
const MAX_DIVISOR: f64 = 1e6;

/// The log: a line for each slice of each run; tagged with what was measured where that differs.
pub fn log(report: &Report) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("{error}");
    let (mut out, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let started = UNIX_EPOCH + Duration::from_secs_f64(report.started);
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(&format!("[{}; values in nanoseconds; round trips are whole]", report.program))
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(MAX_DIVISOR)
        .begin_log_with(&mut out, &mut serializer)?;
    let several = report.runs.iter().any(|run| name(run) != name(&report.runs[0]));
    for run in &report.runs {
        let Some(timed) = &run.recorded else { continue };
        let name = name(run);
        let tag = several.then(|| Tag::new(&name)).flatten();
        let slice = timed.recorded.slice;
        let at_a_time = (SHORTEST.as_secs_f64() / slice.as_secs_f64()).ceil().max(1.0) as usize;
        for (at, slices) in timed.recorded.slices.chunks(at_a_time).enumerate() {
            let mut sum = Latencies::new();
            slices.iter().for_each(|slice| sum.add(slice));
            if sum.len() == 0 {
                continue;
            }
            let start = run.began_s + (at * at_a_time) as f64 * slice.as_secs_f64();
            let length = slice * slices.len() as u32;
            writer
                .write_histogram(&sum.in_nanoseconds(), Duration::from_secs_f64(start), length, tag)
                .map_err(|error| failed(&error))?;
        }
    }
    Ok(out)
}

fn name(run: &Run) -> String {
    format!("{}-{}B", run.op.name(), run.size)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::report::tests::{report, run};
    use super::*;

    /// Times, tags and histograms of a log.
    fn read(log: &[u8]) -> Vec<(f64, Option<String>, Histogram<u64>)> {
        use base64::Engine as _;
        let mut deserializer = Deserializer::new();
        let intervals = IntervalLogIterator::new(log).filter_map(|entry| match entry.unwrap() {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let mut read = |text: &str| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            deserializer.deserialize(&mut bytes.as_slice()).unwrap()
        };
        intervals
            .map(|interval| {
                let tag = interval.tag().map(|tag| tag.as_str().to_owned());
                let start = interval.start_timestamp().as_secs_f64();
                (start, tag, read(interval.encoded_histogram()))
            })
            .collect()
    }

    #[test]
    fn another_reader_finds_the_same_latencies_in_nanoseconds() {
        // 100 slices of 10 ms, and in slice i one round trip of i + 1 us.
        let log = log(&report(vec![run(8)])).unwrap();
        let text = String::from_utf8(log.clone()).unwrap();
        assert!(text.starts_with("#[Histogram log format version 1.3]\n"), "{text}");
        let intervals = read(&log);
        assert_eq!(intervals.len(), 100);
        for (at, (start, tag, histogram)) in intervals.iter().enumerate() {
            assert!((start - (0.25 + at as f64 / 100.0)).abs() < 1e-3, "{at} starts at {start}");
            assert_eq!((tag, histogram.len()), (&None, 1));
            assert!(histogram.equivalent(histogram.max(), (at as u64 + 1) * 1000), "{at}");
        }
    }

    #[test]
    fn runs_that_differ_are_told_apart() {
        let log = log(&report(vec![run(8), run(64)])).unwrap();
        let tags: Vec<_> = read(&log).into_iter().filter_map(|(_, tag, _)| tag).collect();
        assert_eq!(
            (tags.len(), tags[0].as_str(), tags[199].as_str()),
            (200, "write-8B", "write-64B")
        );
    }
}
