//! Build, test, demo.
fn main() {}
