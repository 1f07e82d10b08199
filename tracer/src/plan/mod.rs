//! Pure: image facts and settings to probe sites, and reasons for what cannot be probed.
