"""From rows to a measured model: data, forms, batches and metrics need no torch, the rest does."""
