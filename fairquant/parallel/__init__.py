"""Several processes as one: what they tell each other, how they start, how their gradients and batch norms meet."""
