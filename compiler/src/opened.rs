//! An opened checkpoint: where it is computed, what its loading cost, and what is read of it only once.

use std::cell::OnceCell;
use std::path::Path;

use moa_model::Checkpoint;

use crate::calibrate::CalibrationError;
use crate::calibrate::text::Text;
use crate::cli::DeviceChoice;
use crate::device::{self, Model, Place};
use crate::files::{TEXT_LIMIT, read_bounded};
use crate::hint::Told;
use crate::printer::Printer;
use crate::source::Source;
use crate::stages::Stages;

/// An opened checkpoint; its weights are loaded when they are first needed.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) name: String,
    pub(crate) license: Option<String>,
    pub(crate) source_sha256: String,
    /// Where the model is computed.
    pub(crate) place: Place,
    /// What took how long.
    pub(crate) stages: Stages,
    lm: OnceCell<Model>,
    text: OnceCell<Text>,
}

impl Opened {
    /// Opens a checkpoint and settles where to compute.
    pub(crate) fn open(
        path: &Path,
        device: DeviceChoice,
        printer: &Printer,
    ) -> anyhow::Result<Self> {
        let place = device::choose(device, printer)?;
        let source = Source::open(path)?;
        let opened = match &source {
            Source::Bundle(_) => (String::new(), None, String::new()),
            Source::Checkpoint(checkpoint) => {
                let bar = printer.bar("hashing the model", 0);
                let hash = checkpoint.source_hash()?;
                bar.finish_and_clear();
                (
                    checkpoint.name().to_owned(),
                    checkpoint.license().map(ToOwned::to_owned),
                    hash,
                )
            }
        };
        let (name, license, source_sha256) = opened;
        let opened = Self {
            source,
            name,
            license,
            source_sha256,
            place,
            stages: Stages::default(),
            lm: OnceCell::new(),
            text: OnceCell::new(),
        };
        opened.checkpoint()?;
        Ok(opened)
    }

    /// The checkpoint; a bundle has lost what profiling and building need.
    pub(crate) fn checkpoint(&self) -> anyhow::Result<&Checkpoint> {
        match &self.source {
            Source::Checkpoint(checkpoint) => Ok(checkpoint),
            Source::Bundle(_) => Err(Told::new(
                "this is a bundle, expected a model",
                "pass the model that the bundle was built from",
            )
            .into()),
        }
    }

    /// The model with its weights.
    pub(crate) fn lm(&self, printer: &Printer) -> anyhow::Result<&Model> {
        if self.lm.get().is_none() {
            let lm = self.stages.time("loading", || {
                device::load(&self.place, &self.source, printer)
            })?;
            // Just found empty, and nobody else holds this cell.
            let _ = self.lm.set(lm);
        }
        self.lm
            .get()
            .ok_or_else(|| crate::exit::Internal("the model vanished".into()).into())
    }

    /// The text that a command calibrates language modeling on, tokenized once.
    pub(crate) fn text(&self, path: &Path) -> anyhow::Result<&Text> {
        if self.text.get().is_none() {
            let bytes = read_bounded(path, TEXT_LIMIT)?;
            let tokenizer = self.source.tokenizer();
            let tokenizer = tokenizer.ok_or(CalibrationError::NoTokenizer { line: None })?;
            let _ = self.text.set(Text::parse(&bytes, tokenizer)?);
        }
        self.text
            .get()
            .ok_or_else(|| crate::exit::Internal("the text vanished".into()).into())
    }
}
