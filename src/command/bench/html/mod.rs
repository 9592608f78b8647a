//! The report as one page for the browser, with nothing to fetch and no script: tables, the curve
//! of percentiles, the run as it went, and where the time of an operation goes.

mod chart;
mod plots;

use std::fmt::Write as _;

use super::details::LatencyDetails;
use super::overhead::Overhead;
use super::report::{Report, Run};
use crate::command::histogram::{Figure, Percentiles, UNSAMPLED, human_bytes, human_ns};

const STYLE: &str = include_str!("style.css");

/// The page.
pub fn page(report: &Report) -> String {
    let mut html = String::new();
    let title = report.runs.first().map_or_else(|| "no runs".to_owned(), title);
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{0}</title><style>{STYLE}</style></head><body>\
         <h1>{0}</h1><p class=\"soft\">{1}, {2}. {3}</p>",
        escape(&title),
        escape(&report.program),
        date(report.started),
        escape(&report.machine.summary()),
    );
    if report.runs.len() > 1 {
        overview(&mut html, report);
    }
    for (number, run) in report.runs.iter().enumerate() {
        if report.runs.len() > 1 {
            let _ = write!(html, "<h2>Run {}: {}</h2>", number + 1, escape(&name(run)));
        }
        one(&mut html, run, report);
    }
    html + "</body></html>\n"
}

/// Text where markup is expected.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn title(run: &Run) -> String {
    let what = match run.mode {
        super::plan::Mode::Lat => "latency",
        super::plan::Mode::Bw => "bandwidth",
        super::plan::Mode::Rate => "operation rate",
    };
    format!("RDMA {} {what} on {}", run.op.name(), run.device)
}

fn name(run: &Run) -> String {
    let qps = if run.qps > 1 { format!(", {} queue pairs", run.qps) } else { String::new() };
    format!("{} of {}{qps}", run.op.name(), human_bytes(run.size as u64))
}

/// Day and time of a Unix time, UTC (days to date by Howard Hinnant's civil_from_days).
fn date(seconds: f64) -> String {
    let seconds = seconds as i64;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

fn tile(html: &mut String, name: &str, value: &str) {
    let _ = write!(html, "<div class=\"tile\"><b>{value}</b><span>{name}</span></div>");
}

fn table(html: &mut String, columns: &[&str], rows: &[Vec<String>]) {
    *html += "<div class=\"scroll\"><table><tr>";
    columns.iter().for_each(|column| *html += &format!("<th>{}</th>", escape(column)));
    *html += "</tr>";
    for row in rows {
        *html += "<tr>";
        row.iter().for_each(|cell| *html += &format!("<td>{}</td>", escape(cell)));
        *html += "</tr>";
    }
    *html += "</table></div>";
}

/// Those that everybody asks for.
fn main_figures(p: &Percentiles) -> [Figure; 5] {
    let [_, p50, _, p99, p999, p9999, _, max, ..] = p.figures();
    [p50, p99, p999, p9999, max]
}

/// Says what the marks mean, where some of these have one.
fn explain_marks<'a>(html: &mut String, mut shown: impl Iterator<Item = &'a Percentiles>) {
    if shown.any(|p| p.figures().iter().any(|figure| !figure.sampled)) {
        let _ = write!(html, "<p class=\"soft small\">{UNSAMPLED}</p>");
    }
}

/// All runs together.
fn overview(html: &mut String, report: &Report) {
    *html += "<div class=\"card\"><h3>All runs</h3>";
    let lat = report.runs.iter().any(|run| run.latency.is_some());
    let rows: Vec<Vec<String>> = report
        .runs
        .iter()
        .enumerate()
        .map(|(number, run)| {
            let mut row = vec![format!("{} {}", number + 1, name(run)), run.iters.to_string()];
            if lat {
                let figures = run.latency.map(|p| main_figures(&p).map(|figure| figure.text()));
                row.extend(figures.unwrap_or_default());
            } else if let Some(t) = &run.throughput {
                row.extend([format!("{:.2}", t.gbit_per_s), format!("{:.3}", t.mops)]);
            }
            row
        })
        .collect();
    let columns: &[&str] = match lat {
        true => &["run", "operations", "p50", "p99", "p99.9", "p99.99", "max"],
        false => &["run", "operations", "Gbit/s", "million/s"],
    };
    table(html, columns, &rows);
    explain_marks(html, report.runs.iter().filter_map(|run| run.latency.as_ref()));
    *html += "</div>";
    if lat {
        *html += "<div class=\"card\"><h3>Latency by percentile</h3>";
        *html += &plots::percentiles(&plots::all(&report.runs));
        *html += "</div>";
    }
}

/// One run.
fn one(html: &mut String, run: &Run, report: &Report) {
    *html += "<div class=\"tiles\">";
    if let Some(p) = &run.latency {
        for figure in main_figures(p) {
            tile(html, figure.name, &figure.text());
        }
    }
    if let Some(t) = &run.throughput {
        tile(html, "Gbit/s", &format!("{:.2}", t.gbit_per_s));
        tile(html, "million operations/s", &format!("{:.3}", t.mops));
    }
    tile(html, "operations", &run.iters.to_string());
    tile(html, "errors", &run.errors.to_string());
    *html += "</div>";
    match (&run.latency, &run.more) {
        (Some(p), Some(more)) => latency(html, run, p, more),
        _ if run.measured_nothing() => *html += plots::NOTHING,
        _ if run.over_time.is_some() => {
            *html += "<div class=\"card\"><h3>Throughput over time</h3>";
            *html += &plots::throughput(run);
            *html += "</div>";
        }
        _ => {}
    }
    about(html, run, report);
}

fn latency(html: &mut String, run: &Run, p: &Percentiles, more: &LatencyDetails) {
    let _ = write!(html, "<p class=\"soft\">A latency here is {}.", more.latency_of.text());
    if let Some(open) = &more.open {
        let _ = write!(
            html,
            " {:.0} operations a second were asked for and {:.0} done.",
            open.rate, open.achieved
        );
        if open.unfinished > 0 {
            let _ = write!(html, " <b>{} were never done.</b>", open.unfinished);
        }
    }
    *html += "</p><div class=\"card\"><h3>Latency by percentile</h3>";
    *html += &plots::percentiles(&plots::of(run, more));
    *html += "</div><div class=\"card\"><h3>Latency over time</h3>";
    *html += &plots::over_time(more);
    *html += "</div>";
    if let Some(phases) = &more.phases {
        let _ = write!(
            html,
            "<div class=\"card\"><h3>Where the time goes</h3><p class=\"soft small\">Means of {} \
             operations, one at a time, each taken apart after the run.</p>{}</div>",
            phases.operations,
            plots::phases(phases)
        );
    }
    *html += "<div class=\"card\"><h3>Figures</h3>";
    let first = if more.round_trip.is_some() { "half round trip" } else { "latency" };
    let mut shown = vec![(first, p)];
    shown.extend(more.round_trip.as_ref().map(|whole| ("round trip", whole)));
    shown.extend(more.open.as_ref().map(|open| ("from the real start", &open.uncorrected)));
    let names = p.figures().map(|figure| figure.name);
    let columns: Vec<&str> = [""].into_iter().chain(names).collect();
    let row = |(name, p): &(&str, &Percentiles)| {
        [(*name).to_owned()].into_iter().chain(p.figures().map(|figure| figure.text())).collect()
    };
    table(html, &columns, &shown.iter().map(row).collect::<Vec<_>>());
    explain_marks(html, shown.iter().map(|(_, p)| *p));
    *html += "</div>";
    if !more.worst.is_empty() {
        worst(html, more);
    }
}

fn worst(html: &mut String, more: &LatencyDetails) {
    *html += "<div class=\"card\"><h3>The longest, one by one</h3>";
    let away = more.worst.iter().any(|outlier| outlier.away_ns.is_some());
    let rows: Vec<Vec<String>> = more
        .worst
        .iter()
        .take(8)
        .map(|outlier| {
            let mut row = vec![format!("{:.4} s", outlier.at_s), human_ns(outlier.ns)];
            if away {
                row.push(outlier.away_ns.map(human_ns).unwrap_or_default());
            }
            row
        })
        .collect();
    let columns = ["ended at", "latency", "of which this thread was away at a stretch"];
    table(html, &columns[..if away { 3 } else { 2 }], &rows);
    *html += "</div>";
}

/// What the run stands beside.
fn about(html: &mut String, run: &Run, report: &Report) {
    *html += "<div class=\"card\"><h3>Beside it</h3>";
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(line) = run.cache_line_ping_pong_ns {
        row("cache line between the cores, round trip", human_ns(line));
    }
    if let Some(ratio) = run.ratio_to_ping_pong {
        row("p50 over that", format!("{ratio:.2}"));
    }
    if let (Some(copy), Some(percent)) = (run.memcpy_gbit_per_s, run.percent_of_memcpy) {
        row("plain copy by one thread", format!("{copy:.2} Gbit/s"));
        row("bandwidth in percent of that", format!("{percent:.0}"));
    }
    if let Some(jitter) = &run.jitter {
        row("the core alone was away for up to", human_ns(jitter.longest_ns));
        row("and lost", format!("{:.3} % of the time", jitter.lost_percent));
        for (at, (ns, alone)) in jitter.steps().iter().enumerate() {
            let name = format!("{} and more, a second: core alone", human_ns(*ns));
            match run.more.as_ref().and_then(|more| more.reached.get(at)) {
                Some((_, here)) => {
                    row(&format!("{name} / operations"), format!("{alone:.1} / {here:.1}"));
                }
                None => row(&name, format!("{alone:.1}")),
            }
        }
    }
    let d = &run.disturbance;
    row("times the thread lost its core", d.involuntary_switches.to_string());
    row("page faults", (d.minor_faults + d.major_faults).to_string());
    if let Some(ms) = d.stolen_ms {
        row("stolen by the hypervisor", format!("{ms:.0} ms"));
    }
    for (name, count) in &d.interrupts {
        row(&format!("interrupts: {name}"), count.to_string());
    }
    match &run.overhead {
        Some(Overhead::Latency(cost)) => {
            row("of each latency, the tool's own", human_ns(cost.in_each_latency_ns));
            row("the tool's time from one operation to the next", human_ns(cost.per_operation_ns));
        }
        Some(Overhead::Throughput(cost)) => {
            row("the tool's time for each message", human_ns(cost.per_operation_ns));
            row("which lets it measure up to", format!("{:.1} million/s", cost.highest_mops));
        }
        None => {}
    }
    row(
        &format!("one reading of the clock ({})", report.clock.name),
        human_ns(report.clock.reading_ns),
    );
    let cpu = |cpu: Option<usize>| cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
    row("processors: measuring thread / NIC", format!("{} / {}", cpu(run.cpu), cpu(run.nic_cpu)));
    row("costs latency on that core ('holdfast cores')", run.core_costs.join(", "));
    row("region", format!("{} ({})", run.region, run.region_kind));
    table(html, &["", ""], &rows);
    *html += "</div>";
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{empty, report, run};
    use super::super::table::draw;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_has_the_plots() {
        let html = page(&report(vec![run(8)]));
        for part in ["<!doctype html>", "prefers-color-scheme: dark", "Latency by percentile"] {
            assert!(html.contains(part), "{part} is missing");
        }
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        assert!(html.matches("<polyline").count() >= 4, "percentiles, and three lines over time");
        for fetched in ["http://", "https://", "<script", "@import", "url("] {
            assert!(!html.contains(fetched), "it fetches: {fetched}");
        }
    }

    #[test]
    fn a_run_without_operations_says_so_and_has_a_page() {
        let html = page(&report(vec![empty(), empty()]));
        assert!(html.contains("Nothing was measured."), "{html}");
        assert!(html.len() < 100_000 && !html.contains("0.00 ns"), "{html}");
        // Beside one that has some.
        assert!(page(&report(vec![empty(), run(8)])).contains("<polyline"));
    }

    #[test]
    fn percentiles_without_samples_are_marked_and_explained() {
        // 100 operations: none beyond p99.9.
        let one = run(8);
        assert_eq!(serde_json::to_value(&one).unwrap()["sampled_to_percent"], 99.0);
        let html = page(&report(vec![one, run(8)]));
        assert!(html.contains("<b>50.0 us *</b><span>p99.9</span>"), "{html}");
        assert!(html.contains("<span>p99</span>") && !html.contains(" *</b><span>p99</span>"));
        assert_eq!(html.matches(UNSAMPLED).count(), 3, "of both runs, and of all");
        let report = report(Vec::new());
        let text = draw(&run(8), &report.clock, &report.machine);
        let marked: Vec<_> = text.lines().filter(|line| line.contains(" *")).collect();
        assert_eq!(marked.len(), 4, "three percentiles and the explanation: {marked:?}");
    }

    #[test]
    fn no_line_leads_across_a_time_in_which_nothing_ended() {
        let mut run = run(8);
        let lines =
            |run: &Run| plots::over_time(run.more.as_ref().unwrap()).matches("<polyline").count();
        assert_eq!(lines(&run), 3);
        for at in [20, 21, 22, 60] {
            run.more.as_mut().unwrap().slices[at].count = 0;
        }
        assert_eq!(lines(&run), 9, "each in three stretches");
    }

    #[test]
    fn several_runs_share_a_plot() {
        let html = page(&report(vec![run(8), run(64)]));
        assert!(html.contains("All runs") && html.contains("Run 2: write of 64 B"));
        assert!(html.contains("2: write of 64 B</span>"), "in the legend");
    }

    #[test]
    fn names_from_outside_are_text_and_no_markup() {
        let device = "vfio-user:/tmp/<b>&\".sock".to_owned();
        let html = page(&report(vec![Run { device, ..run(8) }]));
        assert!(html.contains("/tmp/&lt;b&gt;&amp;&quot;.sock") && !html.contains("<b>&"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0.0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_827_696.0), "2000-02-29 12:34 UTC");
        assert_eq!(date(1_700_000_000.0), "2023-11-14 22:13 UTC");
    }
}
