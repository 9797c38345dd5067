// q8 weights are signed bytes in the order of their columns; nothing is added to their products.

const HAS_OFFSET: bool = false;
