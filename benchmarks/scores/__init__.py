"""Reference scores: what the recipes reach on standard environments, beside published numbers."""
