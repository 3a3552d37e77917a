//! What is compared: W1's definitions as constants, and the figures that every program of W1's views must give.

use super::clicks::{CAMPAIGNS, CHANNELS, Click};
use serde::{Deserialize, Serialize};
use std::fmt;

pub const GAP: i64 = 30 * 60_000;
pub const ABANDONED_AFTER: i64 = 4 * 3_600_000;
pub const LOOKBACK: i64 = 7 * 86_400_000;
/// A path keeps at most its last touches.
pub const PATH_MAX: usize = 100;
pub const VIP_SPEND: i64 = 300_000_000; // millionths
pub const VIP_PURCHASES: u32 = 3;

/// One key per (channel, campaign), and a last one for `(direct)`, the empty path.
pub const KEYS: usize = CHANNELS.len() * CAMPAIGNS + 1;
pub const DIRECT: u16 = KEYS as u16 - 1;

/// The attribution key of a touch.
pub fn key(click: &Click) -> u16 {
    click.channel as u16 * CAMPAIGNS as u16 + click.campaign as u16
}

/// The states of the cart journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum State {
    None,
    Landed,
    Browsing,
    Carted,
    Checkout,
    Purchased,
    Abandoned,
}

/// W1's figures at one clock. All are integers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub clock: i64,
    pub sessions: u64,
    pub session_events: u64,
    pub session_ms: i64,
    pub paying: u64,
    pub vip: u64,
    pub logged_in: u64,
    /// Profiles by state, indexed by `State`.
    pub states: [u64; 7],
    /// Intents of `come_back`: entries to `abandoned`.
    pub come_back: u64,
    /// Sum of `intent_digest` over these intents, so that not only their number must agree.
    pub come_back_digest: u64,
    pub last_touch: Credits,
    pub linear: Credits,
}

/// A key's credit in units of 10^-9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    pub conversions: i64,
    pub value: i128,
}

/// Credit by key.
#[derive(Clone, PartialEq, Eq)]
pub struct Credits(pub [Credit; KEYS]);

impl Default for Credits {
    fn default() -> Credits {
        Credits([Credit::default(); KEYS])
    }
}

impl fmt::Debug for Credits {
    /// The keys with credit alone: most have none in a small test.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let keys = self.0.iter().enumerate().filter(|(_, c)| **c != Credit::default());
        f.debug_map().entries(keys.map(|(k, c)| (k, (c.conversions, c.value)))).finish()
    }
}

/// A hash of an intent: its profile, its instant, and the number of its root event.
pub fn intent_digest(user: u32, instant: i64, root: u32) -> u64 {
    let mixed = (u64::from(user) << 32 | u64::from(root)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ instant as u64;
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// What the figures count, for a program that gives them as a collection of facts with multiplicities.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fact {
    Sessions,
    SessionEvents,
    SessionMs,
    Paying,
    Vip,
    LoggedIn,
    In(State),
    /// An intent of this user, at this instant, with this root.
    ComeBack(u32, i64, u32),
    /// Credit of a key: of value, or of conversions.
    LastTouch(u16, bool),
    Linear(u16, bool),
}

impl Figures {
    /// Counts a fact `n` times more; in any order, so that sums may be negative meanwhile.
    pub fn count(&mut self, fact: &Fact, n: i64) {
        let figure = match fact {
            Fact::SessionMs => return self.session_ms += n,
            Fact::LastTouch(key, of_value) => return self.last_touch.0[*key as usize].count(*of_value, n),
            Fact::Linear(key, of_value) => return self.linear.0[*key as usize].count(*of_value, n),
            Fact::ComeBack(user, instant, root) => {
                let digest = intent_digest(*user, *instant, *root).wrapping_mul(n as u64);
                self.come_back_digest = self.come_back_digest.wrapping_add(digest);
                &mut self.come_back
            }
            Fact::Sessions => &mut self.sessions,
            Fact::SessionEvents => &mut self.session_events,
            Fact::Paying => &mut self.paying,
            Fact::Vip => &mut self.vip,
            Fact::LoggedIn => &mut self.logged_in,
            Fact::In(state) => &mut self.states[*state as usize],
        };
        *figure = figure.wrapping_add_signed(n);
    }
}

impl Credit {
    fn count(&mut self, of_value: bool, n: i64) {
        if of_value {
            self.value += i128::from(n);
        } else {
            self.conversions += n;
        }
    }
}
