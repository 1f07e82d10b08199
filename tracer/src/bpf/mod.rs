//! Loads, attaches and detaches the eBPF programs; the only module that names aya.
