//! Launches that are recorded once and then repeated as one: what a decode step costs on the host. It deliberately knows nothing of
//! what is launched; whoever records keeps the buffers.

use std::fmt;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::{CudaError, Gpu, Result, launch};

/// Recorded launches.
pub struct Graph(CudaGraph);

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl Gpu {
    /// Records what `work` launches, without running it. `work` allocates nothing, frees nothing and waits for nothing; it has run
    /// once before, so that every kernel is compiled. The buffers that it used must outlive the graph.
    ///
    /// # Errors
    /// Those of `work`, and the driver's.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let stream = self.stream();
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(|error| launch::error("beginning to record", error))?;
        let done = work();
        let graph = stream
            .end_capture(CUgraphInstantiate_flags(0))
            .map_err(|error| launch::error("recording launches", error));
        done?;
        graph?.map(Graph).ok_or_else(|| CudaError::Driver {
            doing: "recording launches",
            message: "nothing was launched".to_owned(),
        })
    }

    /// Runs what was recorded.
    ///
    /// # Errors
    /// The driver's.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        graph
            .0
            .launch()
            .map_err(|error| launch::error("repeating launches", error))
    }
}
