//! Where to compute, chosen once and said aloud.

use moa_lm::{Cpu, Lm};

use crate::cli::DeviceChoice;
use crate::interrupt;
use crate::printer::Printer;
use crate::source::Source;

/// Refuses a device that is not there. `auto` says what it took.
pub(crate) fn choose(choice: DeviceChoice, printer: &Printer) -> anyhow::Result<()> {
    match choice {
        DeviceChoice::Cpu => {}
        DeviceChoice::Auto => {
            if moa_kernels::probe().is_ok() {
                printer
                    .say("a CUDA device is present; this version computes on the CPU all the same");
            }
        }
        DeviceChoice::Cuda => {
            moa_kernels::engine()?;
        }
    }
    Ok(())
}

/// Loads the weights.
pub(crate) fn load(source: &Source, printer: &Printer) -> anyhow::Result<Lm<Cpu>> {
    let bar = printer.bar("loading weights", 0);
    let lm = Lm::load(Cpu, source, interrupt::flag())?;
    bar.finish_and_clear();
    Ok(lm)
}
