"""Commands for those who work on this repository; no stage imports them."""
