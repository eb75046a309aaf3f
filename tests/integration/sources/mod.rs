//! Sources that are asked for a plugin at each build: loaders of one's own, and HTTP servers.

mod loaders;
