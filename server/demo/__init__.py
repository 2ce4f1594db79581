"""A small ticketing platform to try the hub on: its tables and its data, always the same."""
