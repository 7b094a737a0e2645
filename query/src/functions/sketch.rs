//! Functions over the windows' histograms: merging is addition of integers, in any order, bit-exact.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{ArrayRef, AsArray, BinaryArray, Float64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr::expressions::Literal;
use plimsoll_schemas::sketch::Sketch;

static MERGE: LazyLock<Arc<AggregateUDF>> = LazyLock::new(|| Arc::new(AggregateUDF::new_from_impl(Merge::new(Gives::Sketch))));

/// `sketch_merge(b)`: the sum of histograms.
pub fn sketch_merge_udaf() -> Arc<AggregateUDF> {
    MERGE.clone()
}

/// `percentile_merge(b, q)`: the value at rank q (0..1, a constant) of the sum of histograms.
pub fn percentile_merge_udaf() -> AggregateUDF {
    AggregateUDF::new_from_impl(Merge::new(Gives::Quantile))
}

/// `sketch_quantile(b, q)`: the value at rank q (0..1) of one histogram.
pub fn quantile_udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(Reader { reads: Reads::Quantile, signature: two_arguments() })
}

/// `sketch_fraction_below(b, x)`: the share (0..1) of values below x of one histogram.
pub fn fraction_below_udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(Reader { reads: Reads::FractionBelow, signature: two_arguments() })
}

fn two_arguments() -> Signature {
    Signature::exact(vec![DataType::Binary, DataType::Float64], Volatility::Immutable)
}

fn parse(bytes: &[u8]) -> Result<Sketch> {
    Sketch::from_bytes(bytes).or_else(|error| exec_err!("{error}"))
}

/// What is read from one histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reads {
    Quantile,
    FractionBelow,
}

impl Reads {
    fn of(self, sketch: &Sketch, number: f64) -> Option<f64> {
        match self {
            Reads::Quantile => sketch.quantile(number),
            Reads::FractionBelow if number <= 0.0 => (!sketch.is_empty()).then_some(0.0),
            Reads::FractionBelow => sketch.fraction_below(number as u64),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Reader {
    reads: Reads,
    signature: Signature,
}

impl ScalarUDFImpl for Reader {
    fn name(&self) -> &str {
        match self.reads {
            Reads::Quantile => "sketch_quantile",
            Reads::FractionBelow => "sketch_fraction_below",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (sketches, numbers): (&BinaryArray, &Float64Array) = (arrays[0].as_binary(), arrays[1].as_primitive::<Float64Type>());
        let values = sketches.iter().zip(numbers.iter()).map(|pair| match pair {
            (Some(bytes), Some(number)) => Ok(self.reads.of(&parse(bytes)?, number)),
            (None, _) | (_, None) => Ok(None),
        });
        Ok(ColumnarValue::Array(Arc::new(values.collect::<Result<Float64Array>>()?)))
    }
}

/// What an aggregate gives in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gives {
    Sketch,
    Quantile,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Merge {
    gives: Gives,
    signature: Signature,
}

impl Merge {
    fn new(gives: Gives) -> Self {
        let signature = match gives {
            Gives::Sketch => Signature::exact(vec![DataType::Binary], Volatility::Immutable),
            Gives::Quantile => two_arguments(),
        };
        Self { gives, signature }
    }
}

impl AggregateUDFImpl for Merge {
    fn name(&self) -> &str {
        match self.gives {
            Gives::Sketch => "sketch_merge",
            Gives::Quantile => "percentile_merge",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.gives {
            Gives::Sketch => DataType::Binary,
            Gives::Quantile => DataType::Float64,
        })
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let quantile = match self.gives {
            Gives::Sketch => None,
            Gives::Quantile => Some(constant(&args)?),
        };
        Ok(Box::new(Merged { sketch: Sketch::default(), quantile }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[sketch]", args.name), DataType::Binary, true))])
    }
}

fn constant(args: &AccumulatorArgs) -> Result<f64> {
    match args.exprs.get(1).and_then(|expr| expr.downcast_ref::<Literal>()).map(Literal::value) {
        Some(ScalarValue::Float64(Some(q))) if (0.0..=1.0).contains(q) => Ok(*q),
        Some(value) => plan_err!("percentile_merge: {value} is no rank between 0 and 1"),
        None => plan_err!("percentile_merge: the rank must be a constant between 0 and 1"),
    }
}

#[derive(Debug)]
struct Merged {
    sketch: Sketch,
    quantile: Option<f64>,
}

impl Merged {
    fn add(&mut self, sketches: &ArrayRef) -> Result<()> {
        let sketches: &BinaryArray = sketches.as_binary();
        for bytes in sketches.iter().flatten() {
            self.sketch.merge(&parse(bytes)?);
        }
        Ok(())
    }

    fn bytes(&self) -> ScalarValue {
        ScalarValue::Binary((!self.sketch.is_empty()).then(|| self.sketch.to_bytes()))
    }
}

impl Accumulator for Merged {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add(&values[0])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.add(&states[0])
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.bytes()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(match self.quantile {
            Some(q) => ScalarValue::Float64(self.sketch.quantile(q)),
            None => self.bytes(),
        })
    }

    fn size(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.sketch.bins())
    }
}
