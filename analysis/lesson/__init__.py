"""The lesson: its texts as data, and the live figures and checks of its stops as functions of a trace."""
