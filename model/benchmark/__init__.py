"""How fast an engine is, beside torch and beside what its device could do."""
