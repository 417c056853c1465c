"""How a lookup table gets filled, and how far its sums can be trusted."""
