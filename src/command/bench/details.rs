//! What is known of the latencies of a run beside their percentiles: what they are the time of, the
//! run as it went, the longest ones, and what an open loop came to.

use serde::Serialize;

use super::latency::Timed;
use super::latency::phases::{Breakdown, Phases};
use super::measure::Measured;
use super::plan::{Pace, Plan};
use super::recorder::Outlier;
use crate::command::histogram::{Latencies, Percentiles};
use crate::command::jitter::Jitter;

/// What a latency is the time of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyOf {
    /// Half of a round trip, closed loop.
    HalfRoundTrip,
    /// From posting to completion, closed loop.
    Completion,
    /// A round trip from its intended start, open loop.
    RoundTripFromIntendedStart,
    /// From the intended start to completion, open loop.
    CompletionFromIntendedStart,
}

impl LatencyOf {
    fn of(plan: &Plan) -> Self {
        match (plan.echoes(), plan.pace) {
            (true, Pace::Closed) => Self::HalfRoundTrip,
            (true, Pace::Open(_)) => Self::RoundTripFromIntendedStart,
            (false, Pace::Closed) => Self::Completion,
            (false, Pace::Open(_)) => Self::CompletionFromIntendedStart,
        }
    }

    /// What part of what was recorded counts.
    pub fn share(self) -> f64 {
        if self == Self::HalfRoundTrip { 0.5 } else { 1.0 }
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::HalfRoundTrip => "half of a round trip",
            Self::Completion => "from posting to completion",
            Self::RoundTripFromIntendedStart => "a round trip, from its intended start",
            Self::CompletionFromIntendedStart => "from the intended start to completion",
        }
    }
}

/// What is known of the latencies beside their percentiles.
#[derive(Debug, Serialize)]
pub struct LatencyDetails {
    /// What they are the time of.
    pub latency_of: LatencyOf,
    /// The whole round trip, where half of it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<Percentiles>,
    /// What the open loop was asked for, and came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenLoop>,
    /// Where the time of one operation goes; measured after the run, one operation at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phases: Option<Breakdown>,
    /// Length of a slice of time, in seconds.
    pub slice_s: f64,
    /// The run as it went, slice by slice.
    pub slices: Vec<Slice>,
    /// The curve of percentiles: share of all, and the latency that it does not exceed.
    pub curve: Vec<(f64, f64)>,
    /// The longest latencies, longest first.
    pub worst: Vec<Outlier>,
    /// How often a second a latency reached each length of the jitter's, longest of half a round
    /// trip or of the whole as was recorded: length in nanoseconds, and times a second.
    pub reached: Vec<(f64, f64)>,
}

/// An open loop.
#[derive(Debug, Serialize)]
pub struct OpenLoop {
    /// Operations a second that were asked for.
    pub rate: f64,
    /// And done.
    pub achieved: f64,
    /// Operations that were not done when the run was given up; each counts with the time it had
    /// waited by then.
    pub unfinished: u64,
    /// Latencies from the real start: what a measurement that omits the waiting would have shown.
    pub uncorrected: Percentiles,
    /// The curve of those.
    pub uncorrected_curve: Vec<(f64, f64)>,
}

/// A slice of time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Slice {
    /// When it began, in seconds since the run did.
    pub at_s: f64,
    /// Operations that ended in it.
    pub count: u64,
    /// Median.
    pub p50_ns: f64,
    /// 99 %.
    pub p99_ns: f64,
    /// Longest.
    pub max_ns: f64,
}

impl LatencyDetails {
    /// Of what was timed.
    pub fn new(plan: &Plan, measured: &Measured, timed: &Timed, jitter: Option<&Jitter>) -> Self {
        let latency_of = LatencyOf::of(plan);
        let share = latency_of.share();
        let recorded = &timed.recorded;
        let slice_s = recorded.slice.as_secs_f64();
        let slice = |(at, latencies): (usize, &Latencies)| {
            let p = latencies.percentiles().scaled(share);
            let (p50_ns, p99_ns, max_ns) = (p.p50_ns, p.p99_ns, p.max_ns);
            Slice { at_s: at as f64 * slice_s, count: latencies.len(), p50_ns, p99_ns, max_ns }
        };
        let per_s = |ns: f64| (ns, recorded.all.at_least(ns) as f64 / measured.seconds.max(1e-9));
        let open = match (plan.pace, &timed.service) {
            (Pace::Open(rate), Some(service)) => Some(OpenLoop {
                rate,
                achieved: measured.iters as f64 / measured.seconds.max(1e-9),
                unfinished: timed.unfinished,
                uncorrected: service.percentiles(),
                uncorrected_curve: service.curve(),
            }),
            _ => None,
        };
        Self {
            latency_of,
            round_trip: (share < 1.0 && recorded.all.len() > 0).then(|| recorded.all.percentiles()),
            open,
            phases: measured.phases.as_ref().map(Phases::breakdown),
            slice_s,
            slices: recorded.slices.iter().enumerate().map(slice).collect(),
            curve: recorded.all.curve().iter().map(|(at, ns)| (*at, ns * share)).collect(),
            worst: recorded.worst.iter().map(|o| Outlier { ns: o.ns * share, ..*o }).collect(),
            reached: jitter.map_or_else(Vec::new, |jitter| {
                jitter.steps().iter().map(|(ns, _)| per_s(*ns)).collect()
            }),
        }
    }
}
