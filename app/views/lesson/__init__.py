"""The lesson on the page Explore: its stops, what their buttons do, and the questions at the end."""
