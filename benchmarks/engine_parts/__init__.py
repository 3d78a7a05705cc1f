"""Parts of the engine's benchmark: each measures one thing and returns its figures."""
