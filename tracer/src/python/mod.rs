//! Image facts: version, layout, thread state access and allocator functions of a CPython runtime.
