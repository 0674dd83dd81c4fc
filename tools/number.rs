//! Numbers as people read them. Each tool compiles this one file: a package for a single function
//! would be more to read than the function.

/// Formats a number: a fraction below 100 with two or three decimals, everything else whole, with
/// its thousands apart.
pub fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 100.0 && value.fract() != 0.0 {
        let digits = if value.abs() < 1.0 { 3 } else { 2 };
        return format!("{value:.digits$}");
    }

    let whole = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }

    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let texts = [0.0, 0.1234, 12.345, 999.0, 1_234_567.8].map(number);
        assert_eq!(texts, ["0", "0.123", "12.35", "999", "1,234,568"]);
    }
}
