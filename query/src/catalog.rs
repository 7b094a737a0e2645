//! The names that a statement can use, bound to the snapshot it sees. Nothing can be registered or dropped by a statement.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result;
use plimsoll_schemas::row::Table;

use crate::provider::Shown;
use crate::provider::rows::Scanned;
use crate::samples::SamplesTable;
use crate::snapshot::Snapshot;
use crate::system::{self, QueryLog};
use crate::tail::Health;
use crate::tail::processor::Processors;

/// The only catalog.
pub const CATALOG: &str = "plimsoll";
/// The schema of the data.
pub const PUBLIC: &str = "public";
/// The schema about the service itself.
pub const SYSTEM: &str = "system";
/// What Postgres clients look things up in.
pub const PG_CATALOG: &str = "pg_catalog";
const SAMPLES: &str = "samples";

/// What one statement sees.
#[derive(Debug, Clone)]
pub struct View {
    /// Name of the cell.
    pub cell: String,
    /// The one (manifest, position).
    pub snapshot: Arc<Snapshot>,
    /// The tail's health at that moment.
    pub health: Health,
    /// Counts what is read.
    pub scanned: Arc<Scanned>,
    /// Where samples are fetched.
    pub processors: Option<Processors>,
    /// Most samples fetched.
    pub samples_rows_max: u64,
    /// The statements that were run.
    pub log: Arc<QueryLog>,
    /// The tables of Postgres, shared by all statements.
    pub pg_catalog: Option<Arc<dyn SchemaProvider>>,
}

/// The list with the one catalog.
#[derive(Debug)]
pub struct Catalogs(pub View);

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _name: String, _catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(Catalog(self.0.clone())) as _)
    }
}

#[derive(Debug)]
struct Catalog(View);

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        let pg_catalog = self.0.pg_catalog.as_ref().map(|_| PG_CATALOG.to_owned());
        [PUBLIC.to_owned(), SYSTEM.to_owned()].into_iter().chain(pg_catalog).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            PUBLIC => Some(Arc::new(Public(self.0.clone()))),
            SYSTEM => Some(Arc::new(System(self.0.clone()))),
            PG_CATALOG => self.0.pg_catalog.clone(),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Public(View);

#[async_trait]
impl SchemaProvider for Public {
    fn table_names(&self) -> Vec<String> {
        Table::ALL.iter().map(|table| table.name()).chain([SAMPLES]).map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if name == SAMPLES {
            return Ok(Some(Arc::new(SamplesTable::new(self.0.processors.clone(), self.0.samples_rows_max))));
        }
        match Table::from_name(name) {
            Some(table) => Ok(Some(Arc::new(Shown::new(table, &self.0.snapshot, &self.0.scanned)?))),
            None => Ok(None),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        name == SAMPLES || Table::from_name(name).is_some()
    }
}

#[derive(Debug)]
struct System(View);

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        system::NAMES.iter().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(match name {
            "cells" => Some(system::cells(&self.0.cell, &self.0.snapshot, &self.0.health)?),
            "columns" => Some(system::columns()?),
            "queries" => Some(self.0.log.table()?),
            "retention" => Some(system::retention()?),
            _ => None,
        })
    }

    fn table_exist(&self, name: &str) -> bool {
        system::NAMES.contains(&name)
    }
}

/// The catalogs of the session that only describes: the same names over nothing, and a place for the tables of Postgres.
#[derive(Debug)]
pub struct Describing(Arc<DescribingCatalog>);

impl Describing {
    /// Over a view of nothing.
    pub fn new(view: View) -> Self {
        Self(Arc::new(DescribingCatalog { catalog: Catalog(view), pg_catalog: OnceLock::new() }))
    }
}

impl CatalogProviderList for Describing {
    fn register_catalog(&self, _name: String, _catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| self.0.clone() as _)
    }
}

#[derive(Debug)]
struct DescribingCatalog {
    catalog: Catalog,
    pg_catalog: OnceLock<Arc<dyn SchemaProvider>>,
}

impl CatalogProvider for DescribingCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.catalog.schema_names().into_iter().chain(self.pg_catalog.get().map(|_| PG_CATALOG.to_owned())).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == PG_CATALOG { self.pg_catalog.get().cloned() } else { self.catalog.schema(name) }
    }

    fn register_schema(&self, name: &str, schema: Arc<dyn SchemaProvider>) -> Result<Option<Arc<dyn SchemaProvider>>> {
        if name == PG_CATALOG {
            // Set once, when the service starts.
            let _ = self.pg_catalog.set(schema);
        }
        Ok(None)
    }
}
