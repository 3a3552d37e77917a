//! The names and paths that the definitions speak of: what of an event is worth keeping in the dataflow.
//!
//! Built once for a set of definitions, shared by all who decode. An event whose name no definition says is kept
//! without a name; a value is kept only on events for which some definition reads it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ecow::EcoString;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::condition::{Path, Root};
use crate::definitions::{Privacy, Schema, SchemaType};
use crate::event::{Reason, Rejection, Want, value};
use crate::json::Reader;
use crate::value::Value;

/// The number of an event's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NameId(pub u32);

impl NameId {
    /// A name that no definition says.
    pub const NONE: NameId = NameId(0);
}

/// The number of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u16);

/// Names and paths, numbered.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    names: HashMap<EcoString, NameId>,
    texts: Vec<Value>,
    slots: BTreeMap<Path, Slot>,
    properties: Vec<Vec<Want>>,
    context: Vec<Vec<Want>>,
    schemas: BTreeMap<String, Schema>,
    privacy: Privacy,
    /// How many definitions came before those that it is of.
    generation: u32,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Vocabulary {
            names: HashMap::new(),
            texts: vec![Value::Null],
            slots: BTreeMap::new(),
            properties: vec![Vec::new()],
            context: vec![Vec::new()],
            schemas: BTreeMap::new(),
            privacy: Privacy::default(),
            generation: 0,
        }
    }
}

impl Vocabulary {
    /// Events are held against these schemas at the door, and no others.
    pub fn hold(&mut self, schemas: BTreeMap<String, Schema>) {
        self.schemas = schemas;
    }

    /// Of calls that come in this is not kept as it was sent.
    pub fn keep_private(&mut self, privacy: Privacy) {
        self.privacy = privacy;
    }

    /// What of calls that come in is not kept as it was sent.
    pub fn privacy(&self) -> &Privacy {
        &self.privacy
    }

    /// One for the definitions that come after those that this one is of: it knows all that this one does.
    pub fn after(&self) -> Vocabulary {
        Vocabulary { generation: self.generation + 1, ..self.clone() }
    }

    /// How many definitions came before those that it is of.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether more of events is worth keeping than by one that it came after.
    pub fn wants_more_than(&self, before: &Vocabulary) -> bool {
        let wants = |of: &Vocabulary| of.properties.iter().chain(&of.context).map(Vec::len).sum::<usize>();
        (self.len(), wants(self)) != (before.len(), wants(before))
    }

    /// Whether more of events of a name is worth keeping than by one that it came after.
    pub fn wants_more_of(&self, name: NameId, before: &Vocabulary) -> bool {
        let wants = |of: &Vocabulary| {
            let wants = [&of.properties, &of.context].map(|wants| wants.get(name.0 as usize).map(Vec::len));
            wants.map(Option::unwrap_or_default)
        };
        name.0 as usize >= before.len() || wants(self) != wants(before)
    }

    /// How many names are known, [`NameId::NONE`] included.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether no name is known.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The number of a name.
    pub fn name(&self, name: &str) -> NameId {
        self.names.get(name).copied().unwrap_or(NameId::NONE)
    }

    /// The name of a number, as a value; null for [`NameId::NONE`], and for one that only a later vocabulary has.
    pub fn text(&self, name: NameId) -> &Value {
        self.texts.get(name.0 as usize).unwrap_or(&self.texts[NameId::NONE.0 as usize])
    }

    /// Numbers a name.
    pub fn learn(&mut self, name: &str) -> NameId {
        let next = NameId(self.texts.len() as u32);
        let id = *self.names.entry(name.into()).or_insert(next);
        if id == next {
            self.texts.push(Value::Text(name.into()));
            self.properties.push(Vec::new());
            self.context.push(Vec::new());
        }
        id
    }

    /// Keeps what is at `path`, below `properties` or `context`, on events of that name.
    pub fn want(&mut self, name: NameId, path: &Path) -> Slot {
        let next = Slot(self.slots.len() as u16);
        let slot = *self.slots.entry(path.clone()).or_insert(next);
        let wants = match path.root {
            Root::Context => &mut self.context[name.0 as usize],
            _ => &mut self.properties[name.0 as usize],
        };
        if !wants.iter().any(|(_, other)| *other == slot) {
            wants.push((path.keys.iter().map(|key| key.into()).collect(), slot));
        }
        slot
    }

    /// What to keep of the properties of events of that name.
    pub fn property_wants(&self, name: NameId) -> &[Want] {
        &self.properties[name.0 as usize]
    }

    /// What to keep of the context of events of that name.
    pub fn context_wants(&self, name: NameId) -> &[Want] {
        &self.context[name.0 as usize]
    }

    /// Holds the properties of an event against the schema of its name.
    pub fn check_schema(&self, event: &str, properties: &[(Cow<'_, str>, &str)]) -> Result<(), Rejection> {
        let Some(schema) = self.schemas.get(event) else { return Ok(()) };
        let mut missing: Vec<&String> = schema.required.keys().collect();
        let mut wrong = None;
        for (key, text) in properties {
            let of = schema.required.get(&**key).or_else(|| schema.optional.get(&**key));
            let found = value(&mut Reader::new(text))?;
            if found != Value::Null {
                missing.retain(|name| *name != key);
                if let Some(of) = of.filter(|of| !admits(**of, &found)) {
                    wrong = wrong.take().or(Some(format!("`properties.{key}` of {event:?} is not a {}", of.name())));
                }
            }
        }
        let problem = wrong.or_else(|| missing.first().map(|key| format!("{event:?} needs `properties.{key}`")));
        problem.map_or(Ok(()), |detail| Err(Rejection::new(Reason::Schema, detail)))
    }
}

fn admits(of: SchemaType, found: &Value) -> bool {
    match of {
        SchemaType::Any => true,
        SchemaType::String => matches!(found, Value::Text(_)),
        SchemaType::Number => matches!(found, Value::Number(_) | Value::Huge(_)),
        SchemaType::Boolean => matches!(found, Value::Bool(_)),
        SchemaType::List => matches!(found, Value::List(_)),
        SchemaType::Object => matches!(found, Value::Object),
    }
}
