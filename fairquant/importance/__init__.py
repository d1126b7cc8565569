"""What every weight is worth to each group: metrics (one file each), the maps, and the one loop that measures them."""
