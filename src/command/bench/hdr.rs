//! The latencies as an HdrHistogram log: the format (V2) of HdrHistogram's own HistogramLogWriter,
//! which its HistogramLogReader and HistogramLogProcessor read. They expect nanoseconds, so that is
//! what it has: round trips are whole. Each run is encoded as soon as it is over.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::plan::Plan;
use super::recorder::Recorded;
use super::report::{Report, Run};
use crate::command::histogram::Latencies;

/// Shortest interval: the log tells times in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// The column of the longest latency is in milliseconds, as the tools that made the format have it.
const MAX_DIVISOR: f64 = 1e6;

/// The log: a line for each slice of each run; tagged with what was measured where that differs.
#[derive(Debug)]
pub struct Log {
    text: Vec<u8>,
    tagged: bool,
}

impl Log {
    /// One of these plans, which has no runs yet.
    pub fn new(report: &Report, plans: &[Plan]) -> Result<Self> {
        let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
        let started = UNIX_EPOCH + Duration::from_secs_f64(report.started);
        let about = format!("[{}; values in nanoseconds; round trips are whole]", report.program);
        IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment(&about)
            .with_start_time(started)
            .with_base_time(started)
            .with_max_value_divisor(MAX_DIVISOR)
            .begin_log_with(&mut text, &mut serializer)?;
        let tagged = plans.iter().any(|plan| plan.size != plans[0].size);
        Ok(Self { text, tagged })
    }

    /// Adds a run.
    pub fn add(&mut self, run: &Run, recorded: &Recorded) -> Result<()> {
        self.add_slices(run, recorded).context("cannot make the HdrHistogram log")
    }

    fn add_slices(&mut self, run: &Run, recorded: &Recorded) -> Result<()> {
        let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
        let mut writer = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(MAX_DIVISOR)
            .begin_log_with(&mut text, &mut serializer)?;
        let name = format!("{}-{}B", run.op.name(), run.size);
        let tag = self.tagged.then(|| Tag::new(&name)).flatten();
        let slice = recorded.slice;
        let at_a_time = (SHORTEST.as_secs_f64() / slice.as_secs_f64()).ceil().max(1.0) as usize;
        for (at, slices) in recorded.slices.chunks(at_a_time).enumerate() {
            let mut sum = Latencies::new();
            slices.iter().for_each(|slice| sum.add(slice));
            if sum.len() == 0 {
                continue;
            }
            let start = run.began_s + (at * at_a_time) as f64 * slice.as_secs_f64();
            let length = slice * slices.len() as u32;
            writer
                .write_histogram(&sum.in_nanoseconds(), Duration::from_secs_f64(start), length, tag)
                .map_err(|error| anyhow!("{error}"))?;
        }
        // The head stands at the beginning already.
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        lines.filter(|line| !line.starts_with(b"#")).for_each(|line| self.text.extend(line));
        Ok(())
    }

    /// All of it.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::report::tests::{plan, recorded, report, run};
    use super::*;

    /// The log of runs of so many bytes.
    fn log(sizes: &[usize]) -> Vec<u8> {
        let plans: Vec<_> = sizes.iter().map(|size| plan(*size)).collect();
        let mut log = Log::new(&report(Vec::new()), &plans).unwrap();
        sizes.iter().for_each(|size| log.add(&run(*size), &recorded(100)).unwrap());
        log.text().to_vec()
    }

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
        let log = log(&[8]);
        let text = String::from_utf8(log.clone()).unwrap();
        assert_eq!(text.matches("MaxValueDivisor").count(), 1, "{text}");
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
        let log = log(&[8, 64]);
        let tags: Vec<_> = read(&log).into_iter().filter_map(|(_, tag, _)| tag).collect();
        assert_eq!(
            (tags.len(), tags[0].as_str(), tags[199].as_str()),
            (200, "write-8B", "write-64B")
        );
    }
}
