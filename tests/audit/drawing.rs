//! A rollout as a drawing: reconnects in each second, and below them the sockets of each replica.

use std::fmt::Write as _;
use std::time::Duration;

use super::absence::{Absence, Replacement};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 130.0;
/// Top and bottom of the two parts.
const BARS: (f64, f64) = (50.0, 210.0);
const LINES: (f64, f64) = (250.0, 410.0);
const COLOURS: [&str; 4] = ["#1b6ca8", "#d1495b", "#2e8b57", "#c98b00"];
const NAMES: [&str; 4] = ["old 1", "old 2", "new 1", "new 2"];

/// The socket counts of all replicas at one time.
pub type Sample = (Duration, Vec<f64>);

/// Maps times and counts to coordinates.
struct Paper {
    from: f64,
    until: f64,
}

impl Paper {
    fn x(&self, at: Duration) -> f64 {
        let part = (at.as_secs_f64() - self.from) / (self.until - self.from);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }

    fn y((top, bottom): (f64, f64), value: f64, most: f64) -> f64 {
        bottom - value / most * (bottom - top)
    }
}

pub fn svg(
    title: &str,
    absences: &[Absence],
    replacements: &[Replacement],
    samples: &[Sample],
) -> String {
    let first = replacements.first().map_or(0.0, |r| r.term.as_secs_f64());
    let last = replacements.last().map_or(1.0, |r| r.exited.as_secs_f64());
    let paper = Paper { from: first - 4.0, until: last + 4.0 };

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"450\" \
         font-family=\"system-ui,sans-serif\" font-size=\"12\" style=\"background:#fff\">\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{title}</text>\n"
    );

    phases(&mut out, &paper, replacements);
    bars(&mut out, &paper, absences);
    lines(&mut out, &paper, samples);
    seconds(&mut out, &paper);
    out.push_str("</svg>\n");
    out
}

/// Settle and window as shades, the process's end as a line.
fn phases(out: &mut String, paper: &Paper, replacements: &[Replacement]) {
    for (number, r) in replacements.iter().enumerate() {
        let parts = [(r.term, r.settle, "#fff3d6"), (r.term + r.settle, r.window, "#e8eff7")];
        for (from, long, colour) in parts {
            let (x, width) = (paper.x(from), paper.x(from + long) - paper.x(from));
            let height = LINES.1 - BARS.0;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>",
                BARS.0
            );
        }

        let (term, exit) = (paper.x(r.term), paper.x(r.exited));
        let _ = writeln!(
            out,
            "<text x=\"{term:.1}\" y=\"44\">SIGTERM {}, settle, window</text>\n\
             <line x1=\"{exit:.1}\" x2=\"{exit:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#888\" \
             stroke-dasharray=\"3\"/>",
            number + 1,
            BARS.0,
            LINES.1
        );
    }
}

fn bars(out: &mut String, paper: &Paper, absences: &[Absence]) {
    let span = (paper.until - paper.from).ceil();
    let count = |second: f64| {
        let begins = paper.from + second;
        let is_in = |back: Duration| (begins..begins + 1.0).contains(&back.as_secs_f64());
        absences.iter().filter_map(|a| a.back).filter(|back| is_in(*back)).count() as f64
    };

    let counts: Vec<f64> = std::iter::successors(Some(0.0), |s| Some(s + 1.0))
        .take_while(|s| *s < span)
        .map(count)
        .collect();
    let most = counts.iter().copied().fold(1.0, f64::max);

    let wide = (WIDTH - LEFT - RIGHT) / (paper.until - paper.from);
    for (second, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
        let (x, y) = (LEFT + wide * second as f64, Paper::y(BARS, *count, most));
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#546e7a\"/>",
            x + 0.5,
            wide - 1.0,
            BARS.1 - y
        );
    }

    scale(out, BARS, most, "back in each second");
}

fn lines(out: &mut String, paper: &Paper, samples: &[Sample]) {
    let most = samples.iter().flat_map(|(_, counts)| counts).copied().fold(1.0, f64::max);
    let inside = |at: &Duration| (paper.from..=paper.until).contains(&at.as_secs_f64());

    for (replica, colour) in COLOURS.iter().enumerate() {
        let own = samples.iter().filter(|(at, _)| inside(at));
        let own = own.filter_map(|(at, counts)| Some((paper.x(*at), *counts.get(replica)?)));
        let points: Vec<(f64, f64)> =
            own.map(|(x, count)| (x, Paper::y(LINES, count, most))).collect();
        let text: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();

        let row = LINES.0 + 32.0 + 18.0 * replica as f64;
        let x = WIDTH - RIGHT + 12.0;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <text x=\"{x}\" y=\"{row}\" fill=\"{colour}\">{}</text>",
            text.join(" "),
            NAMES[replica]
        );
    }

    scale(out, LINES, most, "sockets of each replica");
}

fn scale(out: &mut String, (top, bottom): (f64, f64), most: f64, what: &str) {
    let (x, end) = (LEFT - 6.0, WIDTH - RIGHT);
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT}\" x2=\"{end}\" y1=\"{bottom}\" y2=\"{bottom}\" stroke=\"#444\"/>\n\
         <text x=\"{x}\" y=\"{:.1}\" text-anchor=\"end\">{most}</text>\n\
         <text x=\"{x}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\">{what}</text>",
        top + 10.0,
        end + 12.0,
        top + 10.0
    );
}

fn seconds(out: &mut String, paper: &Paper) {
    let begin = Duration::from_secs_f64(paper.from + 4.0);
    let last = (paper.until - paper.from - 4.0) as u64;
    for second in (0..=last).step_by(5) {
        let x = paper.x(begin + Duration::from_secs(second));
        let y = LINES.1 + 18.0;
        let _ =
            writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{second} s</text>");
    }
}
