"""What a compressed model costs: real packed bytes (``size``), bit operations (``bops``), both from a bit map."""
