//! The plots of the page: which figures become which lines.

use std::fmt::Write as _;

use super::chart::{self, Axis, COLOURS, Series};
use super::{escape, name};
use crate::command::bench::details::{LatencyDetails, Slice};
use crate::command::bench::latency::phases::Breakdown;
use crate::command::bench::plan::Mode;
use crate::command::bench::report::{Run, Throughput};
use crate::command::bench::throughput::progress;
use crate::command::histogram::human_ns;

/// A curve of percentiles.
#[derive(Debug)]
pub struct Curve<'a> {
    name: String,
    points: &'a [(f64, f64)],
}

/// That of a run, and where it is an open loop, what an uncorrected measurement would have shown.
pub fn of<'a>(run: &Run, more: &'a LatencyDetails) -> Vec<Curve<'a>> {
    let Some(open) = &more.open else {
        return vec![Curve { name: name(run), points: &more.curve }];
    };
    let curve = |name: &str, points| Curve { name: name.to_owned(), points };
    vec![
        curve("from the intended start", more.curve.as_slice()),
        curve("from the real start (leaves out the waiting)", &open.uncorrected_curve),
    ]
}

/// Those of as many runs as there are colours.
pub fn all(runs: &[Run]) -> Vec<Curve<'_>> {
    let curve = |(number, run): (usize, &'_ Run)| (number, name(run));
    let named = runs.iter().enumerate().map(curve);
    named
        .filter_map(|(number, name)| {
            let points = &runs[number].more.as_ref()?.curve;
            Some(Curve { name: format!("{}: {name}", number + 1), points })
        })
        .take(COLOURS)
        .collect()
}

/// What stands in the place of a plot without points.
pub const NOTHING: &str = "<p class=\"soft\">Nothing was measured.</p>";

/// Latency against percentile; the further right, the rarer: each mark is ten times as rare as the
/// one before.
pub fn percentiles(curves: &[Curve<'_>]) -> String {
    if curves.iter().all(|curve| curve.points.is_empty()) {
        return NOTHING.to_owned();
    }
    let nines = |share: f64| -(1.0 - share).max(1e-12).log10();
    // The last point, the longest, stands one step beyond the last share.
    let last = |points: &[(f64, f64)]| {
        points.iter().rev().find(|(share, _)| *share < 1.0).map_or(1.0, |(share, _)| nines(*share))
    };
    let rarest = curves.iter().map(|curve| last(curve.points)).fold(1.0, f64::max);
    let all = || curves.iter().flat_map(|curve| curve.points).map(|(_, ns)| *ns);
    let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
    let marks = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
    let more = [(0.9999, "99.99 %"), (0.99999, "99.999 %"), (0.999_999, "99.9999 %")];
    let ticks = marks.into_iter().chain(more).map(|(share, text)| (nines(share), text.to_owned()));
    let x = Axis {
        label: "percentile".to_owned(),
        from: 0.0,
        to: rarest,
        ticks: ticks.filter(|(at, _)| *at <= rarest).collect(),
    };
    let y = chart::latency_axis("latency", low, high, human_ns);
    let series: Vec<Series> = curves
        .iter()
        .enumerate()
        .map(|(colour, curve)| {
            let end = last(curve.points);
            let point = |(share, ns): &(f64, f64)| {
                let text = match *share < 1.0 {
                    true => format!("{:.5} %: {}", share * 100.0, human_ns(*ns)),
                    false => format!("longest: {}", human_ns(*ns)),
                };
                let at = if *share < 1.0 { nines(*share) } else { end };
                (at, ns.max(1e-3).log10(), text)
            };
            let points = curve.points.iter().map(point).collect();
            Series { name: curve.name.clone(), colour, stretches: vec![points] }
        })
        .collect();
    chart::draw(&x, &y, &series)
}

/// Median, 99 % and longest of each slice of time; no line leads across one in which nothing ended.
pub fn over_time(more: &LatencyDetails) -> String {
    let slices: Vec<_> = more.slices.iter().filter(|slice| slice.count > 0).collect();
    if slices.is_empty() {
        return NOTHING.to_owned();
    }
    let low = slices.iter().map(|slice| slice.p50_ns).fold(f64::MAX, f64::min);
    let high = slices.iter().map(|slice| slice.max_ns).fold(0.0, f64::max);
    let x = chart::linear_axis("seconds", more.slices.len() as f64 * more.slice_s);
    let y = chart::latency_axis("latency", low, high, human_ns);
    let line = |name: &str, colour, at: fn(&Slice) -> f64| {
        let point = |slice: &Slice| {
            let ns = at(slice);
            let text = format!("{name} at {:.3} s: {}", slice.at_s, human_ns(ns));
            (slice.at_s + more.slice_s / 2.0, ns.max(1e-3).log10(), text)
        };
        let full = more.slices.split(|slice| slice.count == 0).filter(|full| !full.is_empty());
        let stretches = full.map(|slices| slices.iter().map(point).collect()).collect();
        Series { name: name.to_owned(), colour, stretches }
    };
    let series = [
        line("longest", 1, |slice| slice.max_ns),
        line("p99", 3, |slice| slice.p99_ns),
        line("p50", 0, |slice| slice.p50_ns),
    ];
    chart::draw(&x, &y, &series)
}

/// Bandwidth, or the rate, of each slice of time, beside that of the whole.
pub fn throughput(run: &Run) -> String {
    let figures = (&run.over_time, &run.throughput);
    let (Some(over_time), Some(whole)) = figures else { return NOTHING.to_owned() };
    let (label, figure): (_, fn(&Throughput) -> f64) = match run.mode {
        Mode::Bw => ("Gbit/s", |t| t.gbit_per_s),
        _ => ("million operations/s", |t| t.mops),
    };
    let Some((low, high)) = over_time.range(figure) else { return NOTHING.to_owned() };
    let (slice, end) = (over_time.slice_s, run.seconds);
    let x = chart::linear_axis("seconds", end);
    let y = chart::linear_axis(label, high);
    let point = |(at, slice): (usize, &progress::Slice)| {
        let ends = over_time.slices.get(at + 1).map_or(end, |next| next.at_s);
        let value = figure(&slice.throughput);
        ((slice.at_s + ends) / 2.0, value, format!("at {:.3} s: {value:.3} {label}", slice.at_s))
    };
    let points = over_time.slices.iter().enumerate().map(point).collect();
    let mean = figure(whole);
    let ends = [0.0, end].map(|at| (at, mean, format!("whole run: {mean:.3} {label}")));
    let line = |name: &str, colour, points| Series {
        name: name.to_owned(),
        colour,
        stretches: vec![points],
    };
    let series = [
        line(&format!("each {}", human_ns(slice * 1e9)), 0, points),
        line("the whole run", 1, ends.to_vec()),
    ];
    format!(
        "<p class=\"soft small\">From {low:.3} to {high:.3} {label} in slices of {}.</p>{}",
        human_ns(slice * 1e9),
        chart::draw(&x, &y, &series)
    )
}

/// The phases as one bar, and what each takes.
pub fn phases(phases: &Breakdown) -> String {
    let total: f64 = phases.phases.iter().map(|phase| phase.mean_ns).sum();
    let mut html = String::from("<div class=\"legend\">");
    for (colour, phase) in phases.phases.iter().enumerate() {
        let _ = write!(
            html,
            "<span><i style=\"background:var(--s{})\"></i>{} {}</span>",
            colour % COLOURS,
            escape(phase.name),
            human_ns(phase.mean_ns)
        );
    }
    html += "</div><svg viewBox=\"0 0 880 36\" role=\"img\" aria-label=\"phases of an operation\">";
    let mut at = 0.0;
    for (colour, phase) in phases.phases.iter().enumerate() {
        let width = phase.mean_ns / total.max(1e-9) * 880.0;
        let _ = write!(
            html,
            "<g class=\"bar\"><rect x=\"{at:.1}\" y=\"0\" width=\"{width:.1}\" height=\"36\" \
             style=\"fill:var(--s{})\"><title>{}: mean {}, p50 {}, p99 {}</title></rect>",
            colour % COLOURS,
            escape(phase.name),
            human_ns(phase.mean_ns),
            human_ns(phase.p50_ns),
            human_ns(phase.p99_ns)
        );
        if width > 9.0 * phase.name.len() as f64 {
            let middle = at + width / 2.0;
            let name = escape(phase.name);
            let _ = write!(
                html,
                "<text x=\"{middle:.1}\" y=\"22\" text-anchor=\"middle\">{name}</text>"
            );
        }
        html += "</g>";
        at += width;
    }
    html + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::super::page;
    use super::*;
    use crate::command::bench::report::tests::{report, run};
    use crate::command::bench::throughput::progress::Progress;

    /// Half a second at a million operations of 1000 bytes a second, then half at three.
    fn throughput_run(mode: Mode) -> Run {
        let mut progress = Progress::new(1_000_000_000);
        for ms in 0..1000 {
            let done = (ms + 1) * if ms < 500 { 1000 } else { 3000 };
            progress.seen(ms * 1_000_000, if ms < 500 { done } else { done - 1_000_000 });
        }
        let over_time = Some(progress.finish(1_000_000_000, 2_000_000, 1.0, 1000));
        let throughput = Some(Throughput::new(2_000_000, 1000, 1.0));
        let (latency, more) = (None, None);
        Run { mode, latency, more, throughput, over_time, ..run(1000) }
    }

    #[test]
    fn throughput_is_plotted_over_time_beside_its_mean() {
        for (mode, label, high) in
            [(Mode::Rate, "million operations/s", "3.000"), (Mode::Bw, "Gbit/s", "24.000")]
        {
            let html = page(&report(vec![throughput_run(mode)]));
            assert!(html.contains("Throughput over time"), "{label}");
            assert!(html.contains(&format!("to {high} {label} in slices of 10.0 ms")), "{label}");
            // A line for the slices and one for the whole, and a dot for each of their points.
            let dots = html.matches("<circle").count();
            assert_eq!((html.matches("<polyline").count(), dots), (2, 100 + 2));
            assert!(html.contains(&format!(": {high} {label}</title>")), "{label}");
        }
        let nothing = Run { over_time: None, throughput: None, ..throughput_run(Mode::Bw) };
        assert_eq!(throughput(&nothing), NOTHING);
    }
}
