//! Line charts as SVG: an axis each way, a grid, a line for each series, a legend.

use std::fmt::Write as _;

use super::escape;

/// The drawing, in units of its own: it is scaled to the page.
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 320.0;
/// Room for what stands beside the axes.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 46.0;
/// Colours that the style has.
pub const COLOURS: usize = 8;

/// A place on an axis, and what it says there.
pub type Tick = (f64, String);

/// One direction. Values are what is drawn: who wants a logarithmic axis gives logarithms.
#[derive(Debug)]
pub struct Axis {
    /// What it is of.
    pub label: String,
    /// Values at both ends.
    pub from: f64,
    pub to: f64,
    /// Where it is marked.
    pub ticks: Vec<Tick>,
}

/// One line.
#[derive(Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its colour, by number.
    pub colour: usize,
    /// Its points, from left to right, in stretches between which there is no line.
    pub stretches: Vec<Vec<Point>>,
}

/// Where it is, and a text that the browser shows for it.
pub type Point = (f64, f64, String);

/// Draws it, with a legend where there are several lines.
pub fn draw(x: &Axis, y: &Axis, series: &[Series]) -> String {
    let span = |axis: &Axis| if axis.to > axis.from { axis.to - axis.from } else { 1.0 };
    let across = |v: f64| LEFT + (v - x.from) / span(x) * (WIDTH - LEFT - RIGHT);
    let up = |v: f64| HEIGHT - BOTTOM - (v - y.from) / span(y) * (HEIGHT - TOP - BOTTOM);
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let mut svg = String::new();
    if series.len() > 1 {
        svg += "<div class=\"legend\">";
        for line in series {
            let (name, colour) = (escape(&line.name), line.colour % COLOURS);
            let _ = write!(svg, "<span><i style=\"background:var(--s{colour})\"></i>{name}</span>");
        }
        svg += "</div>";
    }
    let (xl, yl) = (escape(&x.label), escape(&y.label));
    let _ = write!(
        svg,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{yl} by {xl}\">"
    );
    for (at, text) in &y.ticks {
        let (h, text) = (up(*at), escape(text));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{h:.1}\" y2=\"{h:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 8.0,
            h + 4.0
        );
    }
    for (at, text) in &x.ticks {
        let (w, text) = (across(*at), escape(text));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{w:.1}\" x2=\"{w:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text x=\"{w:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            bottom + 18.0
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{xl}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 8.0
    );
    for line in series {
        let colour = line.colour % COLOURS;
        for stretch in line.stretches.iter().filter(|stretch| stretch.len() > 1) {
            let points: Vec<String> = stretch
                .iter()
                .map(|(px, py, _)| format!("{:.1},{:.1}", across(*px), up(*py)))
                .collect();
            let _ = write!(
                svg,
                "<polyline class=\"line\" style=\"stroke:var(--s{colour})\" points=\"{}\"/>",
                points.join(" ")
            );
        }
        for (px, py, text) in line.stretches.iter().flatten() {
            let (w, h, text) = (across(*px), up(*py), escape(text));
            let _ = write!(
                svg,
                "<circle class=\"dot\" style=\"fill:var(--s{colour})\" cx=\"{w:.1}\" cy=\"{h:.1}\" r=\"2\">\
                 <title>{text}</title></circle>"
            );
        }
    }
    svg + "</svg>"
}

/// An axis of latencies in nanoseconds from `low` to `high`, logarithmic: 1, 2 and 5 of each power
/// of ten are marked, or the powers alone where there are many. Give logarithms as values.
pub fn latency_axis(label: &str, low: f64, high: f64, human: impl Fn(f64) -> String) -> Axis {
    // A picosecond to some hours: what is no latency at all must not make marks without end.
    let low = low.clamp(1e-3, 1e13);
    let high = high.clamp(low * 1.5, 1e14);
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let steps: &[f64] = if last - first > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let marks: Vec<f64> = (first..=last)
        .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
        .collect();
    // From the last mark that is not above to the first that is not below.
    let from = marks.iter().copied().rfind(|mark| *mark <= low).unwrap_or(low);
    let to = marks.iter().copied().find(|mark| *mark >= high).unwrap_or(high);
    let shown = marks.iter().filter(|mark| (from..=to).contains(mark));
    let ticks = shown.map(|mark| (mark.log10(), human(*mark))).collect();
    Axis { label: label.to_owned(), from: from.log10(), to: to.log10(), ticks }
}

/// An axis from 0 to `to`, marked at round places.
pub fn linear_axis(label: &str, to: f64) -> Axis {
    let to = if to > 0.0 { to } else { 1.0 };
    let rough = to / 8.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough);
    let step = step.unwrap_or(power);
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    let count = (to / step + 1e-9) as u32;
    let ticks = (0..=count).map(|i| f64::from(i) * step).map(|at| (at, format!("{at:.digits$}")));
    Axis { label: label.to_owned(), from: 0.0, to, ticks: ticks.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn axes_are_marked_at_round_places_and_hold_every_value() {
        let axis = latency_axis("", 130.0, 900.0, |ns| format!("{ns:.0}"));
        assert_eq!(texts(&axis), ["100", "200", "500", "1000"]);
        assert!(axis.from <= 130_f64.log10() && axis.to >= 900_f64.log10());
        let axis = latency_axis("", 130.0, 9e7, |ns| format!("{ns:.0}"));
        assert_eq!(texts(&axis).len(), 7, "powers of ten alone: {:?}", texts(&axis));
        let axis = latency_axis("", f64::MAX, 0.0, |ns| format!("{ns:.0}"));
        assert!(texts(&axis).len() < 20 && axis.from < axis.to, "of nothing: {axis:?}");
        let axis = linear_axis("", 2.0);
        assert_eq!(texts(&axis), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(texts(&linear_axis("", 0.013)).last(), Some(&"0.012"));
    }

    #[test]
    fn points_are_where_their_values_are() {
        let axis = |to: f64| Axis { label: "a<b".to_owned(), from: 0.0, to, ticks: Vec::new() };
        let points = vec![(0.0, 0.0, "first".to_owned()), (10.0, 4.0, "last".to_owned())];
        let series = Series { name: "one".to_owned(), colour: 9, stretches: vec![points] };
        let svg = draw(&axis(10.0), &axis(4.0), &[series]);
        assert!(svg.contains("points=\"70.0,274.0 864.0,10.0\""), "{svg}");
        assert!(svg.contains("--s1") && svg.contains("<title>last</title>"), "{svg}");
        assert!(svg.contains("a&lt;b") && !svg.contains("legend"), "{svg}");
    }
}
