"""Who mixes with whom, and by which weights."""
