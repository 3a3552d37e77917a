//! Campaigns: what is sent to whom, when and how; and how they are read.

use serde::{Deserialize, Serialize};

use super::reader::{At, Reader, Target};
use super::segments::journey_state;
use crate::condition::Condition;
use crate::time::Millis;

/// What is sent to whom, when and how.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Campaign {
    /// What causes it.
    pub when: When,
    /// The segment that the profile must be in.
    pub audience: Option<String>,
    /// The channel it is sent by; always one of the file's.
    pub channel: String,
    /// The message, a template; not checked here.
    pub template: Option<String>,
    /// Data for the template and the receiver: a JSON object with its keys in order.
    pub data: Option<String>,
    /// Items to recommend.
    pub recommend: Option<Recommend>,
    /// The purpose that must have been consented to.
    pub consent: Option<String>,
    /// How long to wait before sending, and to send only if it still stands.
    pub hold: Millis,
    /// How old it may become before it is sent; none: the channel's own default.
    pub expires: Option<Millis>,
    /// Names that several campaigns may share.
    pub tags: Vec<String>,
    /// Which goes first where a cap lets few through; higher is first.
    pub priority: i64,
    /// How many at most in a span.
    pub cap: Option<Cap>,
    /// When not to send, in the person's own time.
    pub quiet_hours: Option<QuietHours>,
}

/// What causes a campaign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum When {
    /// Each matching event.
    Event {
        /// The event's name.
        event: String,
        /// What must hold of it (`where`).
        condition: Option<Condition>,
    },
    /// Each entry to a state.
    Journey {
        /// The journey.
        journey: String,
        /// The state.
        state: String,
    },
    /// Each entry to a segment.
    Segment(String),
    /// Once, for all who are in the segment then.
    At {
        /// The instant.
        time: Millis,
        /// The segment.
        segment: String,
    },
    /// Again and again, for all who are in the segment then.
    Every {
        /// The span between two times; more than 0.
        every: Millis,
        /// The first time.
        from: Millis,
        /// The segment.
        segment: String,
    },
}

/// Items to recommend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Recommend {
    /// How many, at least 1.
    pub items: u32,
}

/// How many at most in a span.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cap {
    /// So many at most.
    pub at_most: u64,
    /// In `(t - per, t]`; more than 0.
    pub per: Millis,
    /// Counted over all campaigns with this tag; none: over this campaign.
    pub tag: Option<String>,
}

/// When not to send, in minutes since the person's midnight; from after to: over midnight. Never equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QuietHours {
    /// The first quiet minute, 0 to 1439.
    pub from: u16,
    /// The first minute that is not, 0 to 1439.
    pub to: u16,
}

/// The keys of a campaign.
const KEYS: [&str; 14] = [
    "when",
    "audience",
    "channel",
    "template",
    "data",
    "recommend",
    "consent",
    "hold",
    "expires",
    "tags",
    "priority",
    "cap",
    "quiet_hours",
    "experiment",
];

/// Reads one campaign.
pub(super) fn campaign(reader: &mut Reader, at: &At<'_>) -> Option<Campaign> {
    let fields = reader.fields(at, &KEYS)?;
    if let Some(at) = fields.get("experiment") {
        reader.not_in_this_version(&at, "experiment");
    }
    let when = fields.required(reader, "when", when);
    let channel = fields.required(reader, "channel", |reader, at| {
        let name = reader.name(at)?;
        reader.refers(at, Target::Channel, &name);
        Some(name)
    });
    let tags = fields.optional(reader, "tags", Reader::names).unwrap_or_default();
    reader.defined.tags.extend(tags.iter().cloned());
    Some(Campaign {
        audience: fields.optional(reader, "audience", Reader::segment_name),
        template: fields.optional(reader, "template", Reader::text),
        data: fields.optional(reader, "data", data),
        recommend: fields.optional(reader, "recommend", recommend),
        consent: fields.optional(reader, "consent", Reader::name),
        hold: fields.optional(reader, "hold", Reader::span_or_zero).unwrap_or_default(),
        expires: fields.optional(reader, "expires", Reader::span),
        tags,
        priority: fields.optional(reader, "priority", |reader, at| reader.whole(at, i64::MIN)).unwrap_or_default(),
        cap: fields.optional(reader, "cap", cap),
        quiet_hours: fields.optional(reader, "quiet_hours", quiet_hours),
        when: when?,
        channel: channel?,
    })
}

fn when(reader: &mut Reader, at: &At<'_>) -> Option<When> {
    let keys = ["event", "where", "journey", "state", "segment", "at", "every", "from"];
    // A schedule names a segment too, so the segment decides only where nothing else does.
    let cause = ["event", "journey", "at", "every"].into_iter().find(|cause| at.has(cause));
    let fields = match cause {
        Some("event") => reader.fields(at, &["event", "where"])?,
        Some("journey") => reader.fields(at, &["journey", "state"])?,
        Some("at") => reader.fields(at, &["at", "segment"])?,
        Some(_) => reader.fields(at, &["every", "from", "segment"])?,
        None if at.has("segment") => reader.fields(at, &["segment"])?,
        None => {
            let fields = reader.fields(at, &keys)?;
            return fields.one_of(reader, &["event", "journey", "segment", "at", "every"]).and(None);
        }
    };
    match cause {
        Some("event") => {
            let event = fields.required(reader, "event", Reader::event);
            let condition = fields.optional(reader, "where", Reader::condition);
            Some(When::Event { event: event?, condition })
        }
        Some("journey") => {
            let (journey, state) = journey_state(reader, &fields)?;
            Some(When::Journey { journey, state })
        }
        Some("at") => {
            let time = fields.required(reader, "at", Reader::instant);
            let segment = fields.required(reader, "segment", Reader::segment_name);
            Some(When::At { time: time?, segment: segment? })
        }
        Some(_) => {
            let every = fields.required(reader, "every", Reader::span);
            let from = fields.required(reader, "from", Reader::instant);
            let segment = fields.required(reader, "segment", Reader::segment_name);
            Some(When::Every { every: every?, from: from?, segment: segment? })
        }
        None => fields.required(reader, "segment", Reader::segment_name).map(When::Segment),
    }
}

fn data(reader: &mut Reader, at: &At<'_>) -> Option<String> {
    let keys = at.keys();
    reader.fields(at, &keys)?;
    Some(reader.json(at))
}

fn recommend(reader: &mut Reader, at: &At<'_>) -> Option<Recommend> {
    let fields = reader.fields(at, &["items"])?;
    let items = fields.required(reader, "items", |reader, at| reader.small_count(at, 1))?;
    Some(Recommend { items })
}

fn cap(reader: &mut Reader, at: &At<'_>) -> Option<Cap> {
    let fields = reader.fields(at, &["at_most", "per", "tag"])?;
    let at_most = fields.required(reader, "at_most", |reader, at| reader.count(at, 0));
    let per = fields.required(reader, "per", Reader::span);
    let tag = fields.optional(reader, "tag", |reader, at| {
        let name = reader.name(at)?;
        reader.refers(at, Target::Tag, &name);
        Some(name)
    });
    Some(Cap { at_most: at_most?, per: per?, tag })
}

fn quiet_hours(reader: &mut Reader, at: &At<'_>) -> Option<QuietHours> {
    let fields = reader.fields(at, &["from", "to"])?;
    let from = fields.required(reader, "from", Reader::clock_time);
    let to = fields.required(reader, "to", Reader::clock_time);
    let hours = QuietHours { from: from?, to: to? };
    if hours.from == hours.to {
        reader.problem(&at.place, "quiet hours begin and end at the same time; take them out or give them a length");
    }
    Some(hours)
}
