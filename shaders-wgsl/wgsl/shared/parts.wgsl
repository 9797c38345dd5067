// The work list of decode attention: which keys that a query sees are whose, and where partial results lie.

// Uniform, and the step state beside it, since what everything waits for comes sooner that way.
@group(0) @binding(1) var<uniform> state: StepState;
@group(0) @binding(5) var<uniform> items: array<SpanPart, MOST_ITEMS>;

const PARTIAL: u32 = HEAD_DIM + 2u;

// Keys that a query with so many keys behind it, its own included, sees: those of the sink, then those of the window.
fn visible_keys(item: SpanPart, causal: u32) -> u32 {
    let in_sink = min(causal, item.sink);
    return in_sink + min(causal - in_sink, item.window);
}
