//! Numbers for Prometheus: times counted as they are taken, and the text in which all numbers are told.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Up to where each bucket goes, microseconds: from a millisecond to a minute.
const BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many were in each bucket, and beyond the last.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one more.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// All numbers, as Prometheus reads them.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// The numbers that follow are of this name: `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.name = name;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        self
    }

    /// One number of a family.
    pub fn value(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.sample("", labels, value)
    }

    /// One histogram of a family.
    pub fn times(&mut self, labels: &[(&str, &str)], times: &Histogram) -> &mut Self {
        let counts = times.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        self.buckets(labels, &BOUNDS.map(seconds), &counts, seconds(times.micros.load(Ordering::Relaxed)))
    }

    /// One histogram of a family: up to where each bucket goes, how many are in each and beyond the last, their sum.
    pub fn buckets(&mut self, labels: &[(&str, &str)], bounds: &[f64], counts: &[u64], sum: f64) -> &mut Self {
        let mut count = 0;
        let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".into()]);
        for (bound, of_bucket) in bounds.zip(counts) {
            count += of_bucket;
            self.sample("_bucket", &[labels, &[("le", &bound)]].concat(), count);
        }
        self.sample("_sum", labels, sum).sample("_count", labels, count)
    }

    /// The text.
    pub fn text(self) -> String {
        self.text
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let escaped = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let name = self.name;
        self.line(format_args!("{name}{suffix}{labels} {value}"));
        self
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a text takes all that is written");
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_in_its_bucket_and_all_above() {
        let times = Histogram::default();
        for micros in [1_000, 1_001, 90_000_000] {
            times.observe(Duration::from_micros(micros));
        }
        let mut page = Exposition::default();
        page.family("t_seconds", "histogram", "Times.").times(&[("of", "a\"b")], &times);
        let text = page.text();
        for line in [
            r#"t_seconds_bucket{of="a\"b",le="0.001"} 1"#,
            r#"t_seconds_bucket{of="a\"b",le="0.0025"} 2"#,
            r#"t_seconds_bucket{of="a\"b",le="60"} 2"#,
            r#"t_seconds_bucket{of="a\"b",le="+Inf"} 3"#,
            r#"t_seconds_sum{of="a\"b"} 90.002001"#,
            r#"t_seconds_count{of="a\"b"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
