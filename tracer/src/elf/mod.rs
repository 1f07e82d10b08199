//! What is needed of an ELF file, read defensively: segments, symbols, relocations, build id.
