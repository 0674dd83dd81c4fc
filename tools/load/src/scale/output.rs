//! The series as tables on the terminal and in Markdown, as JSON, and drawn.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::series::Column;
use super::{Measured, chart};
use crate::number::number;
use crate::plot;
use crate::report;
use crate::suite::output::{About, head};

impl Measured {
    fn columns(&self) -> Vec<&'static Column> {
        let first = self.series.points.first();
        first.into_iter().flat_map(|point| &point.steps).flat_map(|step| step.columns).collect()
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let titles = self
            .columns()
            .iter()
            .map(|c| format!("{} {}", c.text, c.unit).trim().to_owned())
            .collect::<Vec<_>>();
        let titles = std::iter::once(self.series.size.to_owned()).chain(titles).collect();

        let lines = self.series.points.iter().zip(&self.values).map(|(point, values)| {
            let values = values.iter().map(|value| value.map_or("-".to_owned(), number));
            std::iter::once(point.label.clone()).chain(values).collect()
        });
        std::iter::once(titles).chain(lines).collect()
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.series.name, self.series.about);
        for (row, cells) in self.cells().iter().enumerate() {
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
            if row == 0 {
                text.push_str(&format!("|{}\n", " ---: |".repeat(cells.len())));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let columns: Vec<Value> = self
            .columns()
            .iter()
            .map(|c| json!({"key": c.key, "text": c.text, "unit": c.unit}))
            .collect();

        let points: Vec<Value> = self
            .series
            .points
            .iter()
            .zip(&self.values)
            .map(|(point, values)| json!({"size": point.label, "values": values}))
            .collect();

        json!({"name": self.series.name, "size": self.series.size, "about": self.series.about,
               "columns": columns, "points": points})
    }

    /// A drawing for each unit of cost: a series with one point has none.
    fn charts(&self) -> String {
        if self.series.points.len() < 2 {
            return String::new();
        }

        let columns = self.columns();
        let mut units: Vec<&str> = columns.iter().map(|column| column.unit).collect();
        units.sort_unstable();
        units.dedup();

        let of = |unit: &str| -> Vec<chart::Line> {
            let with = columns.iter().enumerate().filter(|(_, column)| column.unit == unit);
            with.map(|(index, column)| chart::Line {
                label: column.text.to_owned(),
                points: self
                    .series
                    .points
                    .iter()
                    .zip(&self.values)
                    .filter_map(|(point, values)| Some((point.x, values[index]?)))
                    .collect(),
            })
            .collect()
        };

        let drawings = units.into_iter().filter(|unit| !unit.is_empty());
        drawings.map(|unit| chart::svg(self.series.size, unit, &of(unit))).collect()
    }
}

pub fn print(measured: &Measured) {
    let cells = measured.cells();
    println!("{}: {}", measured.series.name, measured.series.about);
    for line in &cells {
        let padded: Vec<String> = line
            .iter()
            .enumerate()
            .map(|(column, cell)| {
                let width = cells.iter().map(|line| line[column].len()).max().unwrap_or(0);
                format!("{cell:>width$}")
            })
            .collect();
        println!("  {}", padded.join("  "));
    }
}

pub fn write(folder: &Path, about: &About<'_>, measured: &[Measured]) -> Result<()> {
    let head = head(about);
    let path = |extension: &str| folder.join(format!("{}-scale.{extension}", head.name));

    let mut all = head.json;
    all["series"] = measured.iter().map(Measured::json).collect();
    report::write(&path("json"), &format!("{all:#}\n"))?;

    let tables: Vec<String> = measured.iter().map(Measured::markdown).collect();
    report::write(&path("md"), &format!("{}{}", head.markdown, tables.join("\n")))?;

    let sections: String = measured
        .iter()
        .map(|m| format!("<h2>{}</h2>\n<p>{}</p>\n{}\n", m.series.name, m.series.about, m.charts()))
        .collect();
    report::write(&path("html"), &plot::page(&head.title, &sections))?;
    println!("{}", path("{json,md,html}").display());
    Ok(())
}
