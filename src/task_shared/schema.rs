//! What the user's words mean: name, unit and type of each, declared once, listed by readers.

use super::header::corrupt;
use crate::error::Result;
use core::fmt;
use core::marker::PhantomData;

/// Words that can be declared.
pub(super) const MAX_FIELDS: usize = 48;
/// Bytes of a declaration in the header.
pub(super) const ENTRY: usize = 64;
/// Bytes of a name and of a unit.
pub(super) const NAME: usize = 32;
pub(super) const UNIT: usize = 16;

/// The type of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// `u64`.
    U64,
    /// `i64`.
    I64,
    /// `f64`.
    F64,
    /// `bool`.
    Bool,
}

impl Kind {
    const ALL: [Self; 4] = [Self::U64, Self::I64, Self::F64, Self::Bool];

    /// The number in the header; 0 is none.
    const fn number(self) -> u32 {
        self as u32 + 1
    }

    /// What the bits of a word say.
    pub fn value(self, bits: u64) -> Value {
        match self {
            Self::U64 => Value::U64(bits),
            Self::I64 => Value::I64(bits.cast_signed()),
            Self::F64 => Value::F64(f64::from_bits(bits)),
            Self::Bool => Value::Bool(bits != 0),
        }
    }
}

/// The value of a word, by its type.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Of [`Kind::U64`].
    U64(u64),
    /// Of [`Kind::I64`].
    I64(i64),
    /// Of [`Kind::F64`].
    F64(f64),
    /// Of [`Kind::Bool`].
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U64(value) => value.fmt(f),
            Self::I64(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What fits a word: `u64`, `i64`, `f64`, `bool`.
pub trait Datum: Copy + sealed::Sealed {
    /// Its type, for readers.
    const KIND: Kind;
    /// The bits of the word.
    fn to_bits(self) -> u64;
    /// From such bits.
    fn from_bits(bits: u64) -> Self;
}

macro_rules! datum {
    ($($type:ty, $kind:ident, $to:expr, $from:expr;)+) => {$(
        impl sealed::Sealed for $type {}
        impl Datum for $type {
            const KIND: Kind = Kind::$kind;
            #[inline]
            fn to_bits(self) -> u64 {
                $to(self)
            }
            #[inline]
            fn from_bits(bits: u64) -> Self {
                $from(bits)
            }
        }
    )+};
}

datum! {
    u64, U64, |value| value, |bits| bits;
    i64, I64, i64::cast_unsigned, u64::cast_signed;
    f64, F64, f64::to_bits, f64::from_bits;
    bool, Bool, u64::from, |bits| bits != 0;
}

/// A word of the user's in every slot: which one, and what it means.
///
/// It is a constant; [`Config::word`](super::Config::word) declares it to readers.
///
/// ```
/// use unmerged::task_shared::Word;
///
/// const QUERIES: Word<u64> = Word::new(0, "queries", "1");
/// const LOAD: Word<f64> = Word::new(1, "load", "ratio");
/// # assert!(QUERIES.index() < LOAD.index());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<T> {
    index: usize,
    name: &'static str,
    unit: &'static str,
    /// Neither of a thread nor of a lifetime.
    datum: PhantomData<fn() -> T>,
}

impl<T: Datum> Word<T> {
    /// The word `index`, counted from 0, with a name of at most 32 bytes and a unit of at
    /// most 16, such as `"ns"` or `"bytes"`.
    pub const fn new(index: usize, name: &'static str, unit: &'static str) -> Self {
        Self { index, name, unit, datum: PhantomData }
    }

    /// Which of the words it is.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its unit.
    pub const fn unit(&self) -> &'static str {
        self.unit
    }

    /// The same without the type.
    pub(super) const fn entry(self) -> Entry {
        Entry { index: self.index, kind: T::KIND, name: self.name, unit: self.unit }
    }
}

/// A declaration, on the side of the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) index: usize,
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
}

impl Entry {
    /// As it lies in the header: name, unit, type, index, zeros.
    pub(super) fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes[NAME..NAME + self.unit.len()].copy_from_slice(self.unit.as_bytes());
        bytes[48..52].copy_from_slice(&self.kind.number().to_ne_bytes());
        bytes[52..56].copy_from_slice(&(self.index as u32).to_ne_bytes());
        bytes
    }
}

/// A word that a process has declared, as a reader finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// Which of the user's words.
    pub index: usize,
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
}

/// Checks a declaration that anybody may have written, in a table with so many words.
pub(super) fn parse(bytes: &[u8; ENTRY], words: usize) -> Result<Field> {
    let word = |at: usize| u32::from_ne_bytes(core::array::from_fn(|n| bytes[at + n]));
    let (kind, index) = (word(48), word(52));
    let Some(kind) = Kind::ALL.into_iter().find(|one| one.number() == kind) else {
        return Err(corrupt(format_args!("a word of type {kind}")));
    };
    if index as usize >= words {
        return Err(corrupt(format_args!("word {index} of {words} is declared")));
    }
    let text = |bytes: &[u8], what| {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        match core::str::from_utf8(&bytes[..end]) {
            Ok(text) if !text.contains(char::is_control) => Ok(text.to_owned()),
            _ => Err(corrupt(format_args!("the {what} of word {index} is no text"))),
        }
    };
    let (name, unit) = (text(&bytes[..NAME], "name")?, text(&bytes[NAME..48], "unit")?);
    Ok(Field { index: index as usize, kind, name, unit })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WORD: Word<f64> = Word::new(3, "a name of exactly 32 bytes, here", "sixteen bytes ok");

    #[test]
    fn what_is_declared_is_listed() {
        let field = parse(&WORD.entry().to_bytes(), 7).unwrap();
        assert_eq!((field.name.as_str(), field.unit.as_str()), (WORD.name(), WORD.unit()));
        assert_eq!((field.index, field.kind), (3, Kind::F64));
        assert_eq!(field.kind.value(1.5_f64.to_bits()), Value::F64(1.5));
    }

    #[test]
    fn each_part_is_checked() {
        for (at, value, message) in
            [(48, 0, "type 0"), (48, 5, "type 5"), (52, 7, "word 7 of 7"), (0, 0xff, "name")]
        {
            let mut bytes = WORD.entry().to_bytes();
            bytes[at] = value;
            let error = parse(&bytes, 7).unwrap_err();
            assert!(error.is_corrupt() && error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn values_are_what_they_were() {
        assert_eq!(Kind::I64.value((-5_i64).to_bits()), Value::I64(-5));
        assert_eq!((i64::from_bits(u64::MAX), bool::from_bits(true.to_bits())), (-1, true));
        assert_eq!(f64::from_bits(Datum::to_bits(-0.25)), -0.25);
        assert_eq!(Kind::Bool.value(2).to_string(), "true");
    }

    proptest! {
        /// Nothing panics, and what is accepted is in range.
        #[test]
        fn any_bytes(bytes in any::<[u8; 32]>(), kind in 0..6_u32, words in 0..100_usize) {
            let mut entry = [0; ENTRY];
            entry[16..48].copy_from_slice(&bytes);
            entry[48..52].copy_from_slice(&kind.to_ne_bytes());
            if let Ok(field) = parse(&entry, words) {
                prop_assert!(field.index < words);
            }
        }
    }
}
