"""Parts of the integer simulation: reading the graph, what is fused, the arithmetic."""
