"""Parts of the packed file: bit streams, the map of widths, the container."""
