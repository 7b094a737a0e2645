//! The node and pod lists: comma-separated text with a header, columns in any order, further columns ignored.

use std::collections::BTreeMap;

use crate::placement::policy::fleet::{Fleet, HostSpec, MILLI};
use crate::placement::policy::power::{Draws, Powers};
use crate::placement::policy::shape::{Models, Shape};

/// Largest number taken: 2^31 - 1.
const NUMBER_MAX: i64 = i32::MAX as i64;

/// What is wrong with a list, and on which line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Error {
    /// The line, from 1.
    pub line: usize,
    /// What is there and what was expected.
    pub what: String,
}

/// One pod: what it asks for, and its models as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// CPU, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory, MiB.
    pub memory_mib: i64,
    /// GPUs.
    pub gpus: u32,
    /// Thousandths of each.
    pub milli: i32,
    /// Models that will do, `A|B`; empty = any.
    pub models: String,
}

impl Pod {
    /// The shape on a fleet.
    pub fn shape(&self, fleet: &Fleet) -> Shape {
        let models = if self.models.is_empty() || self.gpus == 0 { Models::ANY } else { fleet.models_of(self.models.split('|')) };
        Shape { cpu_milli: self.cpu_milli, memory_mib: self.memory_mib, gpus: self.gpus, milli: self.milli, models }
    }
}

/// The hosts of a node list (`sn, cpu_milli, memory_mib, gpu, model`), ordered and ranked by name.
pub fn nodes(text: &str) -> Result<Vec<HostSpec>, Error> {
    let mut hosts = Vec::new();
    for row in rows(text, &["sn", "cpu_milli", "memory_mib", "gpu", "model"])? {
        hosts.push(HostSpec {
            name: row.text("sn").to_owned(),
            rank: 0,
            cpu_milli: row.number("cpu_milli", NUMBER_MAX)?,
            memory_mib: row.number("memory_mib", NUMBER_MAX)?,
            gpus: row.number("gpu", 64)? as usize,
            model: row.text("model").to_owned(),
        });
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    for (rank, host) in (0..).zip(&mut hosts) {
        host.rank = rank;
    }
    Ok(hosts)
}

/// The pods of a pod list (`cpu_milli, memory_mib, num_gpu, gpu_milli`, and `gpu_spec` where there is one), in its order.
pub fn pods(text: &str) -> Result<Vec<Pod>, Error> {
    let mut pods = Vec::new();
    for row in rows(text, &["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"])? {
        let gpus = row.number("num_gpu", 64)? as u32;
        let milli = row.number("gpu_milli", i64::from(MILLI))? as i32;
        if (gpus == 0) != (milli == 0) {
            return Err(row.error(format!("num_gpu is {gpus} and gpu_milli is {milli}: both are zero, or neither")));
        }
        pods.push(Pod {
            cpu_milli: row.number("cpu_milli", NUMBER_MAX)?,
            memory_mib: row.number("memory_mib", NUMBER_MAX)?,
            gpus,
            milli,
            models: row.text("gpu_spec").to_owned(),
        });
    }
    Ok(pods)
}

/// What GPUs draw, by model (`model, idle_mw, active_mw, host_mw`), thousandths of a watt.
pub fn powers(text: &str) -> Result<Powers, Error> {
    let mut powers = Powers::new();
    for row in rows(text, &["model", "idle_mw", "active_mw", "host_mw"])? {
        let mw = |column: &str| row.number(column, NUMBER_MAX);
        let draws = Draws { idle_mw: mw("idle_mw")?, active_mw: mw("active_mw")?, host_mw: mw("host_mw")? };
        if powers.insert(row.text("model").to_owned(), draws).is_some() {
            return Err(row.error(format!("model {} is there twice", row.text("model"))));
        }
    }
    Ok(powers)
}

/// One line under its header.
struct Row<'a> {
    line: usize,
    fields: BTreeMap<&'a str, &'a str>,
}

impl Row<'_> {
    fn text(&self, column: &str) -> &str {
        self.fields.get(column).copied().unwrap_or_default()
    }

    fn number(&self, column: &str, max: i64) -> Result<i64, Error> {
        let text = self.text(column);
        match text.parse::<i64>() {
            Ok(number) if (0..=max).contains(&number) => Ok(number),
            Ok(_) | Err(_) => Err(self.error(format!("{column} is {text:?}, expected a whole number 0 to {max}"))),
        }
    }

    fn error(&self, what: String) -> Error {
        Error { line: self.line, what }
    }
}

fn rows<'a>(text: &'a str, needed: &[&str]) -> Result<Vec<Row<'a>>, Error> {
    let mut lines =
        text.trim_start_matches('\u{feff}').lines().enumerate().map(|(index, line)| (index + 1, line)).filter(|(_, line)| !line.trim().is_empty());
    let Some((line, header)) = lines.next() else {
        return Err(Error { line: 1, what: format!("nothing here, expected a header with the columns {}", needed.join(", ")) });
    };
    let columns: Vec<&str> = fields(header).collect();
    if let Some(missing) = needed.iter().find(|column| !columns.contains(column)) {
        return Err(Error { line, what: format!("no column {missing} in the header {header:?}, expected {}", needed.join(", ")) });
    }
    let row = |(line, text): (usize, &'a str)| {
        let found = fields(text).count();
        if found != columns.len() {
            return Err(Error { line, what: format!("{found} fields under a header of {}", columns.len()) });
        }
        Ok(Row { line, fields: columns.iter().copied().zip(fields(text)).collect() })
    };
    let rows: Vec<_> = lines.map(row).collect::<Result<_, _>>()?;
    if rows.is_empty() {
        return Err(Error { line: line + 1, what: "no line under the header".to_owned() });
    }
    Ok(rows)
}

/// The fields of a line. Quotes around a field are taken off; no value of these lists holds a comma.
fn fields(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(|field| {
        let field = field.trim();
        field.strip_prefix('"').and_then(|field| field.strip_suffix('"')).unwrap_or(field)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_any_order_and_hosts_are_ranked_by_name() {
        let hosts = nodes("\u{feff}model,sn,gpu,memory_mib,cpu_milli,more\r\nT4,b,2,4,3,x\r\n\r\n\"G2\",a,8,2,1,\r\n").expect("valid");
        let seen: Vec<_> = hosts.iter().map(|host| (host.name.as_str(), host.rank, host.gpus, host.cpu_milli, host.model.as_str())).collect();
        assert_eq!(seen, [("a", 0, 8, 1, "G2"), ("b", 1, 2, 3, "T4")]);
        let pods = pods("cpu_milli,memory_mib,num_gpu,gpu_milli\n4000,10,1,500\n").expect("valid");
        assert_eq!(pods, [Pod { cpu_milli: 4_000, memory_mib: 10, gpus: 1, milli: 500, models: String::new() }]);
    }

    #[test]
    fn what_a_model_draws_is_said_once() {
        let check = |text: &str, expected: Result<Draws, &str>| {
            let given = powers(&format!("model,idle_mw,active_mw,host_mw\n{text}\n"));
            assert_eq!(given.map(|powers| powers["T4"]).map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{text}");
        };
        check("A10,1,2,3\nT4,10000,70000,0", Ok(Draws { idle_mw: 10_000, active_mw: 70_000, host_mw: 0 }));
        check("T4,1,2,3\nT4,1,2,3", Err("line 3: model T4 is there twice"));
        check("T4,1,x,3", Err("line 2: active_mw is \"x\", expected a whole number 0 to 2147483647"));
    }

    #[test]
    fn an_error_names_the_line_and_what_was_expected() {
        let check = |text: &str, expected: &str| assert_eq!(pods(text).expect_err(text).to_string(), expected);
        let header = "cpu_milli,memory_mib,num_gpu,gpu_milli\n";
        check("", "line 1: nothing here, expected a header with the columns cpu_milli, memory_mib, num_gpu, gpu_milli");
        check(
            "cpu_milli,num_gpu,gpu_milli\n",
            "line 1: no column memory_mib in the header \"cpu_milli,num_gpu,gpu_milli\", expected cpu_milli, memory_mib, num_gpu, gpu_milli",
        );
        check(header, "line 2: no line under the header");
        check(&format!("{header}1,1,1,1000\n1,1,1\n"), "line 3: 3 fields under a header of 4");
        check(&format!("{header}-1,1,1,1000\n"), "line 2: cpu_milli is \"-1\", expected a whole number 0 to 2147483647");
        check(&format!("{header}1,1,1,1001\n"), "line 2: gpu_milli is \"1001\", expected a whole number 0 to 1000");
        check(&format!("{header}1,1,0,1000\n"), "line 2: num_gpu is 0 and gpu_milli is 1000: both are zero, or neither");
    }
}
