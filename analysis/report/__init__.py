"""A run taken away from the app: one HTML file that opens offline, tables, and a view in notebooks."""
