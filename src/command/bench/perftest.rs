//! The lines that perftest (ib_write_lat and its kin) would print, for scripts that read those.
//!
//! The figures are this tool's: latencies are exact to three digits, the largest is the largest,
//! and the percentiles are of all operations. perftest's bandwidth is in units of 2^20 bytes, and its
//! peak is 0 where it was not measured, as it never is here.

use std::fmt::Write as _;

use super::plan::Mode;
use super::report::Run;

const LATENCY: &str = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    \
    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec] ";
const BANDWIDTH: &str =
    " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]";

/// The line of a run, and before the first one the line that names the columns.
pub fn lines(run: &Run, first: bool) -> String {
    let mut text = String::new();
    if first {
        let _ = writeln!(text, "{}", if run.mode == Mode::Lat { LATENCY } else { BANDWIDTH });
    }
    if let Some(p) = &run.latency {
        let us = |ns: f64| ns / 1000.0;
        let _ = writeln!(
            text,
            " {:<7} {}          {:<7.2}        {:<7.2}      {:<7.2}  \t       {:<7.2}     \t{:<7.2}\t\t{:<7.2} \t\t{:<7.2}",
            run.size,
            run.iters,
            us(p.min_ns),
            us(p.max_ns),
            us(p.p50_ns),
            us(p.mean_ns),
            us(p.stdev_ns),
            us(p.p99_ns),
            us(p.p999_ns),
        );
    }
    if let Some(t) = &run.throughput {
        let _ = writeln!(
            text,
            " {:<7}    {:<10}       {:<7.2}            {:<7.2}\t\t   {:<7.6}",
            run.size,
            run.iters,
            0.0,
            t.gbit_per_s * 1e9 / 8.0 / f64::from(1 << 20),
            t.mops,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::report::Throughput;
    use super::super::report::tests::run;
    use super::*;

    fn columns(line: &str) -> Vec<f64> {
        line.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn a_script_finds_the_columns_of_perftest() {
        let text = lines(&run(8), true);
        let (names, row) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(names.split("  ").filter(|name| !name.trim().is_empty()).count(), 8);
        let row = columns(row);
        assert_eq!(row[..4], [8.0, 100.0, 0.5, 50.0], "bytes, iterations, min and max in us");
        assert!((row[4] - 25.0).abs() < 0.05 && (row[5] - 25.25).abs() < 0.01, "{row:?}");
        assert!((row[7] - 49.5).abs() < 0.1 && row.len() == 9, "{row:?}");
        assert_eq!(lines(&run(64), false).lines().count(), 1);
    }

    #[test]
    fn bandwidth_is_in_units_of_2_to_the_20() {
        let throughput = Some(Throughput { gbit_per_s: 8.388_608, mops: 0.5 });
        let run = Run { mode: Mode::Bw, latency: None, more: None, throughput, ..run(4096) };
        let text = lines(&run, true);
        assert_eq!(columns(text.lines().last().unwrap()), [4096.0, 100.0, 0.0, 1000.0, 0.5]);
    }
}
