//! The shared language of Plimsoll: what is measured, how it is named, and how it travels. No I/O, no clock.
//!
//! Read in this order: identities and time; a [`reading::Reading`] is [`validate`]d into a [`sample::Sample`]; samples travel in a
//! [`frame::Frame`]; everything else travels as JSON; a [`record::Record`] is any message of the log; a [`row::Row`] is what SQL shows.

pub mod alert;
pub mod settings;
pub mod pace;
pub mod tables;
pub mod policy;
pub mod control;
pub mod ctl;
pub mod frame;
pub mod id;
pub mod inventory;
pub mod mig;
pub mod candidates;
pub mod out;
pub mod reading;
pub mod reason;
pub mod record;
pub mod request;
pub mod row;
pub mod sample;
pub mod sketch;
pub mod retention;
pub mod subject;
pub mod time;
pub mod validate;
