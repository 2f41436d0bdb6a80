//! Which system calls of a workspace stop, what they get, and the loading of that filter.
