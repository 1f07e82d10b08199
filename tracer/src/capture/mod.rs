//! The capture file: append-only, framed, compressed, readable to the last whole block after any death.
