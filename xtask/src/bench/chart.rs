//! The chart of a comparison: an SVG picture for light and for dark pages.

use std::fmt::Write;

use super::comparison::Comparison;

/// Pixels, of which the picture is made.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 96.0;
/// Room for the figure behind the longest bar.
const RIGHT: f64 = 64.0;
const TOP: f64 = 96.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// Colours by theme: text, faint text, grid, and a class for each emulator.
const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.faint { font-size: 11px; fill: #59636e }
.grid { stroke: #d1d9e0 }
.native { stroke: #59636e; stroke-dasharray: 4 3 }
.bar0 { fill: #0969da }
.bar1 { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.faint { fill: #9198a1 }
.grid { stroke: #3d444d }
.native { stroke: #9198a1 }
.bar0 { fill: #4493f8 }
.bar1 { fill: #db6d28 }
}
";

/// A logarithmic axis whose ends are ticks.
struct Axis {
    ticks: Vec<f64>,
}

impl Axis {
    /// An axis that holds 1 and all of `values`.
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (1.0_f64, 2.0_f64);
        for value in values.filter(|value| value.is_finite() && *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        let steps = (-3..6).flat_map(|decade| [1.0, 2.0, 5.0].map(|d| d * 10_f64.powi(decade)));
        let steps: Vec<f64> = steps.collect();
        let first = steps.iter().rposition(|step| *step <= least).unwrap_or(0);
        let last = steps.iter().position(|step| *step >= most).unwrap_or(steps.len() - 1);
        Self { ticks: steps[first..=last].to_vec() }
    }

    /// Where a value is.
    fn x(&self, value: f64) -> f64 {
        let (first, last) = match self.ticks.as_slice() {
            [first, .., last] => (*first, *last),
            _ => (1.0, 2.0),
        };
        let share = (value.max(1e-9) / first).ln() / (last / first).ln();
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

/// Draws the ratios, a bar for each workload and emulator.
pub fn draw(comparison: &Comparison) -> String {
    let emulators = comparison.emulators.len() as f64;
    let group = emulators * BAR + GAP;
    let height = TOP + group * comparison.rows.len() as f64 + BOTTOM;
    let axis = Axis::new(comparison.rows.iter().flat_map(|row| row.ratios()));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<style>\n{STYLE}</style>\n"
    );
    heading(&mut svg, comparison);
    grid(&mut svg, &axis, height);
    for (index, row) in comparison.rows.iter().enumerate() {
        let top = TOP + group * index as f64;
        let middle = top + emulators * BAR / 2.0;
        text(&mut svg, "", LEFT - 8.0, middle + 4.5, "end", row.name);
        for (number, ratio) in row.ratios().enumerate() {
            let y = top + BAR * number as f64;
            bar(&mut svg, &axis, number, y, ratio);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn heading(svg: &mut String, comparison: &Comparison) {
    let names: Vec<&str> = comparison.emulators.iter().map(|(name, _)| *name).collect();
    let title = format!("{}: processor time, native is 1", names.join(" and "));
    line(svg, &format!("<title>{}</title>", escaped(&title)));
    text(svg, "title", 12.0, 24.0, "start", &title);
    for (number, (_, description)) in comparison.emulators.iter().enumerate() {
        let x = 12.0 + 340.0 * number as f64;
        line(svg, &format!(r#"<rect class="bar{number}" x="{x}" y="38" width="10" height="10"/>"#));
        text(svg, "", x + 16.0, 48.0, "start", description);
    }
    let how = format!("cargo xtask bench --guests on {}; log scale", comparison.processor);
    text(svg, "faint", 12.0, 68.0, "start", &how);
}

fn grid(svg: &mut String, axis: &Axis, height: f64) {
    let (top, bottom) = (TOP - 10.0, height - BOTTOM);
    for &tick in &axis.ticks {
        let x = axis.x(tick);
        let class = if tick == 1.0 { "native" } else { "grid" };
        line(
            svg,
            &format!(r#"<line class="{class}" x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{bottom}"/>"#),
        );
        let label = if tick == 1.0 { "native".into() } else { format!("{tick} ×") };
        text(svg, "faint", x, bottom + 16.0, "middle", &label);
    }
}

/// A bar from native to the ratio, with the figure at its end.
fn bar(svg: &mut String, axis: &Axis, number: usize, y: f64, ratio: f64) {
    let (native, end) = (axis.x(1.0), axis.x(ratio));
    let (x, width) = (native.min(end), (end - native).abs().max(1.0));
    let place = format!(r#"x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{}""#, BAR - 2.0);
    line(svg, &format!(r#"<rect class="bar{number}" {place}/>"#));
    let figure = if ratio < 10.0 { format!("{ratio:.1} ×") } else { format!("{ratio:.0} ×") };
    text(svg, "faint", native.max(end) + 5.0, y + BAR - 4.0, "start", &figure);
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    line(
        svg,
        &format!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#
        ),
    );
}

fn line(svg: &mut String, element: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(svg, "{element}");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::comparison::tests::example;
    use super::*;

    #[test]
    fn every_bar_is_drawn_and_the_file_is_small() {
        let svg = draw(&example());
        // Two in the legend.
        assert_eq!(svg.matches("<rect").count(), 2 + 4);
        for figure in ["2.0 ×", "12 ×", "30 ×", "0.8 ×", "gzip", "fork", "QEMU 10.0.2"] {
            assert!(svg.contains(figure), "no {figure}");
        }
        assert!(svg.contains("A &lt;fast&gt; processor"));
        assert!(svg.len() < 20 << 10, "{} bytes", svg.len());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn the_axis_ends_at_ticks_and_holds_native() {
        let axis = Axis::new([2.5, 31.0].into_iter());
        assert_eq!(axis.ticks, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(Axis::new([0.7].into_iter()).ticks, [0.5, 1.0, 2.0]);
        assert!((axis.x(1.0) - LEFT).abs() < 1e-6);
        assert!((axis.x(50.0) - (WIDTH - RIGHT)).abs() < 1e-6);
        assert!(Axis::new([f64::INFINITY, 0.0].into_iter()).x(f64::NAN).is_finite());
    }
}
