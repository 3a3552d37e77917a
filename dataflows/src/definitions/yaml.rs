//! From the text of a file to a tree of nodes that know their lines.
//!
//! YAML 1.2, and so JSON. Aliases are copied in; tags, keys that are not scalars, keys written twice and more than one
//! document are problems. Size, depth and copies are bounded, so that no text can exhaust anything.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, Tag, options};

use super::Problem;
use crate::number::Number;

/// Thousands of definitions fit in; a larger text is not one.
const BYTES_MAX: usize = 4 << 20;
/// Nodes with all copies that aliases make: what the text itself can hold at its densest, and no more.
const NODES_MAX: usize = 1 << 20;
/// Everything after this recurses once per level.
const DEPTH_MAX: usize = 64;

const KEY_NOT_SCALAR: &str = "a key is a single text, not a list or a map";

/// A piece of the file.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where it begins, counted from 1.
    pub(super) line: usize,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// A single value by its text; `plain`: without quotes, so that it may be a number, true, false or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key stands, counted from 1.
    pub(super) line: usize,
    pub(super) value: Node,
}

/// A single value as YAML types it: a plain text may be a number (as JSON writes it), true, false or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar<'n> {
    Null,
    Bool(bool),
    Number(&'n str),
    Text(&'n str),
}

impl Node {
    pub(super) fn scalar(&self) -> Option<Scalar<'_>> {
        let Kind::Scalar { text, plain } = &self.kind else { return None };
        Some(match text.as_str() {
            text if !plain => Scalar::Text(text),
            "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
            "true" | "True" | "TRUE" => Scalar::Bool(true),
            "false" | "False" | "FALSE" => Scalar::Bool(false),
            text if Number::is_number(text) => Scalar::Number(text),
            text => Scalar::Text(text),
        })
    }

    pub(super) fn describe(&self) -> String {
        match (self.scalar(), &self.kind) {
            (Some(Scalar::Null), _) => "nothing".into(),
            (Some(Scalar::Bool(value)), _) => format!("{value}"),
            (Some(Scalar::Number(text)), _) => format!("the number {text}"),
            (Some(Scalar::Text(_)), _) => "a text".into(),
            (None, Kind::Map(_)) => "a map".into(),
            (None, _) => "a list".into(),
        }
    }
}

/// Reads one document. `None` with a problem if there is no tree; a key written twice is a problem too, but its tree
/// comes with it, so that the other problems of the file can be found.
pub(super) fn read(text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut builder = Builder::default();
    let root = builder.document(text);
    problems.append(&mut builder.repeated);
    root.map_err(|problem| problems.push(problem)).ok()
}

fn problem(line: usize, message: impl Into<String>) -> Problem {
    Problem { path: String::new(), line, message: message.into(), nearest: None }
}

/// A node, and what a copy of it would cost.
#[derive(Debug, Clone)]
struct Measured {
    node: Node,
    nodes: usize,
    depth: usize,
}

/// A list or map whose end has not come yet.
#[derive(Debug)]
struct Open {
    line: usize,
    /// The anchor's number; 0: none.
    anchor: usize,
    nodes: usize,
    depth: usize,
    inside: Inside,
}

#[derive(Debug)]
enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, usize)>, lines: BTreeMap<String, usize> },
}

#[derive(Debug, Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    anchored: BTreeMap<usize, Measured>,
    nodes: usize,
    repeated: Vec<Problem>,
}

impl Builder {
    fn document(&mut self, text: &str) -> Result<Node, Problem> {
        if text.len() > BYTES_MAX {
            return Err(problem(1, format!("the file is larger than {BYTES_MAX} bytes")));
        }
        // Comments are switched off here too: another crate may have switched the feature on for all.
        let options = options! { emit_comments: false, flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX };
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| problem(error.marker().line(), error.info()))?;
            self.event(event, span.start.line())?;
        }
        self.root.take().ok_or_else(|| problem(1, "the file is empty; write at least `version: 1`"))
    }

    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), Problem> {
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(problem(line, "one file holds one document; take out the second `---`"))
            }
            Event::Alias(anchor) => match self.anchored.get(&anchor).cloned() {
                Some(copy) => {
                    self.count(copy.nodes, line)?;
                    self.place(copy, line)
                }
                None => Err(problem(line, "an alias cannot stand inside what it repeats")),
            },
            Event::Scalar(text, style, anchor, tag) => {
                no_tag(tag.as_deref(), line)?;
                let kind = Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                self.close(Measured { node: Node { line, kind }, nodes: 1, depth: 0 }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => self.start(line, anchor, tag.as_deref(), Inside::List(Vec::new())),
            Event::MappingStart(_, anchor, tag) => {
                let inside = Inside::Map { entries: Vec::new(), key: None, lines: BTreeMap::new() };
                self.start(line, anchor, tag.as_deref(), inside)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let kind = match open.inside {
                        Inside::List(items) => Kind::List(items),
                        Inside::Map { entries, .. } => Kind::Map(entries),
                    };
                    let node = Node { line: open.line, kind };
                    self.close(Measured { node, nodes: open.nodes + 1, depth: open.depth + 1 }, open.anchor)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn start(&mut self, line: usize, anchor: usize, tag: Option<&Tag>, inside: Inside) -> Result<(), Problem> {
        no_tag(tag, line)?;
        if let Some(Open { inside: Inside::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(problem(line, KEY_NOT_SCALAR));
        }
        self.open.push(Open { line, anchor, nodes: 0, depth: 0, inside });
        Ok(())
    }

    /// A node is complete: remember it if it has an anchor, and put it where it belongs.
    fn close(&mut self, measured: Measured, anchor: usize) -> Result<(), Problem> {
        let line = measured.node.line;
        self.count(1, line)?;
        if anchor != 0 {
            self.count(measured.nodes, line)?;
            self.anchored.insert(anchor, measured.clone());
        }
        self.place(measured, line)
    }

    fn place(&mut self, Measured { node, nodes, depth }: Measured, line: usize) -> Result<(), Problem> {
        if self.open.len() + depth > DEPTH_MAX {
            return Err(problem(line, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.nodes += nodes;
        open.depth = open.depth.max(depth);
        match &mut open.inside {
            Inside::List(items) => items.push(node),
            Inside::Map { entries, key, .. } if key.is_some() => {
                entries.extend(key.take().map(|(key, line)| Entry { key, line, value: node }));
            }
            Inside::Map { key, lines, .. } => {
                let Kind::Scalar { text, .. } = node.kind else {
                    return Err(problem(line, KEY_NOT_SCALAR));
                };
                *key = Some((text.clone(), line));
                if let Some(first) = lines.insert(text.clone(), line) {
                    let message = format!("`{text}` is written twice, first on line {first}");
                    self.repeated.push(Problem { path: self.path(), line, message, nearest: None });
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX {
            return Err(problem(
                line,
                format!("the file has more than {NODES_MAX} values, with what its aliases repeat"),
            ));
        }
        Ok(())
    }

    /// The place that is being filled, as problems name it.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.inside {
                Inside::List(items) => path.push_str(&format!("[{}]", items.len())),
                Inside::Map { key: Some((key, _)), .. } => {
                    path.push_str(if path.is_empty() { "" } else { "." });
                    path.push_str(key);
                }
                Inside::Map { key: None, .. } => {}
            }
        }
        path
    }
}

fn no_tag(tag: Option<&Tag>, line: usize) -> Result<(), Problem> {
    match tag {
        Some(tag) => Err(problem(line, format!("tags like `{}` have no meaning here; take it out", tag.original()))),
        None => Ok(()),
    }
}
