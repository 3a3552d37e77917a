//! Attribution: the path of each conversion, and the exact split of its credit by the six rule models.

use super::definitions::RULE_MODELS;
use super::story::Story;
use super::views::{Converted, Root, Touch};

const BILLION: i128 = 1_000_000_000;

/// 2^62 · 2^(-2^-i) for i = 1..16, rounded down.
const HALVINGS: [i128; 16] = [
    3260954456333195553,
    3877950241171266237,
    4228934724888366667,
    4416165660797809419,
    4512867096753504462,
    4562008997483360349,
    4586780255215411730,
    4599216278082138665,
    4605446927862164404,
    4608565417332308034,
    4610125453837388245,
    4610905670110601999,
    4611295827762151833,
    4611490918967884500,
    4611588467665893036,
    4611637242788701950,
];

pub struct Credit {
    pub model: &'static str,
    pub conversion: String,
    pub conversion_root: Root,
    pub conversion_at: i64,
    /// None: there was no touch.
    pub touch: Option<(Root, i64)>,
    pub channel: String,
    pub campaign: String,
    /// Both in billionths.
    pub conversions: i128,
    pub value: i128,
}

/// All credit of a profile's conversions, by the models that the definitions ask for.
pub fn credits(story: &Story, conversions: &[Converted]) -> Vec<Credit> {
    let asked = &story.definitions.attribution.models;
    let models = RULE_MODELS.iter().filter(|model| asked.iter().any(|name| name == *model));
    let mut out = Vec::new();
    for model in models {
        for place in 0..conversions.len() {
            out.extend(credits_of(story, conversions, place, model));
        }
    }
    out.retain(|credit| credit.conversions != 0 || credit.value != 0);
    out
}

fn credits_of(story: &Story, conversions: &[Converted], place: usize, model: &'static str) -> Vec<Credit> {
    let conversion = &conversions[place];
    let happening = &story.past[conversion.event];
    let credit = |touch: Option<usize>, named: &Touch, conversions: i128, value: i128| Credit {
        model,
        conversion: conversion.name.clone(),
        conversion_root: happening.root.clone(),
        conversion_at: happening.at,
        touch: touch.map(|event| (story.past[event].root.clone(), story.past[event].at)),
        channel: named.channel.clone(),
        campaign: named.campaign.clone(),
        conversions,
        value,
    };
    let worth = conversion.net * 1000;
    let path = path(story, conversions, place);
    if path.is_empty() {
        let direct = Touch { channel: "(direct)".to_string(), campaign: "(not set)".to_string() };
        return vec![credit(None, &direct, BILLION, worth)];
    }
    let touches: Vec<&Touch> = path.iter().filter_map(|event| story.past[*event].touch.as_ref()).collect();
    let times: Vec<i64> = path.iter().map(|event| story.past[*event].at).collect();
    let weights = weights(model, &touches, &times, story.definitions.attribution.half_life);
    let shares = split(BILLION, &weights).into_iter().zip(split(worth, &weights));
    let rows = path.iter().zip(touches).zip(shares);
    rows.map(|((event, touch), (conversions, value))| credit(Some(*event), touch, conversions, value)).collect()
}

/// The touches that a conversion goes back to, oldest first.
fn path(story: &Story, conversions: &[Converted], place: usize) -> Vec<usize> {
    let attribution = &story.definitions.attribution;
    let conversion = &conversions[place];
    let at = story.past[conversion.event].at;
    let earlier = conversions[..place].iter().rev().find(|other| other.name == conversion.name);
    let reset = earlier.filter(|_| attribution.reset_on_conversion).map(|other| story.past[other.event].at);
    let on_path = |event: &usize| {
        let touch = &story.past[*event];
        let in_time = touch.at >= at - attribution.lookback && touch.at <= at;
        touch.touch.is_some() && in_time && reset.is_none_or(|reset| touch.at > reset)
    };
    let all: Vec<usize> = (0..story.past.len()).filter(on_path).collect();
    all[all.len().saturating_sub(attribution.path_max)..].to_vec()
}

fn is_direct(touch: &Touch) -> bool {
    touch.channel == "direct" || touch.channel == "(direct)"
}

/// The integer weight of each touch, oldest first.
pub fn weights(model: &str, touches: &[&Touch], times: &[i64], half_life: i64) -> Vec<i128> {
    let n = touches.len();
    let only = |place: usize| (0..n).map(|i| i128::from(i == place)).collect();
    match model {
        "first_touch" => only(0),
        "last_touch" => only(n - 1),
        "last_non_direct" => only(touches.iter().rposition(|touch| !is_direct(touch)).unwrap_or(n - 1)),
        "linear" => vec![1; n],
        "position_based" if n <= 2 => vec![1; n],
        "position_based" => (0..n).map(|i| if i == 0 || i == n - 1 { 2 * (n as i128 - 2) } else { 1 }).collect(),
        _ => times.iter().map(|at| decay(times[n - 1] - at, half_life)).collect(),
    }
}

/// The weight of a touch so much older than the newest.
pub fn decay(age: i64, half_life: i64) -> i128 {
    let x = i128::from(age) * 65536 / i128::from(half_life);
    let (whole, rest) = (x / 65536, x % 65536);
    let mut weight: i128 = 1 << 62;
    for (place, halving) in HALVINGS.iter().enumerate() {
        if rest >> (15 - place) & 1 == 1 {
            weight = (weight * halving) >> 62;
        }
    }
    let shift = whole + 22;
    if shift >= 63 { 0 } else { weight >> shift }
}

/// Shares that add up to the whole exactly.
pub fn split(whole: i128, weights: &[i128]) -> Vec<i128> {
    let total: i128 = weights.iter().sum();
    let mut so_far = 0;
    let mut given = 0;
    let mut out = Vec::new();
    for weight in weights {
        so_far += weight;
        let reached = whole * so_far / total;
        out.push(reached - given);
        given = reached;
    }
    out
}
