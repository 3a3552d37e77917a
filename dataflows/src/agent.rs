//! User agents: what the text that a browser sends of itself tells of the device.
//!
//! The rules for browsers and systems are uap-core's, kept in `uap/` (of its file what is used here: the expressions
//! and the names). To go through them takes long beside decoding an event, and the same agents come again and again, so
//! each is read once.

use std::sync::LazyLock;

use ecow::EcoString;
use hashbrown::HashMap;
use serde::Deserialize;
use ua_parser::{os, user_agent};

/// What an agent tells of its device, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// `desktop`, `tablet` or `mobile`.
    pub device: Option<EcoString>,
    /// The operating system's name.
    pub os: Option<EcoString>,
    /// The browser's name.
    pub browser: Option<EcoString>,
}

/// Agents by their texts: each thread that decodes has its own.
#[derive(Debug, Default)]
pub struct Agents {
    read: HashMap<Box<str>, Agent>,
}

/// Agents kept; past it the table is begun anew.
const AGENTS_MAX: usize = 1 << 12;
/// No browser says more of itself; what is longer is not read.
const AGENT_BYTES_MAX: usize = 1_024;

impl Agents {
    /// What an agent tells.
    pub fn read(&mut self, text: &str) -> Agent {
        if text.len() > AGENT_BYTES_MAX {
            return Agent::default();
        }
        if self.read.len() >= AGENTS_MAX {
            self.read.clear();
        }
        self.read.entry_ref(text).or_insert_with(|| Agent::read(text)).clone()
    }
}

impl Agent {
    fn read(text: &str) -> Agent {
        Agent {
            device: device(text).map(EcoString::from),
            os: RULES.os.extract(text).map(|found| EcoString::from(&*found.os)),
            browser: RULES.browser.extract(text).map(|found| EcoString::from(&*found.family)),
        }
    }
}

/// The kind of device. Computers name their system in a few ways; a tablet calls itself one, or has a system of
/// telephones and does not say that it is mobile.
fn device(text: &str) -> Option<&'static str> {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["TV"]) {
        None
    } else if says(&["Windows NT", "Macintosh", "X11", "CrOS"]) {
        Some("desktop")
    } else if says(&["iPad", "Tablet"]) || says(&["Android"]) && !says(&["Mobi"]) {
        Some("tablet")
    } else {
        says(&["Mobi", "iPhone", "iPod"]).then_some("mobile")
    }
}

/// The rules, made ready at the first use.
static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let file: File = serde_json::from_str(include_str!("../uap/regexes.json")).expect("the rules are JSON");
    let browser = user_agent::Builder::new().push_all(file.user_agent_parsers);
    let os = os::Builder::new().push_all(file.os_parsers);
    Rules {
        browser: browser.expect("the rules are right").build().expect("the rules are right"),
        os: os.expect("the rules are right").build().expect("the rules are right"),
    }
});

struct Rules {
    browser: user_agent::Extractor<'static>,
    os: os::Extractor<'static>,
}

#[derive(Deserialize)]
struct File {
    user_agent_parsers: Vec<user_agent::Parser<'static>>,
    os_parsers: Vec<os::Parser<'static>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What agents say, and the device, system and browser that they are.
    const AGENTS: [(&str, [&str; 3]); 9] = [
        (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
            ["desktop", "Linux", "Chrome"],
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0",
            ["desktop", "Windows", "Firefox"],
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 \
             Safari/605.1.15",
            ["desktop", "Mac OS X", "Safari"],
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
             Version/17.5 Mobile/15E148 Safari/604.1",
            ["mobile", "iOS", "Mobile Safari"],
        ),
        (
            "Mozilla/5.0 (iPad; CPU OS 12_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.1 \
             Mobile/15E148 Safari/604.1",
            ["tablet", "iOS", "Mobile Safari"],
        ),
        (
            "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile \
             Safari/537.36",
            ["mobile", "Android", "Chrome Mobile"],
        ),
        (
            "Mozilla/5.0 (Linux; Android 13; SM-X906C) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 \
             Safari/537.36",
            ["tablet", "Android", "Chrome"],
        ),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", ["", "", "Googlebot"]),
        ("what nobody knows", ["", "", ""]),
    ];

    #[test]
    fn agents_are_what_they_say() {
        let mut agents = Agents::default();
        // The second time they are remembered.
        for (text, expected) in [AGENTS, AGENTS].concat() {
            let Agent { device, os, browser } = agents.read(text);
            assert_eq!([device, os, browser].map(Option::unwrap_or_default), expected, "{text}");
        }
        assert_eq!(agents.read.len(), AGENTS.len());
    }

    #[test]
    fn agents_cannot_fill_the_memory() {
        let mut agents = Agents::default();
        for number in 0..=AGENTS_MAX {
            agents.read(&number.to_string());
        }
        assert_eq!(agents.read.len(), 1);
        assert_eq!(agents.read(&"Firefox/128.0 ".repeat(100)), Agent::default());
    }
}
