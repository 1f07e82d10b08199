//! Which processes run Python, and which image each maps. With symbolize, the only reader of /proc.
