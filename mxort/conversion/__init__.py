"""From a model to a converted one: what the user chooses, the weights, and what was done."""
