//! SmolLM2.
