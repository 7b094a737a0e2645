//! Writes what the source gave in the format that `source::replay` reads, before anything is validated.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use plimsoll_schemas::reading::Number;
use plimsoll_schemas::sample::Field;
use serde_json::{Map, Value};

use crate::source::HostTick;

/// A record being written. The first failure ends it; the agent goes on.
#[derive(Debug)]
pub struct Recorder {
    file: Option<BufWriter<File>>,
}

impl Recorder {
    /// A new, empty record.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: Some(BufWriter::new(File::create(path)?)) })
    }

    /// Adds a tick.
    pub fn write(&mut self, tick: &HostTick) {
        let Some(file) = &mut self.file else { return };
        let lines = tick.gpus.iter().map(|gpu| {
            let mut object = Map::new();
            object.insert("t_ms".to_owned(), tick.sampled_at.millis().into());
            object.insert("host".to_owned(), tick.host.as_str().into());
            object.insert("device".to_owned(), gpu.uuid.as_str().into());
            let fields = Field::ALL.iter().filter_map(|&field| Some((field.name(), gpu.reading.get(field)?)));
            for (name, number) in fields.chain(gpu.energy_counter_mj.map(|counter| ("energy_counter_mj", counter))) {
                object.insert(name.to_owned(), json(number));
            }
            Value::Object(object)
        });
        let outcome = lines.into_iter().try_for_each(|line| writeln!(file, "{line}")).and_then(|()| file.flush());
        if let Err(error) = outcome {
            tracing::error!(%error, "the record cannot be written and ends here");
            self.file = None;
        }
    }
}

/// JSON knows neither NaN nor more than 64 bits; what it cannot say is left to the text.
fn json(number: Number) -> Value {
    match number {
        Number::Int(int) => {
            i64::try_from(int).map(Value::from).or_else(|_| u64::try_from(int).map(Value::from)).unwrap_or_else(|_| int.to_string().into())
        }
        Number::Float(float) => Value::from(float),
    }
}
