//! Latency by percentile as a drawing: one line per run, the x axis in "nines" (each step is a
//! tenth of what is left), both axes logarithmic. The drawing is one HTML file that needs
//! nothing else.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::clock::millis;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    pub label: String,
    /// Nines (2 is the 99th percentile) and milliseconds.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 20.0;
pub const COLOURS: [&str; 8] =
    ["#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c98b00", "#00838f", "#6d4c41", "#546e7a"];

impl Curve {
    /// The curve as far as the number of values carries it.
    pub fn of(label: String, nanos: &Histogram<u64>) -> Self {
        let end = (nanos.len() as f64).log10().min(7.0);
        let points = (0..=70)
            .map(|step| f64::from(step) / 10.0)
            .take_while(|nines| *nines <= end)
            .map(|nines| {
                let quantile = 1.0 - 10f64.powf(-nines);
                (nines, millis(nanos.value_at_quantile(quantile)))
            })
            .collect();
        Curve { label, points }
    }
}

pub fn html(title: &str, curves: &[Curve]) -> String {
    let about =
        "Latency by percentile, from the time at which a publication was due to its delivery.";
    page(title, &format!("<p>{about}</p>\n{}\n", svg(curves)))
}

/// A page of drawings that needs nothing else.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n\
         <body style=\"font:14px system-ui,sans-serif;margin:2rem\">\n<h1>{title}</h1>\n{body}\
         </body></html>\n",
        title = escape(title),
    )
}

struct Scale {
    nines: f64,
    /// Exponents of ten, in milliseconds.
    low: f64,
    high: f64,
}

impl Scale {
    fn of(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let exponents = || points().map(|(_, ms)| ms.max(1e-3).log10());
        let low = exponents().fold(f64::INFINITY, f64::min).min(0.0).floor();
        let high = exponents().fold(f64::NEG_INFINITY, f64::max).max(low + 1.0).ceil();
        Scale { nines: points().map(|(nines, _)| *nines).fold(1.0, f64::max), low, high }
    }

    fn x(&self, nines: f64) -> f64 {
        LEFT + nines / self.nines * (WIDTH - LEFT - 20.0)
    }

    fn y(&self, ms: f64) -> f64 {
        let part = (ms.max(1e-3).log10() - self.low) / (self.high - self.low);
        TOP + (1.0 - part) * (HEIGHT - TOP - 50.0)
    }
}

fn svg(curves: &[Curve]) -> String {
    let scale = Scale::of(curves);
    let height = HEIGHT + 20.0 * curves.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-size=\"12\" style=\"background:#fff\">\n"
    );
    axes(&mut out, &scale);

    for (number, curve) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut points = String::new();
        for (nines, ms) in &curve.points {
            let _ = write!(points, "{:.1},{:.1} ", scale.x(*nines), scale.y(*ms));
        }

        let y = HEIGHT + 20.0 * number as f64;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{y}\">{}</text>",
            points.trim_end(),
            y - 6.0,
            LEFT + 22.0,
            escape(&curve.label)
        );
    }

    out.push_str("</svg>");
    out
}

fn axes(out: &mut String, scale: &Scale) {
    let bottom = HEIGHT - 50.0;
    let halves = std::iter::once((2f64.log10(), "50 %".to_owned()));
    let whole = (1..=7).map(|n| {
        let digits = "9".repeat((n - 1) as usize);
        let text = match n {
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            _ => format!("99.{} %", &digits[1..]),
        };
        (f64::from(n), text)
    });

    for (nines, text) in halves.chain(whole).filter(|(nines, _)| *nines <= scale.nines) {
        let x = scale.x(nines);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            bottom + 18.0
        );
    }

    for exponent in scale.low as i32..=scale.high as i32 {
        let ms = 10f64.powi(exponent);
        let y = scale.y(ms);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ms} ms</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            y + 4.0
        );
    }
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: impl Iterator<Item = u64>) -> Curve {
        let mut histogram = crate::tally::histogram();
        values.for_each(|value| histogram.record(value).unwrap());
        Curve::of("a <b>".to_owned(), &histogram)
    }

    #[test]
    fn a_curve_rises_and_ends_where_the_values_do() {
        let curve = curve((1..=1000).map(|n| n * 1_000_000));
        assert_eq!(curve.points.last().unwrap().0, 3.0);
        assert!(curve.points.is_sorted_by(|a, b| a.1 <= b.1));
        let p99 = curve.points.iter().find(|(nines, _)| *nines == 2.0).unwrap().1;
        assert!((989.0..=992.0).contains(&p99), "{p99}");
    }

    #[test]
    fn the_drawing_stays_inside_and_escapes_labels() {
        let curves = [curve([2_000, 4_000_000_000].into_iter()), curve(std::iter::once(5_000))];
        let page = html("x & y", &curves);
        assert_eq!(page.matches("<polyline").count(), 2);
        assert!(page.contains("a &lt;b&gt;") && page.contains("x &amp; y"));

        let scale = Scale::of(&curves);
        for (nines, ms) in curves.iter().flat_map(|c| &c.points) {
            assert!((LEFT..=WIDTH).contains(&scale.x(*nines)));
            assert!((TOP..=HEIGHT).contains(&scale.y(*ms)), "{ms}");
        }
        assert!(html("none", &[]).contains("</svg>"));
    }
}
