//! The formats as the world sees them: bytes, `.proto` and JSON Schemas. What is checked in under `schemas/golden` and
//! `schemas/json` is the contract; the types must keep it.
//!
//! `PLIMSOLL_BLESS=1 cargo test -p plimsoll-schemas --test formats` rewrites the JSON Schemas from the types and writes golden
//! files that are missing. It never rewrites a golden file: bytes that were once published stay readable for ever, so a change of
//! format is a new version with a new file beside the old one.

mod examples;
mod bless;
mod golden;
mod json_schemas;
mod frames;
mod proto;
mod messages;
