//! A drawing of figures over sizes. Sizes are logarithmic and figures start at zero, so that what
//! is flat looks flat.

use std::fmt::Write as _;

use crate::number::number;
use crate::plot::{COLOURS, escape};

pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = HEIGHT - 36.0;

struct Frame {
    low: f64,
    high: f64,
    most: f64,
}

impl Frame {
    fn of(lines: &[Line]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let low = points().map(|(x, _)| x.max(1.0).ln()).fold(f64::INFINITY, f64::min);
        let high = points().map(|(x, _)| x.max(1.0).ln()).fold(low, f64::max);
        let most = points().map(|(_, y)| *y).fold(0.0, f64::max);
        Frame { low, high: if high > low { high } else { low + 1.0 }, most: nice(most) }
    }

    fn x(&self, x: f64) -> f64 {
        LEFT + (x.max(1.0).ln() - self.low) / (self.high - self.low) * (WIDTH - LEFT - 20.0)
    }

    fn y(&self, y: f64) -> f64 {
        BOTTOM - y / self.most * (BOTTOM - TOP)
    }
}

/// The next larger of 1, 2, 5, 10, 20, ...
fn nice(most: f64) -> f64 {
    let power = 10f64.powf(most.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|end| *end >= most)
        .unwrap_or(1.0)
}

pub fn svg(size: &str, unit: &str, lines: &[Line]) -> String {
    let frame = Frame::of(lines);
    let height = HEIGHT + 18.0 * lines.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-size=\"12\" style=\"background:#fff;margin:0 1rem 1rem 0\">\n"
    );
    axes(&mut out, &frame, (size, unit), lines);

    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        for (x, y) in &line.points {
            let (x, y) = (frame.x(*x), frame.y(*y));
            let _ = write!(path, "{x:.1},{y:.1} ");
            let _ =
                writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }

        let at = HEIGHT + 18.0 * index as f64;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{at}\">{}, {}</text>",
            path.trim_end(),
            at - 5.0,
            LEFT + 20.0,
            escape(&line.label),
            escape(unit),
        );
    }

    out.push_str("</svg>\n");
    out
}

fn axes(out: &mut String, frame: &Frame, (size, unit): (&str, &str), lines: &[Line]) {
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let value = frame.most * part;
        let y = frame.y(value);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{} {}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            y + 4.0,
            number(value),
            escape(unit),
        );
    }

    let first = lines.first().map(|line| line.points.as_slice()).unwrap_or_default();
    for (x, _) in first {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            frame.x(*x),
            BOTTOM + 16.0,
            number(*x),
        );
    }

    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        WIDTH - 20.0,
        BOTTOM + 31.0,
        escape(size),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_stays_inside_and_starts_at_zero() {
        let points = vec![(1.0, 0.0), (100.0, 7.5), (50_000.0, 3.0)];
        let lines = [Line { label: "a <b>".to_owned(), points }];
        let frame = Frame::of(&lines);
        assert_eq!(frame.most, 10.0);
        assert_eq!(frame.y(0.0), BOTTOM);
        for (x, y) in &lines[0].points {
            assert!((LEFT..=WIDTH).contains(&frame.x(*x)));
            assert!((TOP..=BOTTOM).contains(&frame.y(*y)));
        }

        let text = svg("channels", "us", &lines);
        assert!(text.contains("a &lt;b&gt;") && text.contains("<polyline"));
        assert!(svg("none", "us", &[]).contains("</svg>"));
    }
}
