//! How records travel between processes: a container that writes each of its records once, field after field.
//!
//! Timely asks every container for its bytes. A `Vec` gives them by serde and bincode, which walks each record twice,
//! counts every length in eight bytes, and writes what records share again for each of them. Here lengths and places
//! are as long as they need, and shared details are written once a container and are shared again where they arrive.
//! Both sides are the same program, so nothing says what the fields are.

use std::cell::RefCell;
use std::sync::Arc;

use ecow::EcoString;
use hashbrown::HashMap;
use timely::bytes::arc::Bytes;
use timely::container::{Accountable, DrainContainer, PushInto, SizableContainer};
use timely::dataflow::channels::ContainerBytes;

use super::assemble::Forward;
use crate::admission::Verdict;
use crate::event::{Consent, ConsentSource, Context, Details, Event, Kind, Link};
use crate::identity::{Erasure, Settled};
use crate::intake::Prepared;
use crate::number::Number;
use crate::protocol::{Bar, CHUNK, Destroyed, Record};
use crate::value::Value;
use crate::vocabulary::{NameId, Slot};

/// A container of what workers send each other, full with `N` of them.
#[derive(Clone, Debug)]
pub struct Batch<T, const N: usize = CHUNK> {
    /// What it holds.
    pub items: Vec<T>,
    /// What was written when the length was asked for, until it is sent.
    written: RefCell<Vec<u8>>,
}

impl<T, const N: usize> From<Vec<T>> for Batch<T, N> {
    fn from(items: Vec<T>) -> Self {
        Batch { items, written: RefCell::default() }
    }
}

impl<T, const N: usize> Default for Batch<T, N> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T, const N: usize> Accountable for Batch<T, N> {
    fn record_count(&self) -> i64 {
        self.items.record_count()
    }
}

impl<T: 'static, const N: usize> DrainContainer for Batch<T, N> {
    type Item<'a> = T;
    type DrainIter<'a> = std::vec::Drain<'a, T>;

    fn drain(&mut self) -> Self::DrainIter<'_> {
        self.items.drain(..)
    }
}

impl<T, const N: usize> SizableContainer for Batch<T, N> {
    fn at_capacity(&self) -> bool {
        self.items.len() >= N
    }

    fn ensure_capacity(&mut self, stash: &mut Option<Self>) {
        if self.items.capacity() == 0 {
            *self = stash.take().unwrap_or_default();
            self.items.clear();
        }
        self.items.reserve_exact(N.saturating_sub(self.items.len()));
    }
}

impl<T, const N: usize> PushInto<T> for Batch<T, N> {
    fn push_into(&mut self, item: T) {
        self.items.push(item);
    }
}

impl<T: Wire, const N: usize> ContainerBytes for Batch<T, N> {
    fn from_bytes(bytes: Bytes) -> Self {
        let mut reader = Reader { rest: &bytes, details: Vec::new() };
        Vec::read(&mut reader).into()
    }

    fn length_in_bytes(&self) -> usize {
        let mut written = self.written.borrow_mut();
        written.clear();
        let mut writer = Writer { bytes: std::mem::take(&mut *written), details: HashMap::new() };
        self.items.write(&mut writer);
        *written = writer.bytes;
        // Timely wants whole words.
        let length = written.len().next_multiple_of(8);
        written.resize(length, 0);
        length
    }

    fn into_bytes<W: std::io::Write>(&self, to: &mut W) {
        if self.written.borrow().is_empty() {
            self.length_in_bytes();
        }
        let mut written = self.written.borrow_mut();
        to.write_all(&written).expect("timely makes room for as much as it was told");
        written.clear();
    }
}

/// Bytes that grow, and what of them can be said again by its number.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    /// Details that were written, by where they are in memory.
    details: HashMap<*const Details, u64>,
}

/// Bytes yet to be read, and what of them was shared.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    details: Vec<Arc<Details>>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at_checked(length).expect("all that was written arrives");
        self.rest = rest;
        taken
    }

    fn array<const LENGTH: usize>(&mut self) -> [u8; LENGTH] {
        let (taken, rest) = self.rest.split_first_chunk().expect("all that was written arrives");
        self.rest = rest;
        *taken
    }

    fn length(&mut self) -> usize {
        u64::read(self) as usize
    }

    fn text(&mut self) -> &'a str {
        let length = self.length();
        std::str::from_utf8(self.take(length)).expect("texts arrive as they were written")
    }
}

/// What can be written to bytes, and read from them.
pub trait Wire: Sized {
    /// Writes it.
    fn write(&self, to: &mut Writer);
    /// Reads what was written.
    fn read(from: &mut Reader<'_>) -> Self;
}

/// Seven bits a byte, the lowest first; most numbers are small.
impl Wire for u64 {
    #[inline]
    fn write(&self, to: &mut Writer) {
        let mut number = *self;
        while number >= 0x80 {
            to.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        to.bytes.push(number as u8);
    }

    #[inline]
    fn read(from: &mut Reader<'_>) -> Self {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = u8::read(from);
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
            shift += 7;
        }
    }
}

/// Numbers as they stand in memory.
macro_rules! fixed {
    ($($number:ty)+) => {$(
        impl Wire for $number {
            #[inline]
            fn write(&self, to: &mut Writer) {
                to.bytes.extend_from_slice(&self.to_le_bytes());
            }

            #[inline]
            fn read(from: &mut Reader<'_>) -> Self {
                <$number>::from_le_bytes(from.array())
            }
        }
    )+};
}

fixed!(u8 i64 u128);

/// One thing in another: what is written, and how it is made of that again.
macro_rules! by_way_of {
    ($($type:ty: $way:ty, $out:expr, $back:expr;)+) => {$(
        impl Wire for $type {
            #[inline]
            fn write(&self, to: &mut Writer) {
                let out: fn(&$type) -> $way = $out;
                out(self).write(to);
            }

            #[inline]
            fn read(from: &mut Reader<'_>) -> Self {
                let back: fn($way) -> $type = $back;
                back(<$way>::read(from))
            }
        }
    )+};
}

by_way_of! {
    bool: u8, |yes| u8::from(*yes), |byte| byte != 0;
    NameId: u64, |id| id.0.into(), |number| NameId(number as u32);
    Slot: u64, |slot| slot.0.into(), |number| Slot(number as u16);
    Number: i64, |number| number.0, Number;
    Kind: u8, |kind| *kind as u8, |byte| Kind::ALL[usize::from(byte)];
    Verdict: u8, |verdict| *verdict as u8, |byte| Verdict::ALL[usize::from(byte)];
}

/// Texts of any kind.
macro_rules! texts {
    ($($text:ty)+) => {$(
        impl Wire for $text {
            #[inline]
            fn write(&self, to: &mut Writer) {
                (self.len() as u64).write(to);
                to.bytes.extend_from_slice(self.as_bytes());
            }

            #[inline]
            fn read(from: &mut Reader<'_>) -> Self {
                from.text().into()
            }
        }
    )+};
}

texts!(EcoString Box<str>);

/// Structures, field after field.
macro_rules! fields {
    ($($type:ident: $($field:ident)+;)+) => {$(
        impl Wire for $type {
            #[inline]
            fn write(&self, to: &mut Writer) {
                let $type { $($field),+ } = self;
                $($field.write(to);)+
            }

            #[inline]
            fn read(from: &mut Reader<'_>) -> Self {
                $(let $field = Wire::read(from);)+
                $type { $($field),+ }
            }
        }
    )+};
}

fields! {
    Event: timestamp position own message_id details name kind known;
    Prepared: event link is_late entry;
    Link: position stamp timestamp message_id user anonymous previous;
    Erasure: position until ids;
    Settled: before clock refused;
    Bar: position worker until marks;
    Destroyed: position timestamp is_late route entry;
    Details: values context tells;
    Context: page device os browser utm timezone consent told;
    Consent: purpose granted source;
}

/// Choices: a number for each, and its parts.
macro_rules! choices {
    ($($type:ident: $($number:literal $choice:ident $(($($part:ident),+))?;)+)+) => {$(
        impl Wire for $type {
            #[inline]
            fn write(&self, to: &mut Writer) {
                match self {
                    $($type::$choice $(($($part),+))? => {
                        to.bytes.push($number);
                        $($($part.write(to);)+)?
                    })+
                }
            }

            #[inline]
            fn read(from: &mut Reader<'_>) -> Self {
                match u8::read(from) {
                    $($number => {
                        $($(let $part = Wire::read(from);)+)?
                        $type::$choice $(($($part),+))?
                    })+
                    other => unreachable!("{other} was never written"),
                }
            }
        }
    )+};
}

choices! {
    Record:
        0 Event(prepared);
        1 Clock(position, to);
        2 Retract(position, stamp, own, message_id, entry);
        3 Unlink(position, stamp, a, b);
        4 Unreadable(position);
        5 Reread(event);
        6 Bar(bar);
        7 Erase(erasure);
        8 Destroyed(destroyed);
        9 Decided(position, verdict);
        10 Settled(settled);
    ConsentSource:
        0 Segment;
        1 RudderStack;
        2 Google;
    Value:
        0 Null;
        1 Bool(yes);
        2 Number(number);
        3 Text(text);
        4 Huge(text);
        5 List(values);
        6 Object;
}

impl<T: Wire> Wire for Option<T> {
    #[inline]
    fn write(&self, to: &mut Writer) {
        self.is_some().write(to);
        if let Some(some) = self {
            some.write(to);
        }
    }

    #[inline]
    fn read(from: &mut Reader<'_>) -> Self {
        bool::read(from).then(|| T::read(from))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write(&self, to: &mut Writer) {
        (self.len() as u64).write(to);
        self.iter().for_each(|item| item.write(to));
    }

    fn read(from: &mut Reader<'_>) -> Self {
        (0..from.length()).map(|_| T::read(from)).collect()
    }
}

impl<T: Wire> Wire for Box<[T]> {
    fn write(&self, to: &mut Writer) {
        (self.len() as u64).write(to);
        self.iter().for_each(|item| item.write(to));
    }

    fn read(from: &mut Reader<'_>) -> Self {
        Vec::read(from).into()
    }
}

impl<T: Wire> Wire for Box<T> {
    fn write(&self, to: &mut Writer) {
        T::write(self, to);
    }

    fn read(from: &mut Reader<'_>) -> Self {
        Box::new(T::read(from))
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    #[inline]
    fn write(&self, to: &mut Writer) {
        self.0.write(to);
        self.1.write(to);
    }

    #[inline]
    fn read(from: &mut Reader<'_>) -> Self {
        (A::read(from), B::read(from))
    }
}

/// By their number in the container: the next number is that of new ones, which follow.
impl Wire for Arc<Details> {
    #[inline]
    fn write(&self, to: &mut Writer) {
        let next = to.details.len() as u64;
        let number = *to.details.entry(Arc::as_ptr(self)).or_insert(next);
        number.write(to);
        if number == next {
            Details::write(self, to);
        }
    }

    #[inline]
    fn read(from: &mut Reader<'_>) -> Self {
        let number = from.length();
        if number == from.details.len() {
            let details = Arc::new(Details::read(from));
            from.details.push(details);
        }
        Arc::clone(&from.details[number])
    }
}

impl Wire for Forward {
    fn write(&self, to: &mut Writer) {
        match self {
            Forward::Event(event) => {
                to.bytes.push(0);
                event.write(to);
            }
            Forward::Retract(own, message_id) => {
                to.bytes.push(1);
                own.write(to);
                message_id.write(to);
            }
            Forward::Reread(event) => {
                to.bytes.push(2);
                event.write(to);
            }
            // Few are asked, in many forms.
            Forward::Ask(ask) => {
                to.bytes.push(3);
                serde_json::to_string(ask).expect("questions are plain").into_boxed_str().write(to);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Self {
        match u8::read(from) {
            0 => Forward::Event(Wire::read(from)),
            1 => Forward::Retract(Wire::read(from), Wire::read(from)),
            2 => Forward::Reread(Wire::read(from)),
            _ => Forward::Ask(serde_json::from_str(from.text()).expect("questions arrive as they were written")),
        }
    }
}

#[cfg(test)]
mod tests {
    use timely::bytes::arc::BytesMut;

    use super::*;
    use crate::engine::assemble::Ask;
    use crate::protocol::Question;

    /// Sent to another process.
    fn sent<T: Wire>(batch: &Batch<T>) -> Vec<T> {
        let length = batch.length_in_bytes();
        let mut bytes = Vec::new();
        batch.into_bytes(&mut bytes);
        assert_eq!((bytes.len(), length % 8), (length, 0), "as long as was said, in whole words");
        Batch::<T>::from_bytes(BytesMut::from(bytes).freeze()).items
    }

    fn event(position: u64, details: Option<Arc<Details>>) -> Event {
        Event {
            timestamp: -1,
            position,
            own: "ärgerlich langer Name, der nicht hineinpasst".into(),
            message_id: "".into(),
            details,
            name: NameId(u32::MAX),
            kind: Kind::Alias,
            known: true,
        }
    }

    fn details() -> Arc<Details> {
        let list = Value::List(Box::new([Value::Null, Value::Bool(true), Value::Object, Value::number("1e13")]));
        let values =
            Box::new([(Slot(0), Value::text("a")), (Slot(u16::MAX), Value::number("-0.000001")), (Slot(7), list)]);
        let context = Context {
            page: Some("/".into()),
            device: None,
            os: Some("os".into()),
            browser: Some("browser".into()),
            utm: Some((None, Some("campaign".into()))),
            timezone: Some("Europe/Vienna".into()),
            consent: vec![
                Consent { purpose: "ads".into(), granted: false, source: ConsentSource::Google },
                Consent { purpose: "mail".into(), granted: true, source: ConsentSource::Segment },
            ],
            told: vec![("age".into(), "36".into())],
        };
        Arc::new(Details { values, context, tells: true })
    }

    #[test]
    fn records_arrive_as_they_were() {
        let link = Link {
            position: u64::MAX,
            stamp: -7,
            timestamp: i64::MIN,
            message_id: "m".into(),
            user: "u".into(),
            anonymous: Some("a".into()),
            previous: None,
        };
        let (details, other) = (details(), Arc::new(Details::default()));
        let prepared = |position, details: &Arc<Details>| {
            let event = event(position, Some(Arc::clone(details)));
            Record::Event(Prepared { event, link: Some(Box::new(link.clone())), is_late: true, entry: u128::MAX - 1 })
        };
        let plain = Prepared { event: event(127, None), link: None, is_late: false, entry: 0 };
        let records = vec![
            prepared(0, &details),
            Record::Event(plain),
            prepared(128, &other),
            prepared(1 << 35, &details),
            prepared(2, &other),
            Record::Clock(300, i64::MAX),
            Record::Retract(1, 5, "own".into(), "message".into(), 1 << 100),
            Record::Unlink(16_384, -5, "a".into(), "b".into()),
            Record::Unreadable(u64::MAX),
            Record::Reread(event(5, Some(Arc::clone(&details)))),
            Record::Bar(Box::new(Bar { position: 6, worker: 3, until: -1, marks: vec![1 << 90, 0] })),
            Record::Erase(Box::new(Erasure { position: 7, until: 8, ids: vec!["ada".into(), "phone".into()] })),
            Record::Destroyed(Destroyed { position: 9, timestamp: -9, is_late: true, route: 3, entry: 1 << 99 }),
            Record::Decided(10, Verdict::Erased),
            Record::Settled(Box::new(Settled { before: 1 << 50, clock: -1, refused: vec![3, u64::MAX] })),
        ];
        let arrived = sent(&Batch::from(records.clone()));
        assert_eq!(format!("{arrived:?}"), format!("{records:?}"));
        let shared = |record: &Record| match record {
            Record::Event(prepared) => prepared.event.details.clone(),
            _ => None,
        };
        let (first, again) = (shared(&arrived[0]), shared(&arrived[3]));
        assert!(first.zip(again).is_some_and(|(first, again)| Arc::ptr_eq(&first, &again)), "shared is shared again");
    }

    #[test]
    fn what_goes_on_arrives_as_it_was() {
        let question = Question::Profile("someone \"quoted\"".into());
        let forwards = vec![
            (EcoString::from("key"), Forward::Event(event(5, Some(details())))),
            (EcoString::new(), Forward::Retract("own".into(), "message".into())),
            (EcoString::from("key"), Forward::Ask(Ask { to: 3, number: u64::MAX, question })),
        ];
        let arrived = sent(&Batch::from(forwards.clone()));
        assert_eq!(format!("{arrived:?}"), format!("{forwards:?}"));
    }

    #[test]
    fn a_container_that_is_filled_again_says_what_it_holds_then() {
        let mut batch = Batch::<Record>::from(vec![Record::Unreadable(1)]);
        assert_eq!(format!("{:?}", sent(&batch)), "[Unreadable(1)]");
        let mut stash = Some(std::mem::take(&mut batch));
        batch.ensure_capacity(&mut stash);
        batch.push_into(Record::Unreadable(2));
        assert_eq!(format!("{:?}", sent(&batch)), "[Unreadable(2)]");
    }
}
