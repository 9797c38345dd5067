// What both ways to the largest of all threads' values know: how many threads there are, and whose value it is where
// nobody has any.

const THREADS: u32 = 256u;
const NOBODY: u32 = 0xffffffffu;
