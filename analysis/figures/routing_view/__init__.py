"""The prompt as text and as a map of blocks by tokens, drawn in the browser: its modules and their data."""
