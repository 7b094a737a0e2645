//! Values: a byte for the encoding, then postcard. Rows have their own: [`crate::blocks`].

use std::path::Path;

use plimsoll_fold::encode;
use plimsoll_schemas::id::Position;
use plimsoll_schemas::out::Output;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Commit, Error, FORMAT};

const POSTCARD: u8 = 1;

/// A value that does not read back.
#[derive(Debug)]
pub enum Unreadable {
    /// Written by another build.
    Format(u32),
    /// Not what was written.
    Damaged(String),
}

impl Unreadable {
    /// The same with the folder it was found in.
    pub fn at(self, path: &Path) -> Error {
        match self {
            Self::Format(found) if found < FORMAT => Error::OlderFormat { path: path.to_owned(), found, known: FORMAT },
            Self::Format(found) => Error::NewerFormat { path: path.to_owned(), found, known: FORMAT },
            Self::Damaged(detail) => Error::Damaged { path: path.to_owned(), detail },
        }
    }
}

fn damaged(what: &str, detail: impl std::fmt::Display) -> Unreadable {
    Unreadable::Damaged(format!("{what}: {detail}"))
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    encode::append(value, vec![POSTCARD])
}

fn decoded<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T, Unreadable> {
    match value {
        [POSTCARD, rest @ ..] => postcard::from_bytes(rest).map_err(|error| damaged(what, error)),
        [encoding, ..] => Err(damaged(what, format!("encoding {encoding}"))),
        [] => Err(damaged(what, "no bytes")),
    }
}

/// An output's value.
pub fn encode_output(output: &Output) -> Vec<u8> {
    encoded(output)
}

/// The output of a value.
pub fn output(value: &[u8]) -> Result<Output, Unreadable> {
    decoded("output", value)
}

/// The commit's value: format 4 bytes big-endian, then postcard.
pub fn encode_commit(commit: &Commit) -> Vec<u8> {
    postcard::to_extend(commit, FORMAT.to_be_bytes().to_vec()).expect("a vector grows, and plain structs always serialise")
}

/// The commit of a value.
pub fn commit(value: &[u8]) -> Result<Commit, Unreadable> {
    let (format, rest) = value.split_first_chunk::<4>().ok_or_else(|| damaged("commit", format!("{} bytes", value.len())))?;
    match u32::from_be_bytes(*format) {
        FORMAT => postcard::from_bytes(rest).map_err(|error| damaged("commit", error)),
        found => Err(Unreadable::Format(found)),
    }
}

/// A position's value.
pub fn encode_position(position: Position) -> Vec<u8> {
    encoded(&position)
}

/// The position of a value.
pub fn position(value: &[u8]) -> Result<Position, Unreadable> {
    decoded("position", value)
}
