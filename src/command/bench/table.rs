//! The result of a run for people: a table, the phases, and a drawing of the latencies.

use std::fmt::Write as _;

use super::details::LatencyDetails;
use super::overhead::Overhead;
use super::plan::Mode;
use super::report::{ClockFacts, Run};
use super::throughput::progress::OverTime;
use crate::command::histogram::{Percentiles, UNSAMPLED, human_bytes, human_ns};
use crate::command::machine::Machine;

/// Draws one run.
pub fn draw(run: &Run, clock: &ClockFacts, machine: &Machine) -> String {
    let mut text = headline(run);
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<14} {value}");
    };
    let cut = if run.interrupted { ", cut short by a signal" } else { "" };
    row("operations", format!("{} in {:.2} s{cut}", run.iters, run.seconds));
    row("errors", run.errors.to_string());
    if run.measured_nothing() {
        row("", "nothing was measured".to_owned());
    }
    if let (Some(p), Some(more)) = (&run.latency, &run.more) {
        latency_rows(&mut row, p, more);
    }
    if let Some(t) = run.throughput.as_ref().filter(|_| run.iters > 0) {
        row("bandwidth", format!("{:.2} Gbit/s", t.gbit_per_s));
        row("rate", format!("{:.3} million operations/s", t.mops));
        if let Some(over_time) = &run.over_time {
            over_time_row(&mut row, run.mode, over_time);
        }
    }
    if let Some(line) = run.cache_line_ping_pong_ns {
        let ratio = run.ratio_to_ping_pong.map(|ratio| format!("; p50 is {ratio:.2} of it"));
        row("cache line", format!("{} round trip{}", human_ns(line), ratio.unwrap_or_default()));
    }
    if let Some(copy) = run.memcpy_gbit_per_s {
        let percent = run.percent_of_memcpy.map(|p| format!("; bandwidth is {p:.0} % of it"));
        row("memcpy", format!("{copy:.2} Gbit/s{}", percent.unwrap_or_default()));
    }
    blame_rows(&mut row, run);
    if let Some(overhead) = &run.overhead {
        let reading = human_ns(clock.reading_ns);
        let cost = overhead_text(overhead);
        row("measuring", format!("{cost}; a clock reading ({}) {reading}", clock.name));
    }
    let cpu = |cpu: Option<usize>| cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
    let on_node = run.cpu_node.map(|node| format!(" (node {node})")).unwrap_or_default();
    row("cpu", format!("{}{on_node}, NIC on {}", cpu(run.cpu), cpu(run.nic_cpu)));
    row("memory", memory(run));
    if let Some(counts) = run.poll_loop.filter(|counts| counts.turns > 0) {
        let (busy, turns) = (counts.turns - counts.empty_turns, counts.turns as f64);
        let each = counts.completions as f64 / busy.max(1) as f64;
        let empty = counts.empty_turns as f64 / turns * 100.0;
        row(
            "poll loop",
            format!("{turns} turns, {empty:.1} % empty; {each:.1} completions in others"),
        );
    }
    row("machine", machine.summary());
    if !run.core_costs.is_empty() {
        let costs = run.core_costs.join(", ");
        row("costs latency", format!("{costs} (see 'holdfast cores')"));
    }
    if let Some(phases) = run.more.as_ref().and_then(|more| more.phases.as_ref()) {
        let _ = writeln!(
            text,
            "\n  where the time goes ({} operations apart, {} each)",
            phases.operations,
            human_ns(phases.whole_p50_ns)
        );
        for phase in &phases.phases {
            let (p50, p99) = (human_ns(phase.p50_ns), human_ns(phase.p99_ns));
            let _ = writeln!(text, "    {:<12} {p50:>9}   p99 {p99:>9}", phase.name);
        }
    }
    if let (Some(drawing), Some(more)) = (&run.drawing, &run.more) {
        let whole = if more.round_trip.is_some() { "round trips" } else { "latencies" };
        let _ = write!(text, "\n  {whole}\n{drawing}");
    }
    text
}

/// What there is for a core to reach without delay.
fn memory(run: &Run) -> String {
    let locked = if run.memory_locked { "locked" } else { "not locked (--lock-memory)" };
    let Some(rings) = &run.rings else { return locked.to_owned() };
    let nodes: Vec<String> = rings.nodes.iter().map(u32::to_string).collect();
    let nodes = match nodes.as_slice() {
        [] => String::new(),
        nodes => format!(" on node {}", nodes.join(", ")),
    };
    format!("rings of {} in {} pages{nodes}; {locked}", human_bytes(rings.bytes), rings.pages)
}

fn headline(run: &Run) -> String {
    let reads = run.reads_percent.map(|reads| format!(", {reads} % reads")).unwrap_or_default();
    let both = if run.bidirectional { ", both ways" } else { "" };
    let qps = if run.qps > 1 { format!(", {} queue pairs", run.qps) } else { String::new() };
    format!(
        "{} {}, {}{reads}{both}{qps} on {} ({})\n",
        run.op.name(),
        run.mode.name(),
        human_bytes(run.size as u64),
        run.device,
        run.region_kind
    )
}

fn overhead_text(overhead: &Overhead) -> String {
    match overhead {
        Overhead::Latency(cost) => format!(
            "{} of each is the tool's own, {} from one to the next",
            human_ns(cost.in_each_latency_ns),
            human_ns(cost.per_operation_ns)
        ),
        Overhead::Throughput(cost) => format!(
            "{} a message is the tool's own, so it can measure up to {:.1} million/s",
            human_ns(cost.per_operation_ns),
            cost.highest_mops
        ),
    }
}

/// Between what a run's throughput went to and fro.
fn over_time_row(row: &mut impl FnMut(&str, String), mode: Mode, over_time: &OverTime) {
    let slice = human_ns(over_time.slice_s * 1e9);
    let text = match mode {
        Mode::Bw => over_time
            .range(|t| t.gbit_per_s)
            .map(|(low, high)| format!("{low:.2} to {high:.2} Gbit/s")),
        _ => over_time
            .range(|t| t.mops)
            .map(|(low, high)| format!("{low:.3} to {high:.3} million operations/s")),
    };
    if let Some(text) = text {
        row("over time", format!("{text} in slices of {slice}"));
    }
}

fn latency_rows(row: &mut impl FnMut(&str, String), p: &Percentiles, more: &LatencyDetails) {
    if let Some(open) = &more.open {
        row("rate", format!("{:.0}/s asked for, {:.0}/s done", open.rate, open.achieved));
        if open.unfinished > 0 {
            row("unfinished", format!("{}: the rate is not reached", open.unfinished));
        }
    }
    let second = match (&more.round_trip, &more.open) {
        (Some(whole), _) => Some(("round trip", whole)),
        (None, Some(open)) => Some(("from the real start", &open.uncorrected)),
        (None, None) => None,
    };
    let second_name = second.map_or("", |(name, _)| name);
    let first_name = match (more.round_trip.is_some(), more.open.is_some()) {
        (true, _) => "half round trip",
        (_, true) => "from intended start",
        _ => "to completion",
    };
    row("", format!("{first_name:<20}{second_name}"));
    let others = second.map(|(_, p)| p.figures());
    for (at, figure) in p.figures().iter().enumerate() {
        let other = others.map(|others| others[at].text()).unwrap_or_default();
        row(figure.name, format!("{:<20}{other}", figure.text()).trim_end().to_owned());
    }
    let all = p.figures().into_iter().chain(others.into_iter().flatten());
    if all.into_iter().any(|figure| !figure.sampled) {
        row("", UNSAMPLED.to_owned());
    }
}

/// What long latencies may be put down to.
fn blame_rows(row: &mut impl FnMut(&str, String), run: &Run) {
    let Some(jitter) = &run.jitter else { return };
    row(
        "core alone",
        format!(
            "away for up to {}, {:.2} % of the time; 10 us and more {:.0} times a second",
            human_ns(jitter.longest_ns),
            jitter.lost_percent,
            jitter.over_10us_per_s
        ),
    );
    let reached = run.more.as_ref().and_then(|more| more.reached.iter().find(|at| at.0 == 1e4));
    if let Some((_, per_s)) = reached {
        row("", format!("(operations of 10 us and more: {per_s:.0} a second)"));
    }
    let d = &run.disturbance;
    let interrupts: Vec<String> =
        d.interrupts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    row(
        "meanwhile",
        format!(
            "{} times off the core, {} page faults{}{}",
            d.involuntary_switches,
            d.minor_faults + d.major_faults,
            d.stolen_ms.map(|ms| format!(", {ms:.0} ms stolen")).unwrap_or_default(),
            if interrupts.is_empty() {
                String::new()
            } else {
                format!(", interrupts: {}", interrupts.join(", "))
            }
        ),
    );
}
