"""The public verbs: the engine, its step, and its description in words."""
