//! Things side by side, in 80 columns. Nothing is cut: what is too long goes on below.

use crate::diagnostics::COLUMNS;

/// Of the words before each line.
const LABEL: usize = 9;
/// Between two things.
const GAP: usize = 2;
/// With more a column would be narrower than an IPv6 address is readable in.
const MOST: usize = 3;

/// One thing: a line or more for each of the labels.
pub(super) type Column = Vec<Vec<String>>;

/// `columns` side by side, three at most; more stand below. `labels` has one word for each of
/// their rows; a row that is empty everywhere is left out.
pub(super) fn side_by_side(labels: &[&str], columns: &[Column]) -> String {
    let blocks = columns.chunks(MOST).map(|columns| block(labels, columns));
    blocks.collect::<Vec<_>>().join("\n\n")
}

fn block(labels: &[&str], columns: &[Column]) -> String {
    let gaps = GAP * columns.len().saturating_sub(1);
    let width = (COLUMNS - LABEL - gaps) / columns.len().max(1);
    let mut lines = Vec::new();
    for (row, label) in labels.iter().enumerate() {
        let cells: Vec<Vec<String>> = columns
            .iter()
            .map(|column| {
                let texts = column.get(row).map_or(&[][..], Vec::as_slice);
                texts.iter().flat_map(|text| wrapped(text, width)).collect()
            })
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..height {
            let mut line = format!("{:<LABEL$}", if at == 0 { label } else { "" });
            for (number, cell) in cells.iter().enumerate() {
                let gap = if number == 0 { 0 } else { GAP };
                let text = cell.get(at).map_or("", |text| text);
                line.push_str(&format!("{:gap$}{text:<width$}", ""));
            }
            lines.push(line.trim_end().to_owned());
        }
    }
    lines.join("\n")
}

/// A text in lines of `width` characters, broken between words where that is possible; what
/// goes on is indented.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        loop {
            let first = lines.len() == 1;
            let Some(line) = lines.last_mut() else { break };
            let used = line.chars().count();
            let space = usize::from(used > 0 && (first || used > GAP));
            let room = width.saturating_sub(used + space);
            if rest.len() <= room {
                line.push_str(&" ".repeat(space));
                line.extend(rest);
                break;
            }
            // A word that no line holds is broken where the line is full.
            if rest.len() + GAP > width && room > 0 {
                line.push_str(&" ".repeat(space));
                line.extend(rest.drain(..room));
            }
            lines.push(" ".repeat(GAP));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_goes_on_below() {
        for (text, width, want) in [
            ("a b", 10, &["a b"][..]),
            ("a long text", 8, &["a long", "  text"]),
            ("0123456789abc", 8, &["01234567", "  89abc"]),
            ("a 0123456789", 8, &["a 012345", "  6789"]),
            ("", 8, &[""]),
        ] {
            assert_eq!(wrapped(text, width), want, "{text}");
        }
    }

    #[test]
    fn three_stand_side_by_side() {
        let column = |name: &str| vec![vec![name.to_owned()], vec![], vec!["x".repeat(90)]];
        let columns: Vec<Column> = ["one", "two", "three", "four"].map(column).into();
        let text = side_by_side(&["", "empty", "data"], &columns);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let heads: Vec<&str> = text.lines().filter(|line| line.contains('o')).collect();
        assert_eq!(heads.len(), 2, "{text}");
        assert_eq!(text.matches('x').count(), 4 * 90, "nothing is cut: {text}");
        assert!(!text.contains("empty"), "{text}");
    }
}
