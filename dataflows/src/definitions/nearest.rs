//! The known name that an unknown one was probably meant to be.

/// Longer names are no typing mistakes, and comparing them would cost.
const LENGTH_MAX: usize = 64;

/// The known name with the fewest slips of the finger to `name`; none if all are too far away to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters: Vec<char> = name.chars().take(LENGTH_MAX + 1).collect();
    let slips_max = match letters.len() {
        0 | 1 => return None,
        2..=5 => 1,
        6..=8 => 2,
        9..=LENGTH_MAX => 3,
        _ => return None,
    };
    // A slip changes two letters at most, and a letter has four bytes at most: all other names need no closer look.
    let close = |other: &&str| (mask(name) ^ mask(other)).count_ones() as usize <= 8 * slips_max;
    let measured =
        known.into_iter().filter(close).map(|other| (slips(&letters, &Vec::from_iter(other.chars())), other));
    measured.filter(|(slips, _)| (1..=slips_max).contains(slips)).min().map(|(_, other)| other)
}

/// Which bytes a name has.
fn mask(name: &str) -> u64 {
    name.bytes().fold(0, |mask, byte| mask | 1 << (byte % 64))
}

/// How many letters to add, drop, change or swap with their neighbour (optimal string alignment).
fn slips(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous_a = None;
    for (i, &letter_a) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        let mut previous_b = None;
        for (j, &letter_b) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let changed = at(&last, j) + usize::from(letter_a != letter_b);
            let mut least = changed.min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            if previous_a == Some(letter_b) && previous_b == Some(letter_a) && j > 0 {
                least = least.min(at(&before_last, j - 1) + 1);
            }
            row.push(least);
            previous_b = Some(letter_b);
        }
        before_last = std::mem::replace(&mut last, row);
        previous_a = Some(letter_a);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["segment", "segments", "event", "to", "where", "add_to_cart", "performed", "überweisung"];
        let cases = [
            ("segmnet", Some("segment")),
            ("segmentss", Some("segments")),
            ("evnt", Some("event")),
            ("ot", Some("to")),
            ("were", Some("where")),
            ("add_to_chart", Some("add_to_cart")),
            ("preformed", Some("performed")),
            ("uberweisung", Some("überweisung")),
            ("x", None),
            ("event", None),
            ("transition", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
        assert_eq!(nearest(&"a".repeat(1000), known), None);
    }
}
