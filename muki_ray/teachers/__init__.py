"""One teacher in one process: text in, evidence out. Knows Torch and Transformers, not Ray."""
