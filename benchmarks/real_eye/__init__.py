"""A real pretrained eye: what pruning by attention sees on it, and what a LLaVA on it answers."""
