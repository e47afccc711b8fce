"""How near a converted model is to its original, and how fast."""
