//! Charts as SVG: values over runs, and ratios to an earlier run.
//!
//! Colours and fonts come from the page's style by class, so that one drawing serves light and dark. Every mark has a
//! `<title>`, which browsers show when it is pointed at and screen readers read.
//!
//! 1. Coordinates are finite whatever the values are: those that are not finite or not above zero are not drawn.
//! 2. Text from outside is escaped.

use std::fmt::Write;

use super::escape;

/// One value of one run.
pub(super) struct Point {
    /// Which run, counted over all series of the chart.
    pub(super) at: usize,
    pub(super) value: f64,
    /// Shown when pointed at.
    pub(super) title: String,
    /// A run that cannot be submitted is drawn hollow.
    pub(super) hollow: bool,
}

/// Values of one kind of runs.
pub(super) struct Series {
    /// Class of its colour.
    pub(super) class: &'static str,
    pub(super) points: Vec<Point>,
}

/// Size and margins, in the units of the view box.
pub(super) struct Frame {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) left: f64,
    pub(super) bottom: f64,
    /// With grid, ticks and labels of runs.
    pub(super) axes: bool,
}

const TOP: f64 = 14.0;
const RIGHT: f64 = 16.0;

/// Values over runs, one line per series. `labels` names the runs.
pub(super) fn lines(frame: &Frame, name: &str, series: &[Series], labels: &[String]) -> String {
    let values = || series.iter().flat_map(|one| &one.points).map(|point| point.value);
    let scale = Scale::of(values().filter(|value| drawable(*value)));
    let x = |at: usize| {
        let inner = frame.width - frame.left - RIGHT;
        let steps = labels.len().saturating_sub(1);
        let part = if steps == 0 { 0.5 } else { at as f64 / steps as f64 };
        frame.left + part * inner
    };
    let floor = frame.height - frame.bottom;
    let y = |value: f64| floor - scale.part(value) * (floor - TOP);
    let mut svg = open(frame, "lines", name);
    if frame.axes {
        grid(&mut svg, frame, &scale, y);
        run_labels(&mut svg, frame, labels, x);
    }
    for one in series {
        let points: Vec<&Point> = one.points.iter().filter(|point| drawable(point.value)).collect();
        let place = |point: &&Point| format!("{:.1},{:.1}", x(point.at), y(point.value));
        if points.len() > 1 {
            let path: Vec<String> = points.iter().map(place).collect();
            let (first, last) = (x(points[0].at), x(points[points.len() - 1].at));
            let line = path.join(" ");
            let area = format!("{first:.1},{floor:.1} {line} {last:.1},{floor:.1}");
            let _ = write!(
                svg,
                "<polygon class=\"area {0}\" points=\"{area}\"/><polyline class=\"line {0}\" points=\"{line}\"/>",
                one.class
            );
        }
        for (nth, point) in points.iter().enumerate() {
            let is_last = nth + 1 == points.len();
            let radius = if is_last { 5.0 } else { 3.5 } * if frame.axes { 1.0 } else { 0.75 };
            let hollow = if point.hollow { " hollow" } else { "" };
            let _ = write!(
                svg,
                "<circle class=\"dot {}{hollow}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\"><title>{}</title></circle>",
                one.class,
                x(point.at),
                y(point.value),
                escape(&point.title)
            );
        }
    }
    svg + "</svg>"
}

/// One bar per row, to the right of the middle where the ratio is above one; each doubling is as wide.
pub(super) fn ratios(rows: &[(String, f64)]) -> String {
    const ROW: f64 = 26.0;
    let frame = Frame {
        width: 1_080.0,
        height: TOP + 26.0 + ROW * rows.len() as f64,
        left: 170.0,
        bottom: 26.0,
        axes: true,
    };
    let drawn = rows.iter().filter(|(_, ratio)| drawable(*ratio));
    // At least a quarter more or less, at most a factor of 64: one outlier must not hide the rest.
    let reach = drawn.map(|(_, ratio)| ratio.log2().abs()).fold(0.33, f64::max).min(6.0);
    let (middle, half) =
        ((frame.left + frame.width - 70.0) / 2.0, (frame.width - 70.0 - frame.left) / 2.0);
    let floor = frame.height - frame.bottom;
    let mut svg = open(&frame, "ratios", "Ratio to the last run of its kind, per phase");
    for part in [-1.0, -0.5, 0.0, 0.5, 1.0f64] {
        let (x, class) = (middle + part * half, if part == 0.0 { "axis" } else { "grid" });
        let label = format!("×{:.2}", (part * reach).exp2());
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{floor:.1}\"/>\
             <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>",
            floor + 17.0
        );
    }
    for (nth, (name, ratio)) in rows.iter().enumerate() {
        let top = TOP + ROW * nth as f64;
        let text_y = top + ROW / 2.0 + 4.0;
        let _ = write!(
            svg,
            "<text class=\"name\" text-anchor=\"end\" x=\"{:.1}\" y=\"{text_y:.1}\">{}</text>",
            frame.left - 12.0,
            escape(name)
        );
        if !drawable(*ratio) {
            continue;
        }
        let part = (ratio.log2() / reach).clamp(-1.0, 1.0);
        let (x, width) = (middle + (part * half).min(0.0), (part * half).abs().max(1.0));
        let class = direction(*ratio);
        let _ = write!(
            svg,
            "<rect class=\"bar {class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"3\">\
             <title>{}: ×{ratio:.3}</title></rect>\
             <text class=\"value {class}\" x=\"{:.1}\" y=\"{text_y:.1}\">×{ratio:.2}</text>",
            top + 5.0,
            ROW - 10.0,
            escape(name),
            frame.width - 56.0
        );
    }
    svg + "</svg>"
}

/// Class of a ratio: what differs by less than a fiftieth is neither better nor worse.
pub(super) fn direction(ratio: f64) -> &'static str {
    if ratio > 1.02 {
        "better"
    } else if ratio < 0.98 {
        "worse"
    } else {
        "same"
    }
}

/// A value for people: about four digits.
pub(super) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        "–".into()
    } else if magnitude >= 1_000.0 {
        let whole = format!("{value:.0}");
        let groups: Vec<&str> = whole
            .as_bytes()
            .rchunks(3)
            .rev()
            .map(|group| std::str::from_utf8(group).unwrap_or_default())
            .collect();
        groups.join("\u{202f}")
    } else if magnitude >= 100.0 {
        format!("{value:.1}")
    } else if magnitude >= 1.0 || magnitude == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

fn drawable(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn open(frame: &Frame, class: &str, name: &str) -> String {
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
        frame.width,
        frame.height,
        escape(name)
    )
}

fn grid(svg: &mut String, frame: &Frame, scale: &Scale, y: impl Fn(f64) -> f64) {
    for tick in scale.ticks() {
        let at = y(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            frame.left,
            frame.width - RIGHT,
            frame.left - 8.0,
            at + 4.0,
            tick_label(tick)
        );
    }
}

/// As many labels as have room, the last run's always.
fn run_labels(svg: &mut String, frame: &Frame, labels: &[String], x: impl Fn(usize) -> f64) {
    let room = ((frame.width - frame.left) / 110.0).max(1.0) as usize;
    let every = labels.len().div_ceil(room).max(1);
    for (at, label) in labels.iter().enumerate() {
        let from_last = labels.len() - 1 - at;
        if !from_last.is_multiple_of(every) {
            continue;
        }
        let anchor = match (labels.len(), at) {
            (1, _) => "middle",
            (_, 0) => "start",
            _ if from_last == 0 => "end",
            _ => "middle",
        };
        let _ = write!(
            svg,
            "<text class=\"tick\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(at),
            frame.height - frame.bottom + 20.0,
            escape(label)
        );
    }
}

/// From a value to its part of the height: linear from zero, or logarithmic where values differ by more than 30 times.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (least, most) =
            values.fold((f64::MAX, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        if most == 0.0 {
            return Self { low: 0.0, high: 1.0, logarithmic: false };
        }
        if most / least > 30.0 {
            let (low, high) = (least.log10().floor(), most.log10().ceil());
            return Self { low, high: high.max(low + 1.0), logarithmic: true };
        }
        let step = step(most * 1.08);
        Self { low: 0.0, high: (most * 1.08 / step).ceil() * step, logarithmic: false }
    }

    fn part(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.log10() } else { value };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let (low, high) = (self.low as i32, self.high as i32);
            let every = ((high - low) / 6).max(1) as usize;
            return (low..=high).step_by(every).map(|power| 10f64.powi(power)).collect();
        }
        let step = step(self.high);
        (0..)
            .map(|nth| f64::from(nth) * step)
            .take_while(|tick| *tick <= self.high * 1.001)
            .collect()
    }
}

/// A round step of which about four make `most`.
fn step(most: f64) -> f64 {
    let rough = most / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

fn tick_label(tick: f64) -> String {
    if tick >= 1e6 {
        format!("{}M", trimmed(tick / 1e6))
    } else if tick >= 1e4 {
        format!("{}k", trimmed(tick / 1e3))
    } else {
        trimmed(tick)
    }
}

fn trimmed(value: f64) -> String {
    let digits =
        if value == 0.0 { 0 } else { (3.0 - value.log10().ceil()).clamp(0.0, 9.0) as usize };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let point = |(at, value): (usize, &f64)| Point {
            at,
            value: *value,
            title: "a < b".into(),
            hollow: false,
        };
        Series { class: "own", points: values.iter().enumerate().map(point).collect() }
    }

    const FRAME: Frame =
        Frame { width: 400.0, height: 200.0, left: 40.0, bottom: 30.0, axes: true };

    #[test]
    fn every_drawable_value_has_a_dot_inside_the_frame_and_no_other() {
        for values in [
            &[1.0][..],
            &[0.0, 1.0, f64::NAN, f64::INFINITY, 2.0],
            &[1e-9, 1e12],
            &[5.0, 5.0],
            &[],
            &[-1.0],
        ] {
            let labels = vec!["run".to_owned(); values.len()];
            let svg = lines(&FRAME, "n", &[series(values)], &labels);
            let dots = values.iter().filter(|value| drawable(**value)).count();
            assert_eq!(svg.matches("<circle").count(), dots, "{values:?}");
            assert!(!svg.contains("NaN") && !svg.contains("\"inf"), "{svg}");
            for (attribute, most) in [("cx=\"", 400.0), ("cy=\"", 200.0)] {
                for rest in svg.split(attribute).skip(1) {
                    let value: f64 = rest.split('"').next().unwrap().parse().unwrap();
                    assert!((0.0..=most).contains(&value), "{values:?}: {attribute}{value}");
                }
            }
        }
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let svg = lines(&FRAME, "<x>", &[series(&[1.0, 2.0])], &["\"1\"".into(), "&".into()]);
        assert!(svg.contains("a &lt; b") && svg.contains("&quot;1&quot;"), "{svg}");
        assert!(!svg.contains("<x>"));
        assert!(ratios(&[("<y>".into(), 1.0)]).contains("&lt;y&gt;"));
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let ticks = |values: &[f64]| Scale::of(values.iter().copied()).ticks();
        assert_eq!(ticks(&[7.0]), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(&[0.5, 1_000.0]), [0.1, 1.0, 10.0, 100.0, 1_000.0]);
        assert_eq!(
            [0.0, 0.25, 2.5, 1_500.0, 20_000.0, 3e6].map(tick_label),
            ["0", "0.25", "2.5", "1500", "20k", "3M"]
        );
    }

    #[test]
    fn numbers_have_about_four_digits() {
        let texts = [0.0123, 1.5, 123.44, 1_234.5, 1_234_567.0, f64::NAN].map(number);
        assert_eq!(
            texts,
            ["0.0123", "1.50", "123.4", "1\u{202f}234", "1\u{202f}234\u{202f}567", "–"]
        );
    }
}
