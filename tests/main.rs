//! Whole-program tests: the real binary on the real kernel, in a lab of namespaces of its own.
