//! What the benchmarks share: what they are asked for, and medians.

use crate::lab;

/// The words behind `--`.
#[derive(Debug)]
pub struct Wanted {
    words: Vec<String>,
    flags: Vec<String>,
}

impl Wanted {
    /// Of this process. `None`: nothing is to be measured, as a runner only lists what there
    /// is, or this is not root.
    pub fn of_this_run(bench: &str) -> Option<Self> {
        let (flags, words): (Vec<_>, Vec<_>) =
            std::env::args().skip(1).partition(|word| word.starts_with("--"));
        // Cargo adds --bench; a test runner that only lists has nothing to find here.
        if flags.iter().any(|flag| flag == "--list") {
            return None;
        }
        if !lab::is_root() {
            lab::skipped(bench, "needs root");
            return None;
        }
        Some(Self { words, flags })
    }

    /// Whether a row is asked for: all are, unless some are named by a word.
    pub fn row(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(&**word))
    }

    /// Whether a flag is given.
    pub fn flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }
}

/// The middle one of some values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Three figures that matter.
pub fn short(value: f64) -> String {
    match value {
        100_000.0.. => format!("{:.0}k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
