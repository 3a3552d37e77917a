//! Touchpoints, conversions and how credit is given; and how they are read.
//!
//! Nothing here may read a computed trait: credit depends on what happened alone.

use serde::{Deserialize, Serialize};

use super::reader::{At, Reader};
use super::yaml::Scalar;
use crate::condition::{Condition, Path, Term};
use crate::time::{DAY, Millis};

/// An event that counts as a touch of marketing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Touchpoint {
    /// The event's name.
    pub event: String,
    /// What must hold of it (`where`); it reads no computed trait.
    pub condition: Option<Condition>,
    /// Its channel: a path or a text.
    pub channel: Option<Term>,
    /// Its campaign: a path or a text.
    pub campaign: Option<Term>,
}

/// An event that counts as a conversion. Nothing in it reads a computed trait.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conversion {
    /// The conversion's name; several rules may share one.
    pub name: String,
    /// The event's name.
    pub event: String,
    /// What must hold of it (`where`).
    pub condition: Option<Condition>,
    /// What tells one conversion from another; none: each event counts, and no refund reaches it.
    pub id: Option<Path>,
    /// What it is worth; none: nothing.
    pub value: Option<Path>,
    /// What takes worth away from it.
    pub refund: Option<Refund>,
}

/// An event that takes worth away from a conversion.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refund {
    /// The event's name.
    pub event: String,
    /// Where it names the conversion's id.
    pub id: Path,
    /// How much it takes; none: everything.
    pub value: Option<Path>,
}

/// How credit for conversions is given to touches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attribution {
    /// How far back from a conversion a touch counts, both ends in.
    pub lookback: Millis,
    /// The models to keep, in the order written, none twice; when not written, all that there are.
    pub models: Vec<Model>,
    /// The age at which a touch counts half, for `time_decay`.
    pub half_life: Millis,
    /// A key on fewer conversions' paths takes its `position_based` credit, in the models that estimate.
    pub minimum_conversions: u64,
    /// The most touches of a path, at least 1: the last ones.
    pub path_max: u32,
    /// Whether a path begins anew after a conversion of the same name.
    pub reset_on_conversion: bool,
    /// Whether events with campaign fields in their context are touches where no touchpoint matches.
    pub utm: bool,
}

/// A rule that shares one conversion out among its touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Model {
    /// All to the first touch.
    FirstTouch,
    /// All to the last touch.
    LastTouch,
    /// All to the last touch that is not direct, unless all are.
    LastNonDirect,
    /// The same to each touch.
    Linear,
    /// Half as much for every half life of age.
    TimeDecay,
    /// Most to the first and the last.
    PositionBased,
}

impl Model {
    /// Every model with its name in the file and in answers.
    pub const ALL: [(&str, Model); 6] = [
        ("first_touch", Model::FirstTouch),
        ("last_touch", Model::LastTouch),
        ("last_non_direct", Model::LastNonDirect),
        ("linear", Model::Linear),
        ("time_decay", Model::TimeDecay),
        ("position_based", Model::PositionBased),
    ];

    /// Its name in the file and in answers.
    pub fn name(self) -> &'static str {
        Model::ALL[self as usize].0
    }
}

impl Default for Attribution {
    fn default() -> Attribution {
        Attribution {
            lookback: 30 * DAY,
            models: Model::ALL.iter().map(|(_, model)| *model).collect(),
            half_life: 7 * DAY,
            minimum_conversions: 0,
            path_max: 100,
            reset_on_conversion: false,
            utm: true,
        }
    }
}

/// Models that are part of the file's form and not built yet.
const MODELS_LATER: [&str; 3] = ["markov", "shapley", "incremental"];

pub(super) fn touchpoint(reader: &mut Reader, at: &At<'_>) -> Option<Touchpoint> {
    let fields = reader.fields(at, &["event", "where", "channel", "campaign"])?;
    let event = fields.required(reader, "event", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let channel = fields.optional(reader, "channel", Reader::text_term);
    let campaign = fields.optional(reader, "campaign", Reader::text_term);
    Some(Touchpoint { event: event?, condition, channel, campaign })
}

pub(super) fn conversion(reader: &mut Reader, at: &At<'_>) -> Option<Conversion> {
    let fields = reader.fields(at, &["name", "event", "where", "id", "value", "refund"])?;
    let name = fields.required(reader, "name", Reader::name);
    let event = fields.required(reader, "event", Reader::event);
    let condition = fields.optional(reader, "where", Reader::condition);
    let id = fields.optional(reader, "id", Reader::path);
    let value = fields.optional(reader, "value", Reader::path);
    let refund = fields.optional(reader, "refund", refund);
    if let (None, Some(at)) = (fields.get("id"), fields.get("refund")) {
        reader.warning(&at.place, "a conversion without `id` is reached by no refund", None);
    }
    Some(Conversion { name: name?, event: event?, condition, id, value, refund })
}

fn refund(reader: &mut Reader, at: &At<'_>) -> Option<Refund> {
    let fields = reader.fields(at, &["event", "id", "value"])?;
    let event = fields.required(reader, "event", Reader::event);
    let id = fields.required(reader, "id", Reader::path);
    let value = fields.optional(reader, "value", Reader::path);
    Some(Refund { event: event?, id: id?, value })
}

pub(super) fn attribution(reader: &mut Reader, at: &At<'_>) -> Option<Attribution> {
    let default = Attribution::default();
    let known =
        ["lookback", "models", "time_decay", "markov", "minimum_conversions", "path_max", "reset_on_conversion", "utm"];
    let fields = reader.fields(at, &known)?;
    if let Some(at) = fields.get("markov") {
        reader.not_in_this_version(&at, "markov");
    }
    let half_life = fields.optional(reader, "time_decay", |reader, at| {
        reader.fields(at, &["half_life"])?.optional(reader, "half_life", Reader::span)
    });
    let least = |least| move |reader: &mut Reader, at: &At<'_>| reader.count(at, least);
    Some(Attribution {
        lookback: fields.optional(reader, "lookback", Reader::window).unwrap_or(default.lookback),
        models: fields.optional(reader, "models", models).unwrap_or(default.models),
        half_life: half_life.unwrap_or(default.half_life),
        minimum_conversions: fields.optional(reader, "minimum_conversions", least(0)).unwrap_or_default(),
        path_max: fields
            .optional(reader, "path_max", |reader, at| reader.small_count(at, 1))
            .unwrap_or(default.path_max),
        reset_on_conversion: fields.optional(reader, "reset_on_conversion", Reader::boolean).unwrap_or_default(),
        utm: fields.optional(reader, "utm", Reader::boolean).unwrap_or(default.utm),
    })
}

fn models(reader: &mut Reader, at: &At<'_>) -> Option<Vec<Model>> {
    let mut models = Vec::new();
    for at in reader.items(at) {
        if let Some(later) = MODELS_LATER.iter().find(|later| at.node.scalar() == Some(Scalar::Text(later))) {
            reader.not_in_this_version(&at, later);
        } else if let Some(model) = reader.choice(&at, &Model::ALL) {
            if models.contains(&model) {
                reader.problem(&at.place, "this model is there already");
            } else {
                models.push(model);
            }
        }
    }
    Some(models)
}
