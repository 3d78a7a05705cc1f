"""What the user brings: a model, data, a metric. Knows nothing of weights, engines or search."""
