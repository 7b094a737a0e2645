//! The shared language of Plimsoll: what is measured, how it is named, and how it travels. No I/O, no clock.
//!
//! Read in this order: identities and time; a [`reading::Reading`] is [`validate`]d into a [`sample::Sample`]; samples travel in a
//! [`frame::Frame`]; everything else travels as JSON; a [`record::Record`] is any message of the log; a [`row::Row`] is what SQL shows.

pub mod id;
pub mod time;
pub mod reason;
pub mod reading;
pub mod sample;
pub mod validate;
pub mod sketch;
pub mod frame;
pub mod inventory;
pub mod request;
pub mod control;
pub mod out;
pub mod subject;
pub mod record;
pub mod row;
